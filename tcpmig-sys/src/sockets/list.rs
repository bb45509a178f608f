//! All TCP sockets of a network namespace at once.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};

use super::diag::{self, NETLINK_SOCK_DIAG};
use crate::error::{Error, Result};
use crate::info::State;

const CALL: &str = "netlink(SOCK_DIAG_BY_FAMILY)";

/// A TCP socket, or what is left of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Listed {
    /// Its state.
    pub state: State,
    /// Its own end. An IPv6 socket with IPv4 packets has mapped addresses (`::ffff:10.0.0.1`).
    pub local: SocketAddr,
    /// The other end; port 0 for a listener.
    pub remote: SocketAddr,
    /// The device that it is bound to.
    pub device: Option<u32>,
    /// The number by which processes have it (see [`owners::all`](crate::process::owners::all)); 0 if none has it: it waits to be accepted,
    /// or is left over (`TIME_WAIT`).
    pub inode: u64,
    /// What no other socket of this host ever has (`SO_COOKIE`).
    pub cookie: u64,
    /// The user who made it.
    pub user: u32,
    /// Bytes that were received and not read; connections that wait to be accepted, for a listener.
    pub receive_queue: u32,
    /// Bytes that were written and not acknowledged; how many connections can wait, for a listener.
    pub send_queue: u32,
}

/// Lists the TCP sockets of the calling thread's network namespace in one go, listeners included. Needs no privilege.
///
/// What comes or goes meanwhile may be missing or be there.
///
/// # Errors
///
/// [`Error::Call`] of the netlink socket; [`Error::Unsupported`] by a kernel without `CONFIG_INET_DIAG`.
pub fn list() -> Result<Vec<Listed>> {
    let mut sockets = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        match dump(family as u8, &mut sockets) {
            Ok(()) => {}
            // A kernel without IPv6.
            Err(error)
                if family == libc::AF_INET6 && error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(source) => return Err(Error::new(CALL, source)),
        }
    }
    Ok(sockets)
}

fn dump(family: u8, sockets: &mut Vec<Listed>) -> io::Result<()> {
    let protocol = Some(Protocol::from(NETLINK_SOCK_DIAG));
    let mut netlink = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, protocol)?;
    netlink.write_all(&diag::dump_request(family))?;
    let mut answer = vec![0; 1 << 16];
    loop {
        let len = match netlink.read(&mut answer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            len => len?,
        };
        if diag::each(&answer[..len], |message| sockets.extend(listed(message)))? {
            return Ok(());
        }
    }
}

fn listed(message: &[u8]) -> Option<Listed> {
    let about = diag::About::read(message)?;
    let address = |bytes: [u8; 16]| match i32::from(about.family) {
        libc::AF_INET => {
            let [a, b, c, d, ..] = bytes;
            IpAddr::V4(Ipv4Addr::new(a, b, c, d))
        }
        _ => IpAddr::V6(Ipv6Addr::from(bytes)),
    };
    Some(Listed {
        state: State::from_number(about.state)?,
        local: SocketAddr::new(address(about.addresses[0]), about.ports[0]),
        remote: SocketAddr::new(address(about.addresses[1]), about.ports[1]),
        device: (about.device != 0).then_some(about.device),
        inode: about.inode.into(),
        cookie: about.cookie,
        user: about.user,
        receive_queue: about.queues[0],
        send_queue: about.queues[1],
    })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    use super::*;
    use crate::process::owners;

    #[test]
    fn connections_and_listeners_are_listed_with_their_owners() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let all = list().unwrap();
            let of = |local: SocketAddr, remote: SocketAddr| {
                let mut found = all
                    .iter()
                    .filter(|one| (one.local, one.remote) == (local, remote));
                let one = *found.next().unwrap();
                assert_eq!(found.next(), None, "twice");
                one
            };
            let (here, there) = (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
            let connected = of(here, there);
            assert_eq!(connected.state, State::Established);
            assert_eq!(connected.inode, owners::inode(stream.as_fd()).unwrap());
            // Nobody has accepted it.
            assert_eq!(of(there, here).inode, 0);
            let listening = all
                .iter()
                .find(|one| one.local == there && one.state == State::Listen);
            let listening = listening.unwrap();
            assert_eq!(listening.remote.port(), 0);
            assert_ne!(listening.cookie, connected.cookie);
            assert_eq!(listening.receive_queue, 1, "one waits to be accepted");
            assert_eq!(connected.user, listening.user);
            let (server, _) = listener.accept().unwrap();
            (&stream).write_all(b"unread").unwrap();
            let read = || {
                let all = list().unwrap();
                let mut all = all.into_iter();
                all.find(|one| (one.local, one.remote) == (there, here))
                    .unwrap()
            };
            assert_eq!(read().receive_queue, 6);
            drop(server);

            let owners = owners::all().unwrap();
            let of_this = &owners[&connected.inode];
            assert!(of_this.iter().any(|owner| owner.pid == std::process::id()));
        }
    }
}
