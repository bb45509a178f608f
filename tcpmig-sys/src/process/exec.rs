//! Handing a connection to a program.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

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
