//! What a session reads and writes.

use std::convert::Infallible;
use std::future::{Future, ready};
use std::io;

use tcpmig_format::{LayerReader, SecretBytes};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::Parts;
use crate::handover::Refusal;

/// What a session reads and writes: a TCP connection, or a protocol over one.
///
/// A session that stands at a safe point gives its carrier back, which is then taken apart. Whatever the carrier holds at
/// that moment is in its own layer: what it has read and not given out, what it has taken and not written, cut where it
/// happens to be. So it can be taken apart at any moment after it has begun, and waits for nobody.
pub trait Carrier: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// What is known of it that its session may want to know; [`Infallible`](std::convert::Infallible) if there is nothing.
    type Facts: Clone + Send + Sync + 'static;

    /// The TCP connection under it, for its addresses and options. To read or write it damages the session.
    fn tcp(&self) -> &TcpStream;

    /// What is known of it; an HTTP session puts it into the extensions of each request.
    fn facts(&self) -> Option<Self::Facts>;

    /// Whether it can be taken apart now. A session asks before it does so, and goes on here if not.
    ///
    /// # Errors
    ///
    /// Why not; nothing has changed.
    fn check(&self) -> io::Result<()> {
        Ok(())
    }

    /// Takes it apart: its socket, and its layers from the bottom up; a plain TCP connection has none. The session puts its own on
    /// top.
    ///
    /// The layers are the only owner of what was in the carrier: they are rebuilt at one place, whether that
    /// is here or elsewhere ([`Carriers::rebuild`]).
    ///
    /// # Errors
    ///
    /// Whatever the socket or the protocol says; the connection is closed then.
    fn into_parts(self) -> io::Result<Parts>;
}

/// What is known of the carriers that `K` makes.
pub type FactsOf<K> = <<K as Carriers>::Carrier as Carrier>::Facts;

/// How the connections of a server get their carriers: what is accepted begins one, what moved or was kept has one already.
pub trait Carriers: Send + Sync + 'static {
    /// What they are.
    type Carrier: Carrier;

    /// The carrier of a connection that was accepted, after its handshake if it has one.
    ///
    /// # Errors
    ///
    /// The handshake's; the connection is closed.
    fn accept(&self, stream: TcpStream) -> impl Future<Output = io::Result<Self::Carrier>> + Send;

    /// Whether a carrier can be rebuilt from the lowest layers, which this consumes, and the [facts](Carrier::facts) that it will
    /// have. It is asked before the connection leaves its source, and must not wait.
    ///
    /// # Errors
    ///
    /// Why not, for the source.
    fn check(&self, layers: &mut LayerReader<'_>) -> Result<Option<FactsOf<Self>>, Refusal>;

    /// The carrier of a connection that moved here or was kept, from the layers that [`Carrier::into_parts`] gave, which this
    /// consumes. `unwritten` is what TCP did not take: it goes to the peer before all else.
    ///
    /// # Errors
    ///
    /// Why it cannot go on here; the connection is closed. [`Carriers::check`] prevents that.
    fn rebuild(
        &self,
        stream: TcpStream,
        unwritten: SecretBytes,
        layers: &mut LayerReader<'_>,
    ) -> Result<Rebuilt<Self::Carrier>, Refusal>;
}

/// A carrier that goes on.
#[derive(Debug)]
pub struct Rebuilt<C> {
    /// The carrier.
    pub carrier: C,
    /// What is to be written to it before anything else: a carrier that has nowhere to keep such bytes leaves
    /// them to the session.
    pub unwritten: SecretBytes,
}

impl Carrier for TcpStream {
    type Facts = Infallible;

    fn tcp(&self) -> &TcpStream {
        self
    }

    fn facts(&self) -> Option<Infallible> {
        None
    }

    fn into_parts(self) -> io::Result<Parts> {
        Ok(Parts {
            socket: self.into_std()?.into(),
            layers: Vec::new(),
        })
    }
}

/// Connections that run over TCP and nothing else.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tcp;

impl Carriers for Tcp {
    type Carrier = TcpStream;

    fn accept(&self, stream: TcpStream) -> impl Future<Output = io::Result<TcpStream>> + Send {
        ready(Ok(stream))
    }

    fn check(&self, _: &mut LayerReader<'_>) -> Result<Option<Infallible>, Refusal> {
        Ok(None)
    }

    fn rebuild(
        &self,
        stream: TcpStream,
        unwritten: SecretBytes,
        _: &mut LayerReader<'_>,
    ) -> Result<Rebuilt<TcpStream>, Refusal> {
        Ok(Rebuilt {
            carrier: stream,
            unwritten,
        })
    }
}
