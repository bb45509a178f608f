//! The netlink socket: batches and their answers, and what is read back.

use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use tcpmig_format::FourTuple;

use super::batch::{self, Batch, DESTROY_CALL};
use super::names::{self, Set, Table};
use crate::LockError;
use crate::netlink::{buffers, wire};

const NLMSG_ERROR: u16 = libc::NLMSG_ERROR as u16;
const NLMSG_DONE: u16 = libc::NLMSG_DONE as u16;
/// Flags of an answer: the original message is cut to its header; attributes follow.
const CAPPED: u16 = 0x100;
const ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_OFFSET: u16 = 2;
/// The dump is inconsistent, because something changed while it ran.
const DUMP_INTERRUPTED: u16 = 0x10;
const NFTA_GENERATION_ID: u16 = 1;

/// Large enough for what the kernel puts into one datagram.
const REPLY: usize = 65536;
/// What the kernel keeps of a socket's send buffer for itself.
const SEND_RESERVE: usize = 32;

/// Why a batch was not carried out: its first error.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) call: &'static str,
    pub(super) source: io::Error,
    pub(super) table: Option<Table>,
    pub(super) set: Option<Set>,
    /// The flow that the kernel objected to, if it said which.
    pub(super) flow: Option<FourTuple>,
    /// All flows that the message was about.
    pub(super) flows: Vec<FourTuple>,
}

impl Failure {
    fn new(call: &'static str, source: io::Error) -> Self {
        Self {
            call,
            source,
            table: None,
            set: None,
            flow: None,
            flows: Vec::new(),
        }
    }

    pub(super) fn is(&self, errno: i32) -> bool {
        self.source.raw_os_error() == Some(errno)
    }

    /// Whether an element could not be added because its key is in the set. Kernels say EBUSY where it is there with
    /// another value.
    pub(super) fn already_there(&self) -> bool {
        self.set.is_some() && (self.is(libc::EEXIST) || self.is(libc::EBUSY))
    }

    /// Whether the kernel does not know `DESTROYSETELEM`.
    pub(super) fn lacks_destroy(&self) -> bool {
        self.call == DESTROY_CALL && self.is(libc::EINVAL)
    }

    /// For an error that has no meaning of its own where it happened.
    pub(super) fn into_error(self, table: &str) -> LockError {
        let Self {
            call, source, set, ..
        } = self;
        match source.raw_os_error() {
            Some(libc::EPERM) => LockError::NoPermission { call },
            Some(libc::EOPNOTSUPP | libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT) => {
                LockError::NoNftables { call, source }
            }
            // The kind of table, chain or expression is not there; no message about structure removes anything that
            // has to exist.
            Some(libc::ENOENT) if set.is_none() => LockError::NoNftables { call, source },
            // Only sets of redirected flows are of a limited size.
            Some(libc::ENFILE) => LockError::TooMany {
                limit: names::MAX_REDIRECTS,
            },
            Some(libc::EEXIST | libc::EINVAL | libc::EBUSY) => LockError::ForeignTable {
                table: table.to_owned(),
                call,
                source,
            },
            _ => LockError::Netlink { call, source },
        }
    }
}

pub(super) struct Connection {
    socket: Socket,
    port: u32,
    next_seq: u32,
    reply: Vec<u8>,
    send_buffer: usize,
}

impl Connection {
    /// A connection to `nf_tables` of the calling thread's network namespace.
    pub(super) fn open() -> Result<Self, LockError> {
        let open = || {
            let mut socket = Socket::new(NETLINK_NETFILTER)?;
            let port = socket.bind_auto()?.port_number();
            socket.connect(&SocketAddr::new(0, 0))?;
            socket.set_cap_ack(true)?;
            socket.set_ext_ack(true)?;
            Ok((socket, port))
        };
        let (socket, port) = open().map_err(LockError::no_netfilter)?;
        Ok(Self {
            send_buffer: buffers::send_buffer(&socket),
            socket,
            port,
            next_seq: 1,
            reply: Vec::with_capacity(REPLY),
        })
    }

    /// Makes room for a batch of this length if that is permitted; gives the length that can be sent.
    pub(super) fn room(&mut self, length: usize) -> usize {
        if length + SEND_RESERVE > self.send_buffer {
            self.send_buffer = buffers::raise_send_buffer(&self.socket, length + SEND_RESERVE);
        }
        self.send_buffer.saturating_sub(SEND_RESERVE)
    }

    /// An empty batch; see [`Batch::new`].
    pub(super) fn batch(&self, generation: Option<u32>) -> Batch {
        Batch::new(self.next_seq, generation)
    }

    /// Waits for a transaction of somebody else that the kernel is committing: what it removes is not found from its first moment on,
    /// and others are told of it in its last. A batch with nothing in it waits for the same lock, and changes nothing, not even the
    /// generation.
    pub(super) fn wait_for_others(&mut self) {
        let mut batch = self.batch(None);
        self.next_seq = batch.end_seq().wrapping_add(1);
        // If it cannot be sent, nothing has been waited for, and nothing is worse than before.
        let _ = self.socket.send(batch.close(), 0);
    }

    /// Has a batch carried out. After an error nothing of it was.
    pub(super) fn send(&mut self, mut batch: Batch) -> Result<(), Failure> {
        if batch.is_empty() {
            return Ok(());
        }
        self.room(batch.length());
        self.next_seq = batch.end_seq().wrapping_add(1);
        // In one call: the kernel carries out a batch that it got in pieces not at all.
        self.socket
            .send(batch.finish(), 0)
            .map_err(|error| Failure::new("sendmsg(NETLINK_NETFILTER)", error))?;
        // The kernel has answered all before `send` returns, so nothing is waited for.
        let mut first = None;
        let mut lost = None;
        loop {
            self.reply.clear();
            match self.socket.recv(&mut self.reply, libc::MSG_DONTWAIT) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    // More errors than fit: the first one is there.
                    lost = Some(error);
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let none = || io::Error::other("no answer");
                    return Err(first.unwrap_or_else(|| {
                        Failure::new("recvmsg(NETLINK_NETFILTER)", lost.unwrap_or_else(none))
                    }));
                }
                Err(error) => return Err(Failure::new("recvmsg(NETLINK_NETFILTER)", error)),
            }
            for message in wire::messages(&self.reply) {
                let whole = message.seq == batch.first_seq();
                if message.kind != NLMSG_ERROR || !(whole || batch.part(message.seq).is_some()) {
                    // Left over from a batch before.
                    continue;
                }
                if let Some(failure) = read_answer(&batch, message)
                    && first.is_none()
                {
                    first = Some(failure);
                }
                if whole || message.seq == batch.last_seq() {
                    return first.map_or(Ok(()), Err);
                }
            }
        }
    }

    /// The number of a table, which no other one gets; none if it is not there.
    pub(super) fn table_handle(
        &mut self,
        which: Table,
        table: &str,
    ) -> Result<Option<u64>, LockError> {
        const NFTA_TABLE_HANDLE: u16 = 4;
        let handle = self.of_table(which, table, NFTA_TABLE_HANDLE, |value| {
            value
                .first_chunk()
                .map(|handle| u64::from_be_bytes(*handle))
        })?;
        Ok(handle.flatten())
    }

    /// The flags of the table for locks; none if it is not there.
    pub(super) fn table_flags(&mut self, table: &str) -> Result<Option<u32>, LockError> {
        const NFTA_TABLE_FLAGS: u16 = 2;
        let flags = self.of_table(Table::Inet, table, NFTA_TABLE_FLAGS, |value| {
            value.first_chunk().map(|flags| u32::from_be_bytes(*flags))
        })?;
        Ok(flags.map(Option::unwrap_or_default))
    }

    /// What the kernel says of a table under this attribute; none if the table is not there.
    fn of_table<T>(
        &mut self,
        which: Table,
        table: &str,
        attribute: u16,
        read: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Option<Option<T>>, LockError> {
        const NFTA_TABLE_NAME: u16 = 1;
        let mut value = None;
        let found = self.ask(
            libc::NFT_MSG_GETTABLE as u16,
            libc::NLM_F_ACK as u16,
            which.family(),
            |bytes| wire::put_str(bytes, NFTA_TABLE_NAME, table),
            |payload| {
                let attributes = payload.get(wire::NF_HEADER - wire::HEADER..);
                value = wire::attribute(attributes.unwrap_or_default(), attribute).and_then(&read);
            },
        );
        match found {
            Ok(_) => Ok(Some(value)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(LockError::call("NFT_MSG_GETTABLE")(error)),
        }
    }

    /// The number by which the kernel names this socket in what it tells others of a change.
    pub(super) fn port(&self) -> u32 {
        self.port
    }

    /// The number that every change of the rules in this network namespace moves on.
    pub(super) fn generation(&mut self) -> Result<u32, LockError> {
        let mut id = None;
        self.ask(
            libc::NFT_MSG_GETGEN as u16,
            libc::NLM_F_ACK as u16,
            libc::AF_UNSPEC as u8,
            |_| {},
            |payload| {
                let attributes = payload
                    .get(wire::NF_HEADER - wire::HEADER..)
                    .unwrap_or_default();
                id = wire::attribute(attributes, NFTA_GENERATION_ID)
                    .and_then(|id| id.first_chunk())
                    .map(|id| u32::from_be_bytes(*id));
            },
        )
        .and_then(|_| id.ok_or_else(|| io::ErrorKind::InvalidData.into()))
        .map_err(LockError::call("NFT_MSG_GETGEN"))
    }

    /// Sends a request, and gives the payload of each message of its answer to `take`. False if what was read is
    /// inconsistent.
    pub(super) fn ask(
        &mut self,
        message: u16,
        flags: u16,
        family: u8,
        fill: impl FnOnce(&mut Vec<u8>),
        mut take: impl FnMut(&[u8]),
    ) -> io::Result<bool> {
        self.ask_until(message, flags, family, fill, |payload| {
            take(payload);
            false
        })
    }

    /// Like [`ask`](Self::ask), until `take` has enough.
    pub(super) fn ask_until(
        &mut self,
        message: u16,
        flags: u16,
        family: u8,
        fill: impl FnOnce(&mut Vec<u8>),
        mut take: impl FnMut(&[u8]) -> bool,
    ) -> io::Result<bool> {
        let seq = self.next_seq;
        self.next_seq = seq.wrapping_add(1);
        let mut bytes = Vec::new();
        let at = wire::open_message(
            &mut bytes,
            batch::message_type(message),
            libc::NLM_F_REQUEST as u16 | flags,
            seq,
            family,
            0,
        );
        fill(&mut bytes);
        wire::close_message(&mut bytes, at);
        self.socket.send(&bytes, 0)?;
        let mut consistent = true;
        loop {
            self.reply.clear();
            match self.socket.recv(&mut self.reply, libc::MSG_DONTWAIT) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            for message in wire::messages(&self.reply).filter(|message| message.seq == seq) {
                consistent &= message.flags & DUMP_INTERRUPTED == 0;
                match message.kind {
                    NLMSG_DONE => {
                        // What was given so far is not all if it ends with an error.
                        return match wire::errno(message.payload) {
                            0 => Ok(consistent),
                            libc::EINTR | libc::EAGAIN => Ok(false),
                            errno => Err(io::Error::from_raw_os_error(errno)),
                        };
                    }
                    NLMSG_ERROR => {
                        return match wire::errno(message.payload) {
                            0 => Ok(consistent),
                            errno => Err(io::Error::from_raw_os_error(errno)),
                        };
                    }
                    _ if take(message.payload) => return Ok(consistent),
                    _ => {}
                }
            }
        }
    }
}

/// What an answer to a batch objects to, if it does.
fn read_answer(batch: &Batch, message: wire::Message<'_>) -> Option<Failure> {
    let errno = wire::errno(message.payload);
    if errno == 0 {
        return None;
    }
    let source = io::Error::from_raw_os_error(errno);
    let Some(part) = batch.part(message.seq) else {
        return Some(Failure::new("NFNL_MSG_BATCH_BEGIN", source));
    };
    let offset = (message.flags & (CAPPED | ACK_TLVS) == CAPPED | ACK_TLVS)
        .then(|| {
            wire::attribute(
                message.payload.get(4 + wire::HEADER..)?,
                NLMSGERR_ATTR_OFFSET,
            )
        })
        .flatten()
        .and_then(|offset| offset.first_chunk())
        .and_then(|offset| usize::try_from(u32::from_ne_bytes(*offset)).ok());
    let flow = match part.flows.as_slice() {
        [flow] => Some(*flow),
        _ => offset.and_then(|offset| part.flow_at(offset)),
    };
    Some(Failure {
        call: part.call,
        source,
        table: Some(part.table),
        set: part.set,
        flow,
        flows: part.flows.clone(),
    })
}
