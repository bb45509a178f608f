//! How many system calls a connection costs that moves: on the thread of its source, on that of its target, and on those that
//! the library has besides.
//!
//! The test runs itself again and traces that process, thread by thread.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::process::Command;

use nix::libc;
use nix::sys::ptrace::{self, Options as Trace};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getppid, getsid};
use tcpmig::driver::{Ending, Options};

use crate::support::{Family, Net, Site, kernel_test};

const TRACED: &str = "TCPMIG_TEST_TRACED";
const NAME: &str = "calls::a_connection_takes_few_system_calls";

/// So many move before any are counted, and so many of which the calls are counted.
const FIRST: usize = 8;
const COUNTED: usize = 64;

/// Calls of one connection.
#[derive(Debug)]
struct Most {
    source: usize,
    target: usize,
    others: usize,
}

/// One after the other, so that nothing is done for two of them in one call. Where the machine is busy, what is looked at four times
/// a second is looked at for nearly every one.
const ALONE: Most = Most {
    source: 230,
    target: 180,
    others: 60,
};
/// In one call of `move_all`.
const TOGETHER: Most = Most {
    source: 160,
    target: 100,
    others: 60,
};

kernel_test!(a_connection_takes_few_system_calls, || {
    match std::env::var(TRACED).as_deref() {
        Ok(how) => be_traced(how == "together"),
        Err(_) => {
            check("alone", &ALONE);
            check("together", &TOGETHER);
        }
    }
});

fn check(how: &str, most: &Most) {
    let calls = trace(how);
    let each = |of: &dyn Fn(&Thread) -> bool| {
        let mut all: BTreeMap<i64, usize> = BTreeMap::new();
        for thread in calls.values().filter(|thread| of(thread)) {
            for (call, times) in &thread.counted {
                *all.entry(*call).or_default() += times;
            }
        }
        let sum: usize = all.values().sum();
        println!("{how}: {:.1} of {all:?}", sum as f64 / COUNTED as f64);
        sum.div_ceil(COUNTED)
    };
    let source = each(&|thread| thread.is_source);
    let target = each(&|thread| thread.is_target);
    let others = each(&|thread| !thread.is_source && !thread.is_target);
    println!("{how}: source {source}, target {target}, others {others}");
    assert!(source > 20 && target > 20, "not all were seen");
    assert!(
        source <= most.source && target <= most.target && others <= most.others,
        "{how}: source {source}, target {target}, others {others}, where {most:?} was enough"
    );
}

/// Moves connections. The calls in between two of `getppid`, by the thread of the source, count; one of `getsid` shows the target's.
fn be_traced(together: bool) {
    let net = Net::new();
    let (a, b) = Site::pair(&net, &Options::default());
    b.serve();
    let connect = |_| net.connect(Family::V4);
    let (_peers, servers): (Vec<_>, Vec<_>) = (0..FIRST + COUNTED).map(connect).unzip();
    let mut servers: Vec<OwnedFd> = servers.into_iter().map(Into::into).collect();
    let counted = servers.split_off(FIRST);
    b.call(|_| async { getsid(None).map(drop).unwrap() });
    a.call(move |here| async move {
        let (mover, to) = (here.mover(), here.other());
        for (servers, counts) in [(servers, false), (counted, true)] {
            let mark = || counts.then(getppid);
            mark();
            if together {
                let mut moves = mover.move_all(servers, &to);
                while let Some(outcome) = moves.next().await {
                    assert!(matches!(outcome.ending, Ending::Moved), "{outcome:?}");
                }
            } else {
                for server in servers {
                    let outcome = mover.move_out(server, None, &to).await;
                    assert!(matches!(outcome.ending, Ending::Moved), "{outcome:?}");
                }
            }
            mark();
        }
    });
    for _ in 0..FIRST + COUNTED {
        b.arrival();
    }
}

#[derive(Default)]
struct Thread {
    counted: BTreeMap<i64, usize>,
    is_source: bool,
    is_target: bool,
}

/// The calls of each thread of a process that is traced.
fn trace(how: &str) -> HashMap<Pid, Thread> {
    // It waits until it is traced.
    let mut command = Command::new("sh");
    command.args(["-c", "kill -STOP $$; exec \"$@\"", "sh"]);
    command.arg(std::env::current_exe().unwrap());
    command.args(["--exact", NAME, "--nocapture"]);
    command.env(TRACED, how);
    let child = Pid::from_raw(command.spawn().unwrap().id().cast_signed());
    // Other tests have children of their own.
    let mine = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
    let stopped = waitpid(child, Some(mine | WaitPidFlag::WUNTRACED)).unwrap();
    assert_eq!(stopped, WaitStatus::Stopped(child, Signal::SIGSTOP));
    let options =
        Trace::PTRACE_O_TRACESYSGOOD | Trace::PTRACE_O_TRACECLONE | Trace::PTRACE_O_EXITKILL;
    ptrace::seize(child, options).unwrap();
    kill(child, Signal::SIGCONT).unwrap();
    let mut threads: HashMap<Pid, Thread> = HashMap::new();
    let mut is_counting = false;
    loop {
        let (thread, signal) = match waitpid(Pid::from_raw(-1), Some(mine)).unwrap() {
            WaitStatus::PtraceSyscall(thread) => {
                if let Some(call) = call_of(thread) {
                    let counts = threads.entry(thread).or_default();
                    match call {
                        libc::SYS_getppid => {
                            is_counting = !is_counting;
                            counts.is_source = true;
                        }
                        libc::SYS_getsid => counts.is_target = true,
                        _ if is_counting => *counts.counted.entry(call).or_default() += 1,
                        _ => {}
                    }
                }
                (thread, None)
            }
            // A thread begins, or goes on.
            WaitStatus::PtraceEvent(thread, ..) => (thread, None),
            WaitStatus::Stopped(thread, signal) => (thread, Some(signal)),
            WaitStatus::Exited(ended, code) if ended == child => {
                assert_eq!(code, 0, "what is traced");
                return threads;
            }
            WaitStatus::Signaled(ended, signal, _) if ended == child => {
                panic!("what is traced ended by {signal}")
            }
            _ => continue,
        };
        // It may have ended meanwhile.
        let _ = ptrace::syscall(thread, signal);
    }
}

/// The call that a thread is about to make; `None` of one that was made.
fn call_of(thread: Pid) -> Option<i64> {
    let info = ptrace::syscall_info(thread).ok()?;
    if info.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
        return None;
    }
    let shown = std::fs::read_to_string(format!("/proc/{thread}/syscall")).ok()?;
    shown.split_whitespace().next()?.parse().ok()
}
