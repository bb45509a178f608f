//! The netlink socket for links, addresses and routes.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use crate::LockError;

/// Large enough for the attributes of one link or route, and for what a dump puts into one datagram.
const REPLY: usize = 65536;
/// How often a dump is begun again because something changed meanwhile.
const DUMP_TRIES: usize = 8;
/// `NLM_F_DUMP_INTR`: what the dump has so far is not of one moment.
const INTERRUPTED: u16 = 0x10;

/// A connection to the network namespace of the thread that made it, whatever thread uses it.
pub(crate) struct Rtnl {
    channel: Mutex<Channel>,
}

struct Channel {
    socket: Socket,
    /// Kept: making it anew each time costs more than a look-up.
    reply: Vec<u8>,
}

impl Rtnl {
    /// A connection to the network namespace of the calling thread.
    pub(crate) fn open() -> Result<Self, LockError> {
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok(socket)
        };
        let socket = open().map_err(LockError::call("socket(NETLINK_ROUTE)"))?;
        Ok(Self {
            channel: Mutex::new(Channel {
                socket,
                reply: Vec::with_capacity(REPLY),
            }),
        })
    }

    /// Something else with the socket than netlink.
    pub(crate) fn with_socket<T>(&self, with: impl FnOnce(BorrowedFd<'_>) -> T) -> T {
        with(self.channel().socket.as_fd())
    }

    fn channel(&self) -> MutexGuard<'_, Channel> {
        // A poisoned lock is harmless: what a panic leaves unread is at most the rest of a dump, which the next answer
        // begins after.
        self.channel.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for one thing.
    pub(crate) fn ask(&self, request: RouteNetlinkMessage) -> io::Result<RouteNetlinkMessage> {
        let mut found = None;
        self.talk(request, 0, |message| {
            found = Some(message);
        })?;
        found.ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Has something changed.
    pub(crate) fn change(&self, request: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.talk(request, NLM_F_ACK | flags, |_| {}).map(drop)
    }

    /// Asks for all that there is of a kind.
    pub(crate) fn dump(
        &self,
        request: &RouteNetlinkMessage,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        for _ in 0..DUMP_TRIES {
            let mut found = Vec::new();
            if self.talk(request.clone(), NLM_F_DUMP, |message| found.push(message))? {
                return Ok(found);
            }
        }
        Err(io::ErrorKind::Interrupted.into())
    }

    /// Sends a request and reads the whole answer; false if that is not of one moment.
    fn talk(
        &self,
        request: RouteNetlinkMessage,
        flags: u16,
        mut take: impl FnMut(RouteNetlinkMessage),
    ) -> io::Result<bool> {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        let bytes = encode(header, request);
        let Channel { socket, reply } = &mut *self.channel();
        socket.send(&bytes, 0)?;
        let mut whole = true;
        loop {
            reply.clear();
            while let Err(error) = socket.recv(reply, 0) {
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
            let mut rest = reply.as_slice();
            while !rest.is_empty() {
                let message = decode(rest)?;
                let length = message.header.length as usize;
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
                whole &= message.header.flags & INTERRUPTED == 0;
                match message.payload {
                    NetlinkPayload::InnerMessage(message) => {
                        take(message);
                        if flags & (NLM_F_DUMP | NLM_F_ACK) == 0 {
                            return Ok(whole);
                        }
                    }
                    NetlinkPayload::Error(error) if error.code.is_some() => {
                        return Err(error.to_io());
                    }
                    NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => return Ok(whole),
                    _ => {}
                }
            }
        }
    }
}

/// The bytes of a message.
pub(crate) fn encode(header: NetlinkHeader, message: RouteNetlinkMessage) -> Vec<u8> {
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// The first message in these bytes.
pub(crate) fn decode(bytes: &[u8]) -> io::Result<NetlinkMessage<RouteNetlinkMessage>> {
    NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))
}
