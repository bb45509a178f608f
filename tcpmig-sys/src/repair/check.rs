//! Which connections can be moved.

use std::os::fd::BorrowedFd;

use super::mute;
use super::waiting::{has_error, refuse_urgent};
use crate::ends::{Ends, peer_name};
use crate::error::{NotMigratable, Result};
use crate::info::{Info, State, counters, tcp_info};
use crate::sockets::{Lookup, diag};
use crate::sockopt;

/// Refuses what is not plain TCP connection, or is in a state that cannot be moved, without touching it; else what `TCP_INFO`
/// says of it.
///
/// States that can be: those of [`State::is_movable`], `SYN_SENT`, and CLOSE if there was a connection. What this does not
/// see: MD5 keys and headers that every segment has ([`options::check`](crate::options::check)), and a BPF program that has the socket in a sockmap.
///
/// # Errors
///
/// [`Error::NotMigratable`](crate::Error::NotMigratable) with the reason.
pub fn check(fd: BorrowedFd<'_>) -> Result<Info> {
    plain_tcp(fd)?;
    let info = tcp_info(fd)?;
    match info.state {
        state if state.is_movable() => {}
        State::SynSent => check_opening(fd)?,
        State::Close => check_ended(fd)?,
        State::Listen => return Err(NotMigratable::Listening.into()),
        State::SynReceived => return Err(NotMigratable::FastOpen.into()),
        state => return Err(NotMigratable::State(state).into()),
    }
    if sockopt::repair(fd)? {
        return Err(NotMigratable::InRepairMode.into());
    }
    if sockopt::upper_layer(fd)?.is_some() {
        return Err(NotMigratable::UpperLayer.into());
    }
    if diag::has_ao(fd)? {
        return Err(NotMigratable::Ao.into());
    }
    mute::check(fd)?;
    refuse_urgent(fd)?;
    Ok(info)
}

/// Whether a socket of TCP is in repair mode, whoever did that.
///
/// # Errors
///
/// [`Error::NotMigratable`](crate::Error::NotMigratable) with [`NotMigratable::NotTcp`] for any other descriptor,
/// [`Error::Call`](crate::Error::Call).
pub fn is_in_repair_mode(fd: BorrowedFd<'_>) -> Result<bool> {
    plain_tcp(fd)?;
    sockopt::repair(fd)
}

fn plain_tcp(fd: BorrowedFd<'_>) -> Result<()> {
    match sockopt::protocol(fd) {
        Ok(libc::IPPROTO_TCP) => Ok(()),
        Ok(libc::IPPROTO_MPTCP) => Err(NotMigratable::Mptcp.into()),
        Ok(_) => Err(NotMigratable::NotTcp.into()),
        Err(error) if error.errno() == Some(libc::ENOTSOCK) => Err(NotMigratable::NotTcp.into()),
        Err(error) => Err(error),
    }
}

/// Refuses a connection that has data in its SYN.
fn check_opening(fd: BorrowedFd<'_>) -> Result<()> {
    let counters = counters(fd)?;
    if counters.data_segs_out > 0 || counters.unacked > 1 {
        return Err(NotMigratable::FastOpen.into());
    }
    Ok(())
}

/// Refuses a socket in CLOSE that has had no connection, and one whose pending error could not be put back, because
/// another connection has its addresses and ports by now. The thread has to be in the network namespace of the socket.
fn check_ended(fd: BorrowedFd<'_>) -> Result<()> {
    let never = || Err(NotMigratable::State(State::Close).into());
    match peer_name(fd) {
        Ok(_) => {}
        Err(error) if error.errno() == Some(libc::ENOTCONN) => return never(),
        Err(error) => return Err(error),
    }
    // One that was refused, or never answered, has an address too.
    let counters = counters(fd)?;
    if !counters.options_agreed && counters.delivered == 0 && counters.segs_in < 2 {
        return never();
    }
    if has_error(fd)? {
        let Ends { local, remote } = Ends::of(fd)?;
        if Lookup::new()?.find(local, remote)?.is_some() {
            return Err(NotMigratable::PortsInUse.into());
        }
    }
    Ok(())
}
