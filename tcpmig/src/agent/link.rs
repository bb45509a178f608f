//! One end of the agent's socket.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tcpmig_format::SecretBytes;
use tcpmig_sys::process::{packets, passing};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep};

use super::wire::{Assembler, Budget, MAX_PACKET, Message, WireError};

/// How long to wait when too many descriptors are on their way, or too many connections wait to be accepted.
const FULL: Duration = Duration::from_millis(5);

/// Why a link is of no use any longer.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    #[error(transparent)]
    Socket(#[from] tcpmig_sys::Error),
    #[error("register the socket: {0}")]
    Register(io::Error),
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("a packet that is too long, or with more than one descriptor")]
    Cut,
    #[error("the socket is closed")]
    Closed,
}

/// A non-blocking Unix socket of any kind, of which tokio says when it is ready: it asks for no more than that of its own type.
#[derive(Debug)]
pub(super) struct Ready(UnixStream);

impl Ready {
    pub(super) fn new(socket: OwnedFd) -> Result<Self, LinkError> {
        let registered = UnixStream::from_std(socket.into());
        registered.map(Self).map_err(LinkError::Register)
    }

    /// Does this call as soon as it does not have to wait. Cancel-safe.
    pub(super) async fn when<T>(
        &self,
        interest: Interest,
        call: impl Fn(&UnixStream) -> tcpmig_sys::Result<T>,
    ) -> Result<T, LinkError> {
        loop {
            self.0.ready(interest).await.map_err(LinkError::Register)?;
            let done = self.0.try_io(interest, || match call(&self.0) {
                Err(error) if packets::would_block(&error) => Err(io::ErrorKind::WouldBlock.into()),
                done => Ok(done),
            });
            match done {
                Ok(done) => return Ok(done?),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(LinkError::Register(error)),
            }
        }
    }
}

/// A connected socket. Both directions can be used at the same time, each by one task.
#[derive(Debug)]
pub(super) struct Link(Ready);

impl Link {
    /// Of a socket that is non-blocking.
    pub(super) fn new(socket: OwnedFd) -> Result<Self, LinkError> {
        Ready::new(socket).map(Self)
    }

    /// Connects, and waits if the agent has no time to accept.
    pub(super) async fn connect(path: &Path, within: Duration) -> Result<Self, LinkError> {
        let deadline = Instant::now() + within;
        loop {
            match packets::connect_to(path, MAX_PACKET) {
                Ok(socket) => return Self::new(socket),
                Err(error) if packets::would_block(&error) && Instant::now() < deadline => {
                    sleep(FULL).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The user and the process at the other end.
    #[cfg(feature = "agent")]
    pub(super) fn peer(&self) -> Result<(u32, u32), LinkError> {
        Ok(passing::peer(&self.0.0)?)
    }

    /// Sends these packets, the descriptor with the last; waits while the other end does not read.
    pub(super) async fn send(
        &self,
        bytes: &[SecretBytes],
        descriptor: Option<&OwnedFd>,
    ) -> Result<(), LinkError> {
        for (at, packet) in bytes.iter().enumerate() {
            let with = descriptor.filter(|_| at + 1 == bytes.len());
            let send = |socket: &UnixStream| packets::send(socket, packet, with.map(AsFd::as_fd));
            loop {
                match self.0.when(Interest::WRITABLE, send).await {
                    Ok(()) => break,
                    // The other end takes some, and there is room again.
                    Err(LinkError::Socket(error)) if passing::are_too_many(&error) => {
                        sleep(FULL).await;
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Ends both directions.
    #[cfg(feature = "agent")]
    pub(super) fn shut_down(&self) {
        // One that is closed already is as good.
        let _ = packets::shut_down(&self.0.0);
    }
}

/// What comes by a link, message by message.
pub(super) struct Incoming {
    assembler: Assembler,
    // Secrets go through it.
    buffer: SecretBytes,
}

impl Incoming {
    pub(super) fn new() -> Self {
        Self::within(Arc::default())
    }

    /// Several links have this budget for pieces together.
    pub(super) fn within(budget: Arc<Budget>) -> Self {
        Self {
            assembler: Assembler::within(budget),
            buffer: SecretBytes::new(),
        }
    }

    /// The next message and its descriptor. Cancel-safe.
    pub(super) async fn next<M: Message>(
        &mut self,
        link: &Link,
    ) -> Result<(M, Option<OwnedFd>), LinkError> {
        loop {
            let (packet, descriptor) = self.packet(link).await?;
            if packet == 0 {
                return Err(LinkError::Closed);
            }
            if let Some(message) = self.assembler.packet(&self.buffer[..packet])? {
                return Ok((message, descriptor));
            }
        }
    }

    async fn packet(&mut self, link: &Link) -> Result<(usize, Option<OwnedFd>), LinkError> {
        let receive = |socket: &UnixStream| {
            let mut bytes = vec![0; MAX_PACKET];
            let received = packets::receive(socket, &mut bytes)?;
            Ok((received, bytes))
        };
        let (received, bytes) = link.0.when(Interest::READABLE, receive).await?;
        // What it had is wiped.
        self.buffer = bytes.into();
        if received.is_cut {
            return Err(LinkError::Cut);
        }
        Ok((received.len, received.descriptor))
    }
}
