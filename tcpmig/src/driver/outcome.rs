//! What becomes of a connection that is given away.

use std::os::fd::OwnedFd;
use std::time::Duration;

use tcpmig_format::{EncodeError, FourTuple, Layer};
use tcpmig_transport::TransportError;

use super::Report;
use super::doubt::InDoubt;
use super::permits::Stopped;
use crate::capture::CaptureError;
use crate::handover::{Fate, HandoverId, MessageError, Refusal, VERSION};
use crate::steer::SteerError;

/// How a handover ended.
#[derive(Debug)]
#[non_exhaustive]
pub struct Outcome {
    /// Its name, which is the same in the logs and journals of both hosts.
    pub id: HandoverId,
    /// The connection, if it got as far as that.
    pub flow: Option<FourTuple>,
    /// Where it is.
    pub ending: Ending,
    /// What it cost.
    pub report: Report,
}

/// Where a connection is after [`Mover::move_out`](super::Mover::move_out).
#[derive(Debug)]
#[must_use]
pub enum Ending {
    /// It lives on the target.
    Moved,
    /// It goes on here.
    Kept {
        /// Its socket.
        socket: OwnedFd,
        /// Its layers, as they were given.
        layers: Vec<Layer>,
        /// Why.
        reason: Reason,
    },
    /// It is gone: it lived on the target and ended with the target's process, which says so.
    Lost(String),
    /// COMMIT was sent and nobody answers for it.
    InDoubt(Box<InDoubt>),
}

impl Ending {
    /// The same as one word.
    #[must_use]
    pub fn fate(&self) -> Fate {
        match self {
            Self::Moved => Fate::Moved,
            Self::Kept { .. } => Fate::Kept,
            Self::Lost(_) => Fate::Lost,
            Self::InDoubt(_) => Fate::InDoubt,
        }
    }
}

/// Why a connection was kept.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// It could not be captured.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// Its packets could not be steered to the target.
    #[error(transparent)]
    Steer(#[from] SteerError),
    /// The link to the target failed before COMMIT.
    #[error("link to the target: {0}")]
    Link(#[from] TransportError),
    /// The target closed the exchange before COMMIT.
    #[error("the target closed the exchange without an answer")]
    Closed,
    /// The target sent something else than the protocol allows.
    #[error("the target does not follow the protocol: {0}")]
    Protocol(#[from] MessageError),
    /// The target sent a message that does not fit.
    #[error("the target does not follow the protocol: {0} was not expected")]
    Unexpected(&'static str),
    /// The image could not be encoded.
    #[error("image: {0}")]
    Encode(#[from] EncodeError),
    /// The target refused the connection.
    #[error("the target refused it: {0}")]
    Refused(Refusal),
    /// The target could not build it, or had given it up when COMMIT came.
    #[error("the target gave it up: {0}")]
    Aborted(Refusal),
    /// PREPARED did not come in time.
    #[error("the target did not prepare it within {0:?}")]
    TooLate(Duration),
    /// The target speaks other versions of the protocol.
    #[error("the target speaks versions {oldest} to {newest} of the protocol, this host {VERSION}")]
    Version {
        /// The oldest that it speaks.
        oldest: u16,
        /// The newest.
        newest: u16,
    },
    /// The move was cancelled before COMMIT, by [`Move::cancel`](super::Move::cancel) or because its runtime ended.
    #[error("the move was cancelled")]
    Cancelled,
    /// It was in doubt, and a person decided that it goes on here ([`InDoubt::settle`]). The target may have it as well.
    #[error("it was in doubt, and it was settled by hand that it goes on here")]
    Settled,
    /// It was part of a batch that was stopped before its turn, by [`Moves::stop`](super::Moves::stop) or because the target did not
    /// answer for another one.
    #[error("the batch was stopped before its turn")]
    Stopped,
    /// The handover could not be noted.
    #[error("journal: {0}")]
    Journal(std::io::Error),
    /// The system had no randomness for an identifier.
    #[error("getrandom: {0}")]
    Random(std::io::Error),
}

impl From<Stopped> for Reason {
    fn from(Stopped: Stopped) -> Self {
        Self::Stopped
    }
}
