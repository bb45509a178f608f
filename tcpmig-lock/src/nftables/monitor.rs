//! Notices what others do to the tables, and new devices: the sockets.
//!
//! The kernel tells every change of rules to a group of netlink. What this handle changes itself is left out by a
//! filter on the socket, so that its locks wake nobody.

use std::collections::HashMap;
use std::io;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use netlink_sys::Socket;
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{SockFilter, SockRef};
use tcpmig_format::FourTuple;

use super::batch;
use super::capture;
use super::element;
use super::names::{REDIRECT, Set, Table};
use crate::LockError;
use crate::netlink::{buffers, wire};

/// `NFNLGRP_NFTABLES`, and `RTNLGRP_LINK`.
const GROUP_TABLES: u32 = 7;
const GROUP_LINKS: u32 = 1;
/// Room for the news of a large rule set that is loaded; in tests too little for that.
const BUFFER: usize = if cfg!(test) { 1 << 16 } else { 4 << 20 };
/// The kernel puts several messages into one datagram of at most so many bytes.
const DATAGRAM: usize = 65536;

/// The sockets.
pub(super) struct Monitor {
    tables: Socket,
    links: Socket,
    wake: UnixStream,
    woken: UnixStream,
    /// Where datagrams are read into: room for each look would cost more than looking.
    datagram: Mutex<Vec<u8>>,
}

/// What others did since the last look.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// More than the socket's buffer holds: anything.
    pub(super) lost: bool,
    /// A table, chain or set of the handle's name is gone.
    pub(super) gone: bool,
    /// Somebody had the table sleep.
    pub(super) dormant: bool,
    /// Rules of chains that are there.
    rules: HashMap<(u8, Vec<u8>), i64>,
    /// Flows that others unlocked, or ended the redirect of.
    removed: Vec<(Set, FourTuple)>,
    /// Somebody has locked or redirected something.
    pub(super) added: bool,
    /// Somebody has redirected something, or that cannot be excluded.
    pub(super) redirected: bool,
    /// Devices came or went.
    pub(super) links: bool,
}

impl Seen {
    /// Whether rules are missing. Others that share the tables replace rules as a whole.
    pub(super) fn damage(&self) -> bool {
        self.gone || self.dormant || self.rules.values().any(|missing| *missing > 0)
    }
}

impl Seen {
    /// Those that were removed from one of the sets.
    pub(super) fn removed(&self, set: Set) -> Vec<FourTuple> {
        let removed = self.removed.iter().filter(|(from, _)| *from == set);
        removed.map(|(_, flow)| *flow).collect()
    }
}

impl Monitor {
    /// In the network namespace of the calling thread. Nothing is told before [`start`](Self::start).
    pub(super) fn open() -> Result<Self, LockError> {
        let bound = |protocol| -> io::Result<Socket> {
            let mut socket = Socket::new(protocol)?;
            socket.bind_auto()?;
            Ok(socket)
        };
        let open = || -> io::Result<Self> {
            let (wake, woken) = UnixStream::pair()?;
            wake.set_nonblocking(true)?;
            woken.set_nonblocking(true)?;
            Ok(Self {
                tables: bound(NETLINK_NETFILTER)?,
                links: bound(NETLINK_ROUTE)?,
                wake,
                woken,
                datagram: Mutex::new(Vec::with_capacity(DATAGRAM)),
            })
        };
        open().map_err(LockError::no_netfilter)
    }

    /// From now on what others do is told; not what is done through the socket with this number.
    pub(super) fn start(&self, own: u32) -> Result<(), LockError> {
        let start = || {
            SockRef::from(&self.tables).attach_filter(&not_from(own))?;
            buffers::raise_receive_buffer(&self.tables, BUFFER);
            self.tables.add_membership(GROUP_TABLES)?;
            self.links.add_membership(GROUP_LINKS)
        };
        start().map_err(LockError::call("setsockopt(NETLINK_ADD_MEMBERSHIP)"))
    }

    /// Has the thread look.
    pub(super) fn wake(&self) {
        // It fails if the thread is to look anyway, and if there is none.
        let _ = (&self.wake).write(&[0]);
    }

    /// Waits until something is there to read, or for this time.
    pub(super) fn wait(&self, time: Option<Duration>) {
        let mut fds = [
            PollFd::new(self.tables.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.links.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.woken.as_fd(), PollFlags::POLLIN),
        ];
        // A millisecond more, so that what is due then is due.
        let time = time.map_or(PollTimeout::NONE, |time| {
            let ms = i32::try_from(time.as_millis() + 1).unwrap_or(i32::MAX);
            PollTimeout::try_from(ms).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut fds, time) {
            Ok(_) => while (&self.woken).read(&mut [0; 64]).is_ok_and(|read| read > 0) {},
            Err(Errno::EINTR) => {}
            // Out of memory, which passes.
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }

    /// Reads what is there about the tables of this name; `own` is the handle's group of NFLOG.
    pub(super) fn read(&self, table: &str, own: Option<u16>) -> Seen {
        let mut seen = Seen::default();
        let own = own.map(capture::chain_name);
        // A panic leaves bytes in it, which are cleared.
        let datagram = &mut *self.datagram.lock().unwrap_or_else(PoisonError::into_inner);
        seen.lost = read(&self.tables, datagram, |bytes| {
            for message in wire::messages(bytes) {
                seen.take(table, own.as_deref(), message);
            }
        });
        let mut links = false;
        seen.links = read(&self.links, datagram, |_| links = true) | links;
        seen.redirected |= seen.lost;
        seen
    }

    /// Whether there is nothing to read.
    pub(super) fn is_quiet(&self) -> bool {
        let mut fds = [
            PollFd::new(self.tables.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.links.as_fd(), PollFlags::POLLIN),
        ];
        // What was lost shows as an error.
        poll(&mut fds, PollTimeout::ZERO) == Ok(0)
    }
}

/// Reads all that is there; true if some was lost.
fn read(socket: &Socket, bytes: &mut Vec<u8>, mut take: impl FnMut(&[u8])) -> bool {
    let mut lost = false;
    loop {
        bytes.clear();
        match socket.recv(bytes, libc::MSG_DONTWAIT) {
            Ok(_) => take(bytes),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => lost = true,
            Err(_) => return lost,
        }
    }
}

/// Takes all messages but those that the socket with this number caused.
fn not_from(own: u32) -> [SockFilter; 4] {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    /// Where `nlmsg_pid` is.
    const PORT: u32 = 12;
    [
        SockFilter::new(LOAD, 0, 0, PORT),
        // Filters read in network byte order.
        SockFilter::new(EQUAL, 0, 1, own.to_be()),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ]
}

impl Seen {
    fn take(&mut self, table: &str, own_capture: Option<&str>, message: wire::Message<'_>) {
        const TABLE: u16 = 1;
        const SET: u16 = 2;
        const CHAIN: u16 = 3;
        const RULE_CHAIN: u16 = 2;
        const TABLE_FLAGS: u16 = 2;
        const DORMANT: u32 = 1;
        let Some((&[family, ..], attributes)) = message.payload.split_first_chunk::<4>() else {
            return;
        };
        let is = |kind: libc::c_int| message.kind == batch::message_type(kind as u16);
        let text = |kind| {
            let value = wire::attribute(attributes, kind).unwrap_or_default();
            value.strip_suffix(&[0]).unwrap_or(value)
        };
        let ours = [Table::Inet, Table::Netdev].map(Table::family);
        if !ours.contains(&family) || text(TABLE) != table.as_bytes() {
            return;
        }
        // Those of other handles come and go.
        let others = |chain: &[u8]| {
            chain.starts_with(b"capture-") && Some(chain) != own_capture.map(str::as_bytes)
        };
        if is(libc::NFT_MSG_DELTABLE) || is(libc::NFT_MSG_DELSET) {
            self.gone = true;
        } else if is(libc::NFT_MSG_DELCHAIN) {
            // Kernels that tell it of a device that went say so here.
            let chain = text(CHAIN);
            self.links |= chain.starts_with(b"in-");
            self.gone |= !others(chain);
        } else if is(libc::NFT_MSG_NEWTABLE) {
            let flags =
                wire::attribute(attributes, TABLE_FLAGS).and_then(|flags| flags.first_chunk());
            self.dormant |= flags.is_some_and(|flags| u32::from_be_bytes(*flags) & DORMANT != 0);
        } else if is(libc::NFT_MSG_DELRULE) || is(libc::NFT_MSG_NEWRULE) {
            let chain = text(RULE_CHAIN);
            if !others(chain) {
                let missing = self.rules.entry((family, chain.to_vec())).or_default();
                *missing += if is(libc::NFT_MSG_DELRULE) { 1 } else { -1 };
            }
        } else if is(libc::NFT_MSG_NEWSETELEM) {
            self.added = true;
            let mut names = REDIRECT
                .iter()
                .flat_map(|set| [set.name(true), set.name(false)]);
            self.redirected |= names.any(|name| name.as_bytes() == text(SET));
        } else if is(libc::NFT_MSG_DELSETELEM) {
            let is = |set: &Set| {
                [true, false]
                    .iter()
                    .any(|v4| set.name(*v4).as_bytes() == text(SET))
            };
            if let Some(set) = [Set::Locked, Set::Gone].into_iter().find(is) {
                let elements = element::read(batch::elements_of(message.payload));
                let removed = elements.map(|element| (set, element.flow));
                self.removed.extend(removed);
            }
        }
    }
}
