//! Signals held back while something must not be left half-done, and waited for.

use std::marker::PhantomData;

use nix::sys::signal::{SigSet, SigmaskHow, Signal};

use crate::error::{Error, Result};

/// The signals that end or stop a program from outside are held back on this thread; dropping lets them
/// through.
#[derive(Debug)]
#[must_use = "dropping lets the signals through"]
pub struct HeldBack {
    before: SigSet,
    // A mask belongs to a thread.
    _same_thread: PhantomData<*const ()>,
}

/// What ends or stops a program and can be held back. Not SIGALRM: the commands that are started meanwhile inherit the mask, and
/// iptables ends its wait for its lock with one.
const HELD_BACK: [Signal; 13] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGIO,
    Signal::SIGPWR,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGTSTP,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGXCPU,
    Signal::SIGXFSZ,
];

/// `pthread_sigmask`: holds back on the calling thread what ends or stops a program from outside, so that a connection is not left
/// frozen by a key press (SIGINT, SIGQUIT, SIGTSTP), a terminal that closes (SIGHUP), or a limit: a write that exceeds
/// `RLIMIT_FSIZE` then fails with EFBIG, and the thread has a SIGXFSZ to come when they are let through.
/// SIGKILL and SIGSTOP cannot be held back.
///
/// Threads and commands that are started meanwhile inherit the mask. In a program with several threads, hold the signals back
/// before the others are started.
///
/// # Errors
///
/// [`Error::Call`].
pub fn block() -> Result<HeldBack> {
    let signals: SigSet = HELD_BACK.into_iter().collect();
    let before = signals
        .thread_swap_mask(SigmaskHow::SIG_BLOCK)
        .map_err(|e| Error::new("pthread_sigmask", e.into()))?;
    Ok(HeldBack {
        before,
        _same_thread: PhantomData,
    })
}

impl Drop for HeldBack {
    fn drop(&mut self) {
        // A mask that the kernel gave is one that it takes.
        let _ = self.before.thread_set_mask();
    }
}

/// `setsid`: this process gets a session and a process group of its own, so that what a terminal sends to the group that it was
/// in does not reach it. One that leads its group stays where it is.
///
/// # Errors
///
/// [`Error::Call`].
pub fn own_session() -> Result<()> {
    match nix::unistd::setsid() {
        Ok(_) | Err(nix::errno::Errno::EPERM) => Ok(()),
        Err(errno) => Err(Error::new("setsid", errno.into())),
    }
}

/// What a [`Watcher`] waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watched {
    /// A child of this process has ended, or was stopped or continued.
    Child,
    /// This process is asked to end: SIGHUP, SIGINT, SIGQUIT or SIGTERM.
    End,
}

/// Waits for children and for the signals that ask a program to end, on the thread that made it, and holds them back there.
///
/// Dropping it lets them through.
#[derive(Debug)]
pub struct Watcher {
    before: SigSet,
    signals: SigSet,
    _same_thread: PhantomData<*const ()>,
}

impl Watcher {
    /// `pthread_sigmask`. In a program with several threads, make it before the others.
    ///
    /// # Errors
    ///
    /// [`Error::Call`].
    pub fn new() -> Result<Self> {
        let signals: SigSet = [
            Signal::SIGCHLD,
            Signal::SIGHUP,
            Signal::SIGINT,
            Signal::SIGQUIT,
            Signal::SIGTERM,
        ]
        .into_iter()
        .collect();
        let before = signals
            .thread_swap_mask(SigmaskHow::SIG_BLOCK)
            .map_err(|e| Error::new("pthread_sigmask", e.into()))?;
        Ok(Self {
            before,
            signals,
            _same_thread: PhantomData,
        })
    }

    /// `sigwait`.
    ///
    /// # Errors
    ///
    /// [`Error::Call`].
    pub fn wait(&self) -> Result<Watched> {
        match self.signals.wait() {
            Ok(Signal::SIGCHLD) => Ok(Watched::Child),
            Ok(_) => Ok(Watched::End),
            Err(errno) => Err(Error::new("sigwait", errno.into())),
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        // A mask that the kernel gave is one that it takes.
        let _ = self.before.thread_set_mask();
    }
}

/// `kill(process, SIGINT)`: asks a process to end, as a person at its terminal does.
///
/// # Errors
///
/// [`Error::Call`]: there is no such process, or it is another user's.
pub fn interrupt(process: u32) -> Result<()> {
    let process = rustix::process::Pid::from_raw(process.cast_signed());
    let sent =
        process.map(|process| rustix::process::kill_process(process, rustix::process::Signal::INT));
    sent.unwrap_or(Err(rustix::io::Errno::SRCH))
        .map_err(|error| Error::new("kill", error.into()))
}
