//! Processes that stand still while a socket of theirs is in repair mode.
//!
//! They are stopped by tracing (`PTRACE_SEIZE`, `PTRACE_INTERRUPT`; Linux 3.4), not by SIGSTOP:
//!
//! - The kernel lets them go on when the tracer ends, however it ends. SIGSTOP would outlive it.
//! - A process has one tracer, so that two who stop it do not let it go on for each other.
//! - A process that somebody has stopped with SIGSTOP stays stopped afterwards, and its parent is not told
//!   of anything.
//!
//! A stop ends the call that a thread waits in. The kernel begins most of them again, but not all (`signal(7)`, "Interruption of
//! system calls and library functions by stop signals"): `epoll_wait`, and `recv` with a time limit, would fail with EINTR,
//! which few programs expect without a signal. On x86-64 they are made to begin again too, with their whole time limit.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::ptrace;
use nix::unistd::Pid;

use super::owners;
use super::take::Process;
use crate::error::{Error, Result};

/// How long to wait for threads to stop. Those that run do so within microseconds of being given a processor.
const STOPS_WITHIN: Duration = Duration::from_secs(10);

/// How long to wait for one in an uninterruptible sleep, such as for a disk. It comes back from there, but does not
/// come back to its program before it stops.
const SLEEPS_FOR: Duration = Duration::from_millis(100);

/// How long to wait until another tracer lets go: another one like this needs milliseconds.
const TRACED_FOR: Duration = Duration::from_secs(10);

/// All processes that have a socket, without this one.
#[derive(Debug)]
pub struct Holders {
    inode: u64,
    processes: Vec<Process>,
}

impl Holders {
    /// Looks for them in `/proc`, which takes longer the more descriptors there are on this host. Processes that the
    /// caller may not inspect are passed over.
    ///
    /// # Errors
    ///
    /// [`Error::Call`] if `/proc` cannot be read.
    pub fn of(socket: BorrowedFd<'_>) -> Result<Self> {
        let inode = owners::inode(socket)?;
        let mut holders = Self {
            inode,
            processes: Vec::new(),
        };
        holders.look()?;
        Ok(holders)
    }

    /// Their numbers.
    pub fn pids(&self) -> impl Iterator<Item = u32> {
        self.processes.iter().map(Process::pid)
    }

    /// Looks for those that came since.
    ///
    /// # Errors
    ///
    /// Those of [`Holders::of`].
    pub fn look(&mut self) -> Result<()> {
        self.processes.retain(|process| !has_ended(process));
        for owner in owners::with(self.inode)? {
            self.add(owner.pid)?;
        }
        Ok(())
    }

    fn add(&mut self, pid: u32) -> Result<()> {
        if pid == std::process::id() || self.pids().any(|known| known == pid) {
            return Ok(());
        }
        match Process::open(pid) {
            Ok(process) => self.processes.push(process),
            Err(error) if error.errno() == Some(libc::ESRCH) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Stops all of them until the guard is dropped, and the children that they made meanwhile and that have the socket too.
    /// When it returns none of their threads executes anything of its program.
    ///
    /// Needs the right to trace them (`PTRACE_MODE_ATTACH_REALCREDS`), as taking a descriptor does. If this process dies they
    /// go on.
    ///
    /// A thread of this process that waits for one of them as its child (`waitpid`) is told of the stop too, as of any stop of
    /// a tracee: wait with `__WNOTHREAD`, or after the guard is dropped.
    ///
    /// # Errors
    ///
    /// [`Error::Traced`] if a debugger or the like has one for more than ten seconds, [`Error::Call`] of `ptrace`. Then
    /// none of them is stopped.
    pub fn pause(&mut self) -> Result<Paused> {
        let (stopped, answer) = channel();
        let (thread_is, thread) = channel();
        let (held, until) = channel();
        let inode = self.inode;
        let pids: Vec<u32> = self.pids().collect();
        // Only the thread that traces may ask anything of a tracee, and its end is the end of tracing.
        let tracer = thread::Builder::new()
            .name("tcpmig-pause".to_owned())
            .spawn(move || {
                // The other end waits for it.
                let _ = thread_is.send(nix::unistd::gettid());
                trace(pids, inode, &stopped, &until);
            })
            .map_err(|e| Error::new("clone", e))?;
        let ended = || Error::new("ptrace", io::ErrorKind::UnexpectedEof.into());
        let paused = Paused {
            held: Some(held),
            tracer: Some(tracer),
            thread: thread.recv().map_err(|_| ended())?,
        };
        let pids = answer.recv().map_err(|_| ended())??;
        for pid in pids {
            self.add(pid)?;
        }
        Ok(paused)
    }
}

/// Whether a process has ended: its descriptor is readable then.
fn has_ended(process: &Process) -> bool {
    let mut polled = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
    poll(&mut polled, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// Processes that stand still; dropping lets them go on.
#[derive(Debug)]
#[must_use = "dropping lets the processes go on"]
pub struct Paused {
    held: Option<Sender<()>>,
    tracer: Option<JoinHandle<()>>,
    /// The number of the thread that traces.
    thread: Pid,
}

impl Drop for Paused {
    fn drop(&mut self) {
        drop(self.held.take());
        if let Some(tracer) = self.tracer.take() {
            // A panic would have ended the tracing as well.
            let _ = tracer.join();
            // A thread counts as joined before the kernel lets its tracees go on. Whoever waits for one of them as its child
            // would be told of the stop in between, and take it for the end.
            let task = format!("/proc/self/task/{}", self.thread);
            let begin = Instant::now();
            while fs::exists(&task).is_ok_and(|exists| exists) && begin.elapsed() < STOPS_WITHIN {
                thread::sleep(Duration::from_micros(20));
            }
        }
    }
}

/// Stops the processes, says which those are, and holds them until nobody has the other end of `until`.
///
/// They go on at the end of the thread. A signal that is about to be delivered to one of them is delivered then, because
/// nobody has waited for it (`waitpid`) and so taken it away.
fn trace(mut pids: Vec<u32>, inode: u64, stopped: &Sender<Result<Vec<u32>>>, until: &Receiver<()>) {
    let mut tracees = Vec::new();
    let mut looked_at = 0;
    let result = loop {
        if let Err(error) = stop(&pids[looked_at..], &mut tracees) {
            break Err(error);
        }
        let children = children(&pids[looked_at..]);
        looked_at = pids.len();
        let new = children.into_iter().filter(|child| {
            !pids.contains(child) && owners::has(*child, inode) && *child != std::process::id()
        });
        let new: Vec<u32> = new.collect();
        if new.is_empty() {
            break Ok(pids);
        }
        pids.extend(new);
    };
    for tracee in &tracees {
        begin_again(*tracee);
    }
    let failed = result.is_err();
    if stopped.send(result).is_ok() && !failed {
        // Nothing is ever sent.
        let _ = until.recv();
    }
}

/// Stops all threads of these processes.
fn stop(pids: &[u32], tracees: &mut Vec<Pid>) -> Result<()> {
    let begin = Instant::now();
    loop {
        let mut new = Vec::new();
        for pid in pids {
            for thread in threads(*pid) {
                if !tracees.contains(&thread) && seize(*pid, thread)? {
                    tracees.push(thread);
                    new.push(thread);
                }
            }
        }
        // One that still ran can have started another.
        if new.is_empty() {
            return Ok(());
        }
        for thread in new {
            wait(thread, begin)?;
        }
    }
}

/// The threads of a process, as far as they have not ended.
fn threads(pid: u32) -> Vec<Pid> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    tasks
        .filter_map(|task| task.ok()?.file_name().to_str()?.parse().ok())
        .filter(|thread| !matches!(state(*thread), None | Some('Z' | 'X')))
        .map(Pid::from_raw)
        .collect()
}

/// False for a thread that has ended.
fn seize(pid: u32, thread: Pid) -> Result<bool> {
    const CALL: &str = "ptrace(PTRACE_SEIZE) (needs the right to trace the process)";
    let failed = |call, errno: Errno| Error::Call {
        call,
        source: errno.into(),
    };
    let begin = Instant::now();
    // Since when nobody was seen to trace it.
    let mut free = None;
    loop {
        match ptrace::seize(thread, ptrace::Options::empty()) {
            Ok(()) => break,
            Err(Errno::ESRCH) => return Ok(false),
            Err(Errno::EPERM) => {}
            Err(errno) => return Err(failed(CALL, errno)),
        }
        match tracer_of(thread) {
            None if matches!(state(thread.as_raw()), None | Some('Z' | 'X')) => return Ok(false),
            Some(by) if begin.elapsed() >= TRACED_FOR => return Err(Error::Traced { pid, by }),
            Some(_) => free = None,
            // It may have been let go between the two looks.
            None if free.get_or_insert_with(Instant::now).elapsed() >= SLEEPS_FOR => {
                return Err(failed(CALL, Errno::EPERM));
            }
            None => {}
        }
        thread::sleep(Duration::from_micros(200));
    }
    match ptrace::interrupt(thread) {
        Ok(()) => Ok(true),
        Err(Errno::ESRCH) => Ok(false),
        Err(errno) => Err(failed("ptrace(PTRACE_INTERRUPT)", errno)),
    }
}

fn wait(thread: Pid, begin: Instant) -> Result<()> {
    loop {
        match state(thread.as_raw()) {
            None | Some('t' | 'Z' | 'X') => return Ok(()),
            Some('D') if begin.elapsed() >= SLEEPS_FOR => return Ok(()),
            Some(_) if begin.elapsed() >= STOPS_WITHIN => {
                let source = io::ErrorKind::TimedOut.into();
                return Err(Error::new("ptrace(PTRACE_INTERRUPT)", source));
            }
            Some(_) => thread::sleep(Duration::from_micros(20)),
        }
    }
}

/// The state of a thread as `/proc` names it: `t` if it stands still for its tracer.
pub(crate) fn state(thread: i32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{thread}/stat")).ok()?;
    state_in(&stat)
}

/// The third field of a `stat`; the second is a name that may have blanks and brackets.
fn state_in(stat: &str) -> Option<char> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.trim_start().chars().next()
}

fn tracer_of(thread: Pid) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("TracerPid:"))?;
    line.trim().parse().ok().filter(|by| *by != 0)
}

/// What these processes have forked. A kernel without `CONFIG_PROC_CHILDREN` tells of none.
fn children(pids: &[u32]) -> Vec<u32> {
    let mut children = Vec::new();
    for pid in pids {
        for thread in threads(*pid) {
            let list = fs::read_to_string(format!("/proc/{pid}/task/{thread}/children"));
            let list = list.unwrap_or_default();
            children.extend(
                list.split_whitespace()
                    .filter_map(|n| n.parse::<u32>().ok()),
            );
        }
    }
    children
}

/// Makes the call that a stopped thread was in begin again where the kernel would let it fail with EINTR.
#[cfg(target_arch = "x86_64")]
fn begin_again(thread: Pid) {
    /// `linux/errno.h`: the kernel begins the call again, unless a handler of the program has to run first: then it fails
    /// with EINTR.
    const ERESTARTNOHAND: i64 = 514;
    /// The code segment of 64-bit programs: others number calls differently.
    const USER_64_BIT: u64 = 0x33;
    /// Those of `signal(7)` that have done nothing if they say EINTR. Not `connect`, which says EALREADY when it is begun again.
    const CALLS: [i64; 22] = [
        libc::SYS_read,
        libc::SYS_readv,
        libc::SYS_write,
        libc::SYS_writev,
        libc::SYS_recvfrom,
        libc::SYS_recvmsg,
        libc::SYS_recvmmsg,
        libc::SYS_sendto,
        libc::SYS_sendmsg,
        libc::SYS_sendmmsg,
        libc::SYS_accept,
        libc::SYS_accept4,
        libc::SYS_epoll_wait,
        libc::SYS_epoll_pwait,
        libc::SYS_epoll_pwait2,
        libc::SYS_semop,
        libc::SYS_semtimedop,
        libc::SYS_msgrcv,
        libc::SYS_msgsnd,
        libc::SYS_rt_sigtimedwait,
        libc::SYS_io_getevents,
        libc::SYS_io_uring_enter,
    ];
    // One that does not stand still (it sleeps) has no registers to read.
    let Ok(mut registers) = ptrace::getregs(thread) else {
        return;
    };
    let failed = registers.rax.cast_signed() == -i64::from(libc::EINTR);
    let call = registers.orig_rax.cast_signed();
    if failed && registers.cs == USER_64_BIT && CALLS.contains(&call) {
        registers.rax = (-ERESTARTNOHAND).cast_unsigned();
        // Then it fails with EINTR, as without this.
        let _ = ptrace::setregs(thread, registers);
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn begin_again(_thread: Pid) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_does_not_hide_the_state() {
        assert_eq!(state_in("17 (a) R (b) S 1 17"), Some('S'));
        assert_eq!(state_in("17 (cat) T 1"), Some('T'));
        assert_eq!(state_in(""), None);
    }
}
