//! A process that is followed until it has become another program, or has ended.
//!
//! It is traced (`PTRACE_SEIZE` with `PTRACE_O_TRACEEXEC`, Linux 3.4): nothing else tells exactly whether a process that was
//! killed had become the other program before. Whoever follows it is a thread; when that ends, the process goes on untraced.
//!
//! A program that gives privileges (set-user-ID, file capabilities) gives them to a process that is traced only if its tracer has
//! `CAP_SYS_PTRACE` (`ptrace(2)`).

use std::marker::PhantomData;

use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::error::{Error, Result};

/// A process that runs, and is followed by this thread.
#[derive(Debug)]
pub struct Followed {
    pid: Pid,
    // Only the thread that traces it can wait for it.
    _same_thread: PhantomData<*const ()>,
}

/// What became of a process.
#[derive(Debug)]
pub enum Became {
    /// Another program, which has not done anything yet.
    Program(Program),
    /// Nothing: it was killed, or ended by itself.
    Ended,
}

/// Another program, which begins when this is dropped.
#[derive(Debug)]
#[must_use = "dropping it lets the program begin"]
pub struct Program {
    pid: Pid,
    _same_thread: PhantomData<*const ()>,
}

/// `PR_SET_PTRACER`: lets this process be [followed](Followed::follow) where only ancestors may trace (the Yama security
/// module).
///
/// # Errors
///
/// [`Error::Call`]; a kernel without Yama says EINVAL, and needs no leave.
pub fn let_follow(pid: u32) -> Result<()> {
    let failed = |error: rustix::io::Errno| Error::new("prctl(PR_SET_PTRACER)", error.into());
    let tracer = i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw)
        .ok_or_else(|| failed(rustix::io::Errno::SRCH))?;
    let tracer = rustix::process::PTracer::ProcessID(tracer);
    rustix::process::set_ptracer(tracer).map_err(failed)
}

impl Followed {
    /// Follows a process from now on. It goes on, and does not notice. Its other threads are not followed, and must not start
    /// the other program.
    ///
    /// # Errors
    ///
    /// [`Error::NoPermission`] or [`Error::Call`] if it may not be traced, is traced already, or does not exist.
    pub fn follow(pid: u32) -> Result<Self> {
        const CALL: &str = "ptrace(PTRACE_SEIZE)";
        let number = i32::try_from(pid).map_err(|_| Error::new(CALL, Errno::ESRCH.into()))?;
        let pid = Pid::from_raw(number);
        ptrace::seize(pid, Options::PTRACE_O_TRACEEXEC)
            .map_err(|errno| Error::new(CALL, errno.into()))?;
        Ok(Self {
            pid,
            _same_thread: PhantomData,
        })
    }

    /// Waits for what becomes of it. Signals reach it as before, and it can be stopped.
    ///
    /// # Errors
    ///
    /// [`Error::Call`]; it goes on.
    pub fn wait(self) -> Result<Became> {
        loop {
            let status = match waitpid(self.pid, Some(WaitPidFlag::__WALL)) {
                Err(Errno::EINTR) => continue,
                // Somebody else waited for its end.
                Err(Errno::ECHILD) => return Ok(Became::Ended),
                status => status.map_err(|errno| Error::new("waitpid", errno.into()))?,
            };
            let went_on = match status {
                WaitStatus::Exited(..) | WaitStatus::Signaled(..) => return Ok(Became::Ended),
                WaitStatus::PtraceEvent(pid, _, libc::PTRACE_EVENT_EXEC) => {
                    return Ok(Became::Program(Program {
                        pid,
                        _same_thread: PhantomData,
                    }));
                }
                // It was stopped by a signal, and is to stay so; or it goes on again.
                WaitStatus::PtraceEvent(pid, Signal::SIGTRAP, _) => ptrace::cont(pid, None),
                WaitStatus::PtraceEvent(pid, _, libc::PTRACE_EVENT_STOP) => listen(pid),
                WaitStatus::PtraceEvent(pid, ..) => ptrace::cont(pid, None),
                WaitStatus::Stopped(pid, signal) => ptrace::cont(pid, signal),
                _ => Ok(()),
            };
            match went_on {
                // It has been killed, which is told next.
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => return Err(Error::new("ptrace(PTRACE_CONT)", errno.into())),
            }
        }
    }
}

/// `PTRACE_LISTEN`: the process stays stopped, as the signal wants it, until SIGCONT.
fn listen(pid: Pid) -> nix::Result<()> {
    let nothing = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: the request reads and writes no memory of this process.
    let result = unsafe { libc::ptrace(libc::PTRACE_LISTEN, pid.as_raw(), nothing, nothing) };
    Errno::result(result).map(drop)
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have been killed.
        let _ = ptrace::detach(self.pid, None);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::process::{Child, Command, Stdio};
    use std::thread;
    use std::time::{Duration, Instant};

    use nix::sys::signal::kill;

    use super::*;
    use crate::lab::until;

    /// A shell that becomes `cat` when it is told.
    fn shell() -> Child {
        let mut command = Command::new("sh");
        command.args(["-c", "echo ready && read line && exec cat"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // It has become a shell for good.
        let mut ready = [0; 6];
        child
            .stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut ready)
            .unwrap();
        child
    }

    fn state(child: &Child) -> char {
        super::super::pause::state(child.id().cast_signed()).unwrap()
    }

    #[test]
    fn another_program_waits_until_it_may_begin() {
        let mut child = shell();
        let followed = Followed::follow(child.id()).unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(b"go\nhello\n").unwrap();
        let Became::Program(program) = followed.wait().unwrap() else {
            panic!("it has ended");
        };
        let name = std::fs::read_to_string(format!("/proc/{}/comm", child.id())).unwrap();
        assert_eq!(name, "cat\n");
        assert_eq!(state(&child), 't');
        drop((program, stdin));
        let mut said = String::new();
        child
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut said)
            .unwrap();
        assert_eq!(said, "hello\n");
        assert!(child.wait().unwrap().success());
    }

    #[test]
    fn one_that_is_killed_has_ended() {
        let mut child = shell();
        let followed = Followed::follow(child.id()).unwrap();
        child.kill().unwrap();
        // It is a child of this process, and so its end is told once.
        assert!(matches!(followed.wait().unwrap(), Became::Ended));
        assert!(child.wait().is_err());
    }

    #[test]
    fn one_that_is_stopped_stays_so_until_it_is_continued() {
        let mut child = shell();
        let pid = Pid::from_raw(child.id().cast_signed());
        let (stopped, is_stopped) = std::sync::mpsc::channel();
        let follower = thread::spawn(move || {
            let followed = Followed::follow(pid.as_raw().cast_unsigned()).unwrap();
            stopped.send(()).unwrap();
            matches!(followed.wait().unwrap(), Became::Program(_))
        });
        is_stopped.recv().unwrap();
        kill(pid, Signal::SIGSTOP).unwrap();
        until("it stands still", || state(&child) == 't');
        child.stdin.take().unwrap().write_all(b"go\n").unwrap();
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_millis(200) {
            assert!(matches!(state(&child), 't' | 'T'));
            thread::sleep(Duration::from_millis(5));
        }
        kill(pid, Signal::SIGCONT).unwrap();
        assert!(follower.join().unwrap(), "it goes on");
        child.wait().unwrap();
    }

    #[test]
    fn one_that_is_gone_cannot_be_followed() {
        let mut child = shell();
        child.kill().unwrap();
        child.wait().unwrap();
        let error = Followed::follow(child.id()).expect_err("it is gone");
        assert_eq!(error.errno(), Some(libc::ESRCH), "{error}");
    }
}
