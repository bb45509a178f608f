//! Handing a connection to a program, and what a program was handed.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

/// The first descriptor of socket activation (`SD_LISTEN_FDS_START` of `sd_listen_fds(3)`).
pub const FIRST_PASSED: i32 = 3;

/// `execve`: this process becomes the command, with the connection as its standard input, its
/// standard output and its descriptor 3.
///
/// Returns only if that fails. The connection's descriptor is closed then, and with it the
/// connection if this was the last one: make sure beforehand that the program can be started.
pub fn become_with_connection(command: &mut Command, connection: OwnedFd) -> io::Error {
    let (input, output) = match (connection.try_clone(), connection.try_clone()) {
        (Ok(input), Ok(output)) => (input, output),
        (Err(error), _) | (_, Err(error)) => return error,
    };
    command.stdin(input).stdout(output);
    become_with(command, connection)
}

/// `execve`: this process becomes the command, with the listener as its descriptor 3.
///
/// Returns only if that fails. The listener is closed then.
pub fn become_with_listener(command: &mut Command, listener: OwnedFd) -> io::Error {
    become_with(command, listener)
}

fn become_with(command: &mut Command, socket: OwnedFd) -> io::Error {
    let pass = move || {
        if socket.as_raw_fd() == FIRST_PASSED {
            fcntl(&socket, FcntlArg::F_SETFD(FdFlag::empty()))?;
            return Ok(());
        }
        // SAFETY: what this process has as descriptor 3 is not used any more: its next step is exec.
        let status = unsafe { libc::dup2(socket.as_raw_fd(), FIRST_PASSED) };
        if status < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    };
    // SAFETY: the closure does one system call; it neither allocates nor takes a lock.
    unsafe { command.pre_exec(pass) };
    command.exec()
}

/// The descriptors that systemd has passed to this process (`LISTEN_PID`, `LISTEN_FDS`, `LISTEN_FDNAMES`), with their names, close-on-exec:
/// `sd_listen_fds_with_names(3)`. The first call takes them; nobody else in this process may do so as well.
///
/// # Errors
///
/// One of them is not open.
pub fn take_passed() -> io::Result<Vec<(String, OwnedFd)>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let number = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok();
    let count = number("LISTEN_FDS").unwrap_or(0);
    let is_meant = number("LISTEN_PID") == Some(std::process::id());
    if !is_meant || count > i32::MAX.unsigned_abs() / 2 || TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(Vec::new());
    }
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':').map(str::to_owned);
    let mut passed = Vec::new();
    for fd in FIRST_PASSED..FIRST_PASSED + count.cast_signed() {
        // SAFETY: the number is looked at by one call, which fails if nothing is open there.
        let flags = unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
        if flags < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: it is open, it was passed to this process to own, and is taken once.
        let descriptor = unsafe { OwnedFd::from_raw_fd(fd) };
        passed.push((names.next().unwrap_or_default(), descriptor));
    }
    Ok(passed)
}

/// Lets a command have these as its descriptors from 3 on when it is started, as systemd passes them; that `LISTEN_PID` is the command's
/// own number is left to it (`sh -c 'LISTEN_PID=$$ exec ..'`).
///
/// # Errors
///
/// There are no more descriptors.
#[cfg(feature = "lab")]
pub fn pass(command: &mut Command, descriptors: &[OwnedFd]) -> io::Result<()> {
    // Above those that they get, so that none is in the way of another.
    let above = FIRST_PASSED + i32::try_from(descriptors.len()).unwrap_or(i32::MAX / 2);
    let mut kept = Vec::new();
    for descriptor in descriptors {
        let duplicate = fcntl(descriptor, FcntlArg::F_DUPFD_CLOEXEC(above))?;
        // SAFETY: `fcntl` has just opened it.
        kept.push(unsafe { OwnedFd::from_raw_fd(duplicate) });
    }
    command.env("LISTEN_FDS", descriptors.len().to_string());
    let pass = move || {
        for (to, descriptor) in (FIRST_PASSED..).zip(&kept) {
            // SAFETY: what the child has as these descriptors is not used any more: its next step is exec.
            let status = unsafe { libc::dup2(descriptor.as_raw_fd(), to) };
            if status < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: the closure does system calls only; it neither allocates nor takes a lock.
    unsafe { command.pre_exec(pass) };
    Ok(())
}
