//! How a connection leaves, and what arrives.

use std::any::Any;
use std::error::Error;
use std::fmt;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;

use tcpmig_format::{FourTuple, Layer, SecretBytes};

/// A connection at a safe point, taken apart. Whoever has the parts owns the connection; dropping them closes it.
#[derive(Debug)]
pub struct Parts {
    /// Its socket.
    pub socket: OwnedFd,
    /// What runs on it, from the bottom up.
    pub layers: Vec<Layer>,
}

/// A connection that came from another process or host.
#[derive(Debug)]
#[non_exhaustive]
pub struct Arrival {
    /// Its socket.
    pub socket: OwnedFd,
    /// Its addresses and ports.
    pub flow: FourTuple,
    /// What goes to the peer before anything else: bytes that were under way and that the socket did not take.
    pub unwritten: SecretBytes,
    /// What runs on it, from the bottom up.
    pub layers: Vec<Layer>,
    /// What the session's server made ready before the connection came, if it was asked.
    pub ready: Option<Box<dyn Any + Send>>,
    /// It has come, and nobody serves it yet.
    pub(crate) _waits: Option<Arc<()>>,
}

impl Arrival {
    /// A connection whose socket has taken all that it was given.
    #[must_use]
    pub fn new(parts: Parts, flow: FourTuple) -> Self {
        Self {
            socket: parts.socket,
            flow,
            unwritten: SecretBytes::new(),
            layers: parts.layers,
            ready: None,
            _waits: None,
        }
    }
}

/// How connections leave this process: to another host, to an agent, to the next version of the same server.
///
/// It never makes two owners: a connection that it gives back lives nowhere else.
pub trait Way: Clone + Send + Sync + 'static {
    /// Where connections go.
    type Destination: Clone + Send + Sync + 'static;
    /// What is known of a move that is done.
    type Report: Send + 'static;
    /// Why a connection was kept.
    type Cause: Error + Send + Sync + 'static;

    /// Gives a connection away, of which nobody here uses anything any longer.
    ///
    /// What becomes of it if the future is dropped is for the way to say.
    fn depart(
        &self,
        parts: Parts,
        to: &Self::Destination,
    ) -> impl Future<Output = Departed<Self::Report, Self::Cause>> + Send;
}

/// Where a connection is after [`Way::depart`].
#[must_use = "it has the connection if that is kept"]
pub enum Departed<R, E> {
    /// It lives at its destination.
    Moved(R),
    /// It goes on here.
    Kept {
        /// The connection, as it was given.
        parts: Parts,
        /// Why.
        cause: E,
    },
    /// It is gone, for this reason: it lived at its destination and ended there.
    Lost(String),
    /// It lives at its destination or nowhere, and nobody answers for it.
    InDoubt(Doubt<R, E>),
}

/// Asks again who has a connection; it is ready when somebody answers, or when it is worth deciding whether to go on asking.
pub type Doubt<R, E> = Pin<Box<dyn Future<Output = Departed<R, E>> + Send>>;

impl<R: fmt::Debug, E: fmt::Debug> fmt::Debug for Departed<R, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Moved(report) => f.debug_tuple("Moved").field(report).finish(),
            Self::Kept { parts, cause } => f
                .debug_struct("Kept")
                .field("parts", parts)
                .field("cause", cause)
                .finish(),
            Self::Lost(reason) => f.debug_tuple("Lost").field(reason).finish(),
            Self::InDoubt(_) => f.debug_struct("InDoubt").finish_non_exhaustive(),
        }
    }
}
