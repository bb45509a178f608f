//! Netlink sockets to connection tracking.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};

use super::entry::{self, CTA_ID, CTA_TUPLE_ORIG, CTA_ZONE, Entry, New, Tuple};
use super::zones::{self, Due};
use crate::netlink::{socket, wire};

/// `NFNL_SUBSYS_CTNETLINK`, and the messages of it.
const SUBSYSTEM: u16 = 1 << 8;
const NEW: u16 = SUBSYSTEM;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;

const NLMSG_ERROR: u16 = libc::NLMSG_ERROR as u16;
const NLMSG_DONE: u16 = libc::NLMSG_DONE as u16;
const REQUEST: u16 = libc::NLM_F_REQUEST as u16;
const DUMP: u16 = libc::NLM_F_DUMP as u16;
const ACK: u16 = libc::NLM_F_ACK as u16;
const CREATE: u16 = (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;

/// Large enough for what the kernel puts into one datagram.
const REPLY: usize = 65536;
/// Enough for a request.
const REQUEST_LENGTH: usize = 256;

/// Its presence says that the module is loaded, its content how many entries this network namespace has.
const COUNT: &str = "/proc/sys/net/netfilter/nf_conntrack_count";

/// A socket in one network namespace.
pub(super) struct Channel {
    socket: Socket,
    next_seq: u32,
    reply: Vec<u8>,
    /// The inode of its network namespace; 0 if the system does not tell. The socket keeps the namespace, so that no other
    /// one gets this inode.
    inode: u64,
    /// The cookie of its network namespace: inodes are used again, and what is learnt outlives a namespace.
    namespace: u64,
    /// When connection tracking was seen to be there.
    seen: Instant,
    /// When an entry was made, and when it was found to be there still: in between nobody removed all of them.
    kept: Option<(Instant, Instant)>,
}

/// For so long nobody is taken to have removed all entries since.
const KEPT_FOR: Duration = Duration::from_millis(20);

/// For so long it is taken to be there: modules are seldom unloaded, and looking costs more than asking.
const LOADED_FOR: Duration = Duration::from_secs(1);

/// Sockets that nobody uses just now, the longest unused first. They are kept: to make one costs more than to ask, and to close
/// one can hold up every change of this namespace's rules for ten milliseconds (`nft_rcv_nl_event` waits for what
/// earlier changes have still to free).
static KEPT: Mutex<Vec<Channel>> = Mutex::new(Vec::new());
/// Each keeps its network namespace. A process has few, and few threads that ask at once.
const KEEP: usize = 8;

fn kept() -> MutexGuard<'static, Vec<Channel>> {
    // What a panic left is whole: every change is one call.
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

fn take(is: impl Fn(&Channel) -> bool) -> Option<Channel> {
    let mut kept = kept();
    let at = kept.iter().rposition(is)?;
    Some(kept.remove(at))
}

fn give_back(channel: Channel) {
    let mut kept = kept();
    kept.push(channel);
    let closed = (kept.len() > KEEP).then(|| kept.remove(0));
    drop(kept);
    drop(closed);
}

/// A look at the whole table that a connection gives cause to waits until that one has come: it holds a processor for
/// milliseconds.
const LOOK_AFTER: Duration = Duration::from_millis(100);

/// Asks with a socket in the network namespace of the calling thread. `None` if this host has no connection tracking or
/// does not let this process ask.
pub(super) fn with<T>(ask: impl FnOnce(&mut Channel) -> io::Result<T>) -> io::Result<Option<T>> {
    with_in(None, ask)
}

/// Like [`with`], but in the network namespace with this cookie, in which the calling thread is: to find out in which it is costs as much as
/// asking.
pub(super) fn with_in<T>(
    namespace: Option<u64>,
    ask: impl FnOnce(&mut Channel) -> io::Result<T>,
) -> io::Result<Option<T>> {
    let kept = namespace.and_then(|cookie| take(|channel| channel.namespace == cookie));
    let here = || fs::metadata("/proc/thread-self/ns/net").map_or(0, |file| file.ino());
    let (inode, kept) = match kept {
        Some(channel) => (channel.inode, Some(channel)),
        None => {
            let inode = here();
            (inode, take(|channel| channel.inode == inode && inode != 0))
        }
    };
    // Asking would load the module, and then every packet of the host would be tracked by the next rule that says so.
    let looked = kept.as_ref().map(|channel| channel.seen);
    let seen = match looked.filter(|seen| seen.elapsed() < LOADED_FOR) {
        Some(seen) => seen,
        None if is_loaded() => Instant::now(),
        None => return Ok(None),
    };
    let mut channel = match kept {
        Some(channel) => channel,
        None => match Channel::open(inode) {
            Ok(channel) => channel,
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) => return Err(error),
        },
    };
    channel.seen = seen;
    let answer = ask(&mut channel);
    match answer {
        Ok(answer) => {
            give_back(channel);
            Ok(Some(answer))
        }
        // After an error the rest of an answer may be to come: the socket is not used again.
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

pub(super) fn is_loaded() -> bool {
    match fs::metadata(COUNT) {
        // Where these files cannot be seen at all, they say nothing.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            !Path::new("/proc/sys/net").exists()
        }
        _ => true,
    }
}

/// Whether this namespace has no entry at all. Then the table, which all share, need not be looked through.
fn is_empty() -> bool {
    fs::read_to_string(COUNT).is_ok_and(|count| count.trim() == "0")
}

/// `EINVAL` is what a kernel says that has no netlink for connection tracking: the messages sent here are whole.
fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::EINVAL
                | libc::EPERM
                | libc::EPROTONOSUPPORT
                | libc::EAFNOSUPPORT
                | libc::EOPNOTSUPP
        )
    )
}

impl Channel {
    fn open(inode: u64) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self {
            next_seq: 1,
            reply: Vec::with_capacity(REPLY),
            namespace: socket::namespace_cookie(&socket).unwrap_or(inode),
            inode,
            seen: Instant::now(),
            kept: None,
            socket,
        })
    }

    /// An entry that was made then has just been found.
    pub(super) fn kept(&mut self, made: Instant) {
        self.kept = Some((made, Instant::now()));
    }

    /// Whether nobody can have removed all entries since then, but in the last few milliseconds.
    pub(super) fn has_kept_all_since(&self, since: Instant) -> bool {
        self.kept.is_some_and(|(made, found)| {
            made <= since && since <= found && found.elapsed() < KEPT_FOR
        })
    }

    /// The entries that packets of this tuple belong to, in whatever zone: more than one only where rules set zones.
    pub(super) fn find(&mut self, tuple: &Tuple) -> io::Result<Vec<Entry>> {
        let mut found = Vec::new();
        for zone in std::iter::once(0).chain(zones::known(self.namespace)) {
            found.extend(self.get(tuple, zone)?);
        }
        // Else it is in a zone that was not seen yet, or it is not tracked. Only the whole table tells, and to look
        // through it for each of many connections takes too long.
        if found.is_empty() && zones::due(self.namespace) != Due::No {
            self.scan(|entry| {
                if entry.has(tuple) {
                    found.push(entry.clone());
                }
            })?;
        }
        Ok(found)
    }

    /// Zones other than 0 that packets of a connection may be in, for whom the look through the whole table would take too
    /// long: only the first one waits for it.
    pub(super) fn zones(&mut self) -> io::Result<Vec<u16>> {
        match zones::due(self.namespace) {
            Due::First => self.scan(|_| {})?,
            Due::Again if is_empty() => zones::learnt_nothing(self.namespace),
            Due::Again => {
                zones::begin(self.namespace);
                let look = || {
                    thread::sleep(LOOK_AFTER);
                    with(|channel| channel.scan(|_| {}))
                };
                // It begins in the network namespace of this thread. Without it the zones known so far have to do.
                let _ = thread::Builder::new()
                    .name("conntrack".to_owned())
                    .spawn(look);
            }
            _ => {}
        }
        Ok(zones::known(self.namespace))
    }

    /// The entry that packets of this tuple belong to in this zone.
    pub(super) fn get(&mut self, tuple: &Tuple, zone: u16) -> io::Result<Option<Entry>> {
        let put = |bytes: &mut Vec<u8>| {
            tuple.put(bytes, CTA_TUPLE_ORIG);
            put_zone(bytes, zone);
        };
        let mut found = None;
        let take = |attributes: &[u8]| found = Entry::read(attributes);
        match self.talk(GET, 0, family(tuple), put, take) {
            Ok(()) => Ok(found),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Looks through the whole table, unless this namespace has nothing in it.
    pub(super) fn scan(&mut self, mut see: impl FnMut(&Entry)) -> io::Result<()> {
        let begin = Instant::now();
        let mut zones = BTreeSet::new();
        if is_empty() {
            zones::learnt_nothing(self.namespace);
            return Ok(());
        }
        self.talk(
            GET,
            DUMP,
            libc::AF_UNSPEC as u8,
            |_| {},
            |attributes| {
                zones.extend(entry::zones(attributes));
                if let Some(entry) = Entry::read(attributes) {
                    see(&entry);
                }
            },
        )?;
        zones::learnt(self.namespace, zones, begin.elapsed());
        Ok(())
    }

    /// Makes an entry, or fails with `EEXIST`.
    pub(super) fn create(&mut self, new: &New) -> io::Result<()> {
        let put = |bytes: &mut Vec<u8>| new.put(bytes);
        self.talk(NEW, ACK | CREATE, family(&new.original), put, |_| {})
    }

    /// Makes an entry take any sequence number, and live for some seconds at least.
    pub(super) fn loosen(&mut self, entry: &Entry, zone: u16, seconds: u32) -> io::Result<()> {
        let put = |bytes: &mut Vec<u8>| {
            entry.put_loosened(bytes, seconds);
            put_zone(bytes, zone);
        };
        self.talk(NEW, ACK, family(&entry.original), put, |_| {})
    }

    /// Removes the entry that packets of this tuple belong to, if it is there and has this identifier.
    pub(super) fn delete(&mut self, tuple: &Tuple, zone: u16, id: Option<u32>) -> io::Result<()> {
        let put = |bytes: &mut Vec<u8>| {
            tuple.put(bytes, CTA_TUPLE_ORIG);
            put_zone(bytes, zone);
            if let Some(id) = id {
                wire::put(bytes, CTA_ID, &id.to_be_bytes());
            }
        };
        match self.talk(DELETE, ACK, family(tuple), put, |_| {}) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            other => other,
        }
    }

    /// Sends a request and reads the whole answer.
    fn talk(
        &mut self,
        kind: u16,
        flags: u16,
        family: u8,
        put: impl FnOnce(&mut Vec<u8>),
        take: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        let mut request = Vec::with_capacity(REQUEST_LENGTH);
        let seq = self.put(&mut request, kind, flags, family, put);
        self.socket.send(&request, 0)?;
        self.answer(seq, flags & DUMP != 0, take)
    }

    /// Appends a request; its number.
    fn put(
        &mut self,
        request: &mut Vec<u8>,
        kind: u16,
        flags: u16,
        family: u8,
        put: impl FnOnce(&mut Vec<u8>),
    ) -> u32 {
        let seq = self.next_seq;
        self.next_seq = seq.wrapping_add(1);
        let at = wire::open_message(request, kind, REQUEST | flags, seq, family, 0);
        put(request);
        wire::close_message(request, at);
        seq
    }

    /// Reads the whole answer to a request.
    fn answer(&mut self, seq: u32, is_dump: bool, mut take: impl FnMut(&[u8])) -> io::Result<()> {
        // The kernel has answered all but a dump before `send` returns: nothing is waited for that does not come.
        let flags = if is_dump { 0 } else { libc::MSG_DONTWAIT };
        loop {
            self.reply.clear();
            while let Err(error) = self.socket.recv(&mut self.reply, flags) {
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
            for message in wire::messages(&self.reply).filter(|message| message.seq == seq) {
                match message.kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => return code(message.payload),
                    NEW => {
                        // After `nfgenmsg`.
                        take(message.payload.get(4..).unwrap_or_default());
                        if !is_dump {
                            return Ok(());
                        }
                    }
                    _ => {}
                }
            }
        }
    }
}

/// The content of an acknowledgement, which is an error with the number 0.
fn code(payload: &[u8]) -> io::Result<()> {
    match wire::errno(payload) {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

fn put_zone(bytes: &mut Vec<u8>, zone: u16) {
    if zone != 0 {
        wire::put(bytes, CTA_ZONE, &zone.to_be_bytes());
    }
}

fn family(tuple: &Tuple) -> u8 {
    if tuple.source.is_ipv4() {
        libc::AF_INET as u8
    } else {
        libc::AF_INET6 as u8
    }
}
