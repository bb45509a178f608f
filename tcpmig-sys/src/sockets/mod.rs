//! Which sockets a network namespace has.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::net::if_::{Interface, if_nameindex};
use socket2::{Domain, Protocol, Socket, Type};

use crate::ends::Ends;
use crate::error::{Error, Result};
use crate::info::State;
use crate::seam;

mod connect;
pub(crate) mod diag;
mod list;
pub(crate) mod occupant;
pub(crate) mod told;

use diag::NETLINK_SOCK_DIAG;
pub use diag::cookie;

pub(crate) use connect::{clear, connect};
pub use list::{Listed, list};
pub use occupant::Occupant;

/// Looks for connections of one network namespace: the one of the thread that made it, whatever
/// thread uses it.
///
/// It needs no privilege, and touches no socket. A kernel without `CONFIG_INET_DIAG` cannot tell:
/// nothing is found there.
#[derive(Debug)]
pub struct Lookup {
    channel: Mutex<Channel>,
}

#[derive(Debug)]
struct Channel {
    /// None where the kernel has no such sockets.
    netlink: Option<Socket>,
    /// Of the last request. An answer that a failed call left unread has another one.
    sequence: u32,
    /// The devices of the network namespace, and when they were listed.
    devices: Option<(Instant, Vec<u32>)>,
}

/// For so long no new device is looked for: listing them costs more than asking for a connection.
const LISTED_FOR: Duration = Duration::from_secs(1);

/// So many devices are asked about in one call: the answers have to fit into the buffer of the socket.
const ASKED_AT_ONCE: usize = 16;

const CALL: &str = "netlink(SOCK_DIAG_BY_FAMILY)";

impl Lookup {
    /// For the network namespace of the calling thread.
    ///
    /// # Errors
    ///
    /// [`Error::Call`] if there is no netlink socket to be had.
    pub fn new() -> Result<Self> {
        let protocol = Some(Protocol::from(NETLINK_SOCK_DIAG));
        let netlink = match Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, protocol) {
            Err(e) if e.raw_os_error() == Some(libc::EPROTONOSUPPORT) => None,
            other => Some(other.map_err(|e| Error::new("socket(NETLINK_SOCK_DIAG)", e))?),
        };
        Ok(Self {
            channel: Mutex::new(Channel {
                netlink,
                sequence: 0,
                devices: None,
            }),
        })
    }

    /// The state of the connection with these ends, if there is one: also of one that is in repair
    /// mode, still being accepted, or has no process any more (`TIME_WAIT`). Listeners are passed
    /// over. Both ends are of one family; IPv4 ends find IPv6 sockets with IPv4 packets too.
    ///
    /// A connection that is bound to a device is found too, because its packets have the same
    /// four-tuple: the kernel is asked once for each device that had been there a second before.
    ///
    /// # Errors
    ///
    /// [`Error::Call`] of the netlink socket, or if the devices cannot be listed.
    pub fn find(&self, local: SocketAddr, remote: SocketAddr) -> Result<Option<State>> {
        Ok(self.occupant(local, remote)?.map(|found| found.state))
    }

    /// Like [`Lookup::find`], but with what else the kernel tells of it.
    ///
    /// # Errors
    ///
    /// Those of [`Lookup::find`].
    pub fn occupant(&self, local: SocketAddr, remote: SocketAddr) -> Result<Option<Occupant>> {
        let mut channel = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        channel.list_devices(LISTED_FOR)?;
        // One that is bound to no device is found by any, and `lo` is always there.
        for from in (0..).step_by(ASKED_AT_ONCE) {
            let devices = channel.devices.as_ref();
            let rest = devices.and_then(|(_, devices)| devices.get(from..));
            let Some(part) = rest.filter(|rest| !rest.is_empty()) else {
                break;
            };
            let part = &part[..part.len().min(ASKED_AT_ONCE)];
            let ends = Ends { local, remote };
            let request = |&device| diag::request(ends, device, 0);
            let requests: Vec<_> = part.iter().map(request).collect();
            if let Some(found) = channel.find(requests)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Lists the devices now if the list is of some age, so that whoever [looks](Self::find) next does not wait for it.
    ///
    /// # Errors
    ///
    /// [`Error::Call`] if the devices cannot be listed.
    pub fn freshen(&self) -> Result<()> {
        let mut channel = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        channel.list_devices(LISTED_FOR / 2)
    }

    /// `SOCK_DESTROY`: ends a connection, or what is left of one. Needs `CAP_NET_ADMIN`.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] by a kernel without `CONFIG_INET_DIAG_DESTROY`, or one that does not end what is in
    /// `TIME_WAIT`; [`Error::NoPermission`]; [`Error::Call`] if it is gone already.
    pub(crate) fn end(&self, occupant: &Occupant) -> Result<()> {
        let mut channel = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        channel.end(&occupant.id)
    }
}

impl Channel {
    /// Unless that was done within this time.
    fn list_devices(&mut self, within: Duration) -> Result<()> {
        let is_new = |(when, _): &(Instant, Vec<u32>)| when.elapsed() < within;
        if !self.devices.as_ref().is_some_and(is_new) {
            let now = Instant::now();
            let devices = if_nameindex().map_err(|e| Error::new("if_nameindex", e.into()))?;
            let devices = devices.iter().map(Interface::index).collect();
            self.devices = Some((now, devices));
        }
        Ok(())
    }

    /// The first that one of the requests finds.
    fn find(&mut self, requests: Vec<Vec<u8>>) -> Result<Option<Occupant>> {
        let failed = |error| Error::new(CALL, error);
        let mut first = None;
        for answer in self.ask(requests).map_err(failed)? {
            let found = match answer {
                // Where there is no connection, the kernel names a listener that would take one.
                Ok(found) => found.filter(|found| found.state != State::Listen),
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => None,
                Err(error) => return Err(failed(error)),
            };
            first = first.or(found);
        }
        Ok(first)
    }

    fn end(&mut self, (family, id): &(u8, [u8; 48])) -> Result<()> {
        let request = diag::end_request(*family, id);
        let answers = self.ask(vec![request]);
        answers
            .and_then(|answers| answers.into_iter().try_for_each(|answer| answer.map(drop)))
            .map_err(|error| Error::new("netlink(SOCK_DESTROY)", error))
    }

    /// What the answer to each request is about, in their order, or the kernel's error; nothing if the kernel cannot tell, or has
    /// nothing to say. All of them are asked in one call.
    fn ask(&mut self, mut requests: Vec<Vec<u8>>) -> io::Result<Vec<io::Result<Option<Occupant>>>> {
        let Some(mut netlink) = self.netlink.as_ref() else {
            return Ok(Vec::new());
        };
        for request in &mut requests {
            self.sequence = self.sequence.wrapping_add(1);
            diag::number(request, self.sequence);
        }
        seam::announce(CALL)?;
        netlink.write_all(&requests.concat())?;
        let mut answers = Vec::with_capacity(requests.len());
        let mut answer = [0; 1 << 10];
        while answers.len() < requests.len() {
            // They come in order, behind those that a failed call left.
            let left = (requests.len() - answers.len() - 1) as u32;
            match netlink.read(&mut answer) {
                Ok(len) if diag::is_numbered(&answer[..len], self.sequence.wrapping_sub(left)) => {
                    answers.push(diag::answered(&answer[..len]));
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(answers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn connections_are_found_and_listeners_are_not() {
        let lookup = Lookup::new().unwrap();
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (local, remote) = (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
            let found = |local, remote| lookup.find(local, remote).unwrap();
            assert_eq!(found(local, remote), Some(State::Established));
            assert_eq!(found(remote, local), Some(State::Established));
            let mut other = local;
            other.set_port(local.port() ^ 1);
            assert_eq!(found(remote, other), None);
            // Nobody has accepted it yet; now it has a socket and one end is closed.
            let (accepted, _) = listener.accept().unwrap();
            drop(stream);
            assert!(matches!(
                found(local, remote),
                Some(State::FinWait1 | State::FinWait2)
            ));
            drop(accepted);
        }
    }

    #[test]
    fn sockets_of_ipv6_with_ipv4_packets_are_found() {
        let lookup = Lookup::new().unwrap();
        let listener = TcpListener::bind("[::]:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let (local, remote) = (stream.peer_addr().unwrap(), stream.local_addr().unwrap());
        assert_eq!(
            lookup.find(local, remote).unwrap(),
            Some(State::Established)
        );
    }
}
