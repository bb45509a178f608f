//! The socket on which the kernel delivers copies of packets: NFLOG.

use std::io;
use std::sync::atomic::{AtomicU16, Ordering};

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};

use crate::LockError;
use crate::netlink::{buffers, wire};

const SUBSYSTEM: u16 = (libc::NFNL_SUBSYS_ULOG as u16) << 8;
const PACKET: u16 = SUBSYSTEM | libc::NFULNL_MSG_PACKET as u16;
const CONFIG: u16 = SUBSYSTEM | libc::NFULNL_MSG_CONFIG as u16;

/// The most of a packet that the kernel copies: an attribute is shorter than 64 KiB.
const COPY_RANGE: u32 = 0xffff - 4;
/// Large enough for a copy with all that the kernel says about it.
const DATAGRAM: usize = 128 << 10;

/// Groups that are tried are from this one on; the numbers below are what people choose by hand.
const FIRST_GROUP: u16 = 0x4000;
/// How many groups are tried. Others are taken by as many handles of whatever process.
const TRIES: u16 = 1024;

const BIND: &str = "NFULNL_CFG_CMD_BIND";

/// A socket in the network namespace of the thread that opened it.
pub(super) struct Log {
    socket: Socket,
    reply: Vec<u8>,
    /// The group whose packets are read.
    group: Option<u16>,
    /// What the kernel grants of a receive buffer for them, in bytes.
    buffer: usize,
    /// The number that the next packet has.
    next: Option<u32>,
}

impl Log {
    pub(super) fn open() -> Result<Self, LockError> {
        let open = || {
            let mut socket = Socket::new(NETLINK_NETFILTER)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            socket.set_cap_ack(true)?;
            Ok(socket)
        };
        Ok(Self {
            socket: open().map_err(LockError::no_netfilter)?,
            reply: Vec::new(),
            group: None,
            buffer: 0,
            next: None,
        })
    }

    /// Makes room for packets of so many bytes, as far as that is permitted, and binds a group that nobody has: the
    /// one that is read from now on.
    pub(super) fn bind_free(&mut self, buffer: usize) -> Result<u16, LockError> {
        // Processes begin at different places, and so do the handles of each.
        static USED: AtomicU16 = AtomicU16::new(0);
        const GROUPS: u16 = u16::MAX - FIRST_GROUP;
        self.buffer = buffers::raise_receive_buffer(&self.socket, buffer);
        let begin = (std::process::id() % u32::from(GROUPS)) as u16;
        let mut refused = None;
        for _ in 0..TRIES {
            let offset = begin.wrapping_add(USED.fetch_add(1, Ordering::Relaxed)) % GROUPS;
            let group = FIRST_GROUP + offset;
            match self.bind(group) {
                Ok(()) => {
                    self.group = Some(group);
                    return Ok(group);
                }
                Err(error) if is_refused(&error) => refused = Some(error),
                Err(source) if source.raw_os_error() == Some(libc::EINVAL) => {
                    return Err(LockError::NoNftables { call: BIND, source });
                }
                Err(error) => return Err(LockError::call(BIND)(error)),
            }
        }
        let refused = refused.unwrap_or_else(|| io::ErrorKind::AddrInUse.into());
        Err(LockError::call(BIND)(refused))
    }

    /// Binds a group: from now on the kernel copies whole packets that are logged to it here, each at once.
    fn bind(&mut self, group: u16) -> io::Result<()> {
        self.ask(group, |bytes| {
            let flags = libc::NFULNL_CFG_F_SEQ as u16;
            let mut mode = COPY_RANGE.to_be_bytes().to_vec();
            mode.extend_from_slice(&[libc::NFULNL_COPY_PACKET as u8, 0]);
            put_command(bytes, libc::NFULNL_CFG_CMD_BIND);
            wire::put(bytes, libc::NFULA_CFG_MODE as u16, &mode);
            wire::put(bytes, libc::NFULA_CFG_QTHRESH as u16, &1u32.to_be_bytes());
            wire::put(bytes, libc::NFULA_CFG_FLAGS as u16, &flags.to_be_bytes());
        })
    }

    /// Binds a group if nobody has it, and says so: until [`unbind`](Self::unbind) nobody else can.
    pub(super) fn bind_if_free(&mut self, group: u16) -> Result<bool, LockError> {
        match self.bind(group) {
            Ok(()) => Ok(true),
            Err(error) if is_refused(&error) => Ok(false),
            Err(error) => Err(LockError::call(BIND)(error)),
        }
    }

    pub(super) fn unbind(&mut self, group: u16) -> Result<(), LockError> {
        self.ask(group, |bytes| {
            put_command(bytes, libc::NFULNL_CFG_CMD_UNBIND);
        })
        .map_err(LockError::call("NFULNL_CFG_CMD_UNBIND"))
    }

    fn ask(&mut self, group: u16, fill: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(64);
        let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
        let at = wire::open_message(&mut bytes, CONFIG, flags, u32::from(group), 0, group);
        fill(&mut bytes);
        wire::close_message(&mut bytes, at);
        self.socket.send(&bytes, 0)?;
        self.reply.reserve(DATAGRAM);
        loop {
            self.reply.clear();
            // The kernel has answered before `send` returns.
            self.socket.recv(&mut self.reply, libc::MSG_DONTWAIT)?;
            for message in wire::messages(&self.reply) {
                // Packets may come in between, also those that are logged to a group that a dead process had.
                if message.kind == libc::NLMSG_ERROR as u16 && message.seq == u32::from(group) {
                    return match wire::errno(message.payload) {
                        0 => Ok(()),
                        errno => Err(io::Error::from_raw_os_error(errno)),
                    };
                }
            }
        }
    }

    /// Reads all packets that are there, and says whether some were lost since the last time.
    pub(super) fn read(&mut self, mut take: impl FnMut(&[u8])) -> Result<bool, LockError> {
        let mut lost = false;
        let mut read = 0;
        // More than the buffer holds has arrived after the call.
        while read <= self.buffer {
            self.reply.clear();
            match self.socket.recv(&mut self.reply, libc::MSG_DONTWAIT) {
                Ok(length) => read += length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    lost = true;
                    continue;
                }
                Err(error) => return Err(LockError::call("recvmsg(NETLINK_NETFILTER)")(error)),
            }
            for message in wire::messages(&self.reply) {
                // Of `nfgenmsg`, the two last bytes are the group.
                let Some((&[_, _, high, low], attributes)) = message.payload.split_first_chunk()
                else {
                    continue;
                };
                let group = u16::from_be_bytes([high, low]);
                if message.kind != PACKET || self.group != Some(group) {
                    continue;
                }
                let number = wire::attribute(attributes, libc::NFULA_SEQ as u16)
                    .and_then(|number| number.first_chunk())
                    .map(|number| u32::from_be_bytes(*number));
                lost |= self.next.is_some() && self.next != number;
                self.next = number.map(|number| number.wrapping_add(1));
                if let Some(packet) = wire::attribute(attributes, libc::NFULA_PAYLOAD as u16) {
                    take(packet);
                }
            }
        }
        Ok(lost)
    }
}

fn put_command(bytes: &mut Vec<u8>, command: libc::c_int) {
    wire::put(bytes, libc::NFULA_CFG_CMD as u16, &[command as u8]);
}

/// Whether somebody has the group. EPERM is said of a group that another socket has, and also to who may bind none.
fn is_refused(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPERM | libc::EBUSY))
}
