//! What a source waits for, does, and says at the end.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use super::super::{Decision, Message, Note, Refusal};
#[allow(unused_imports, reason = "the documentation names it")]
use super::SourceSession;

/// How long a source waits for what.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct SourceConfig {
    /// For ACCEPTED, and for PREPARED, before the connection is kept.
    pub prepared_within: Duration,
    /// How many bytes an image may have for which the source does not wait for PREPARED: COMMIT follows it at once.
    pub commit_at_once: usize,
    /// For the answer to COMMIT, before it is sent again.
    pub answer_within: Duration,
    /// How long it asks before the handover is in doubt.
    pub ask_for: Duration,
    /// Between two questions in the beginning; then twice as long each time.
    pub first_pause: Duration,
    /// Between two questions at most.
    pub longest_pause: Duration,
}

impl Default for SourceConfig {
    fn default() -> Self {
        Self {
            prepared_within: Duration::from_secs(3),
            commit_at_once: 64 << 10,
            answer_within: Duration::from_millis(500),
            ask_for: Duration::from_secs(20),
            first_pause: Duration::from_millis(10),
            longest_pause: Duration::from_secs(1),
        }
    }
}

/// What a source has to do. One after the other: each one that has ended allows the next.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SourceAction {
    /// Read what can be read of the connection while it lives. Described, or failed.
    Describe,
    /// Note this in the journal, where a process after this one finds it. Done, or failed.
    Note(Note),
    /// Lock the connection's packets, freeze it and read it. Frozen, or failed: then it goes on here.
    Freeze,
    /// Send this over the exchange that is open. Done, or failed.
    Send(Message),
    /// Steer the connection's packets to the target and make sure that it did not move on since it was read. Confirmed, or failed.
    Confirm,
    /// Silence the packets here, which are steered to a target that may neither have built the connection nor go on. Done.
    Silence,
    /// Open another exchange with the target, in place of the one that was there. Done, or failed.
    Connect,
    /// Finish the exchange and wait until the target has done so too. Done, or failed.
    Finish,
    /// Look whether a person has decided where the connection is. Decided.
    LookUpDecision,
    /// Undo the steering, unlock, thaw, as far as it was steered, locked and frozen. Done.
    Keep,
    /// End the connection here without a packet. What steers its packets stays. Done.
    Discard,
    /// End what steers or silences the packets of a connection that is lost. Done.
    EndRedirect,
    /// Leave it frozen and locked, and tell whoever can help. Done.
    Doubt,
}

/// How an action ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SourceResult<E> {
    /// It is done.
    Done,
    /// What was read while the connection lives.
    Described {
        /// Bytes in its queues.
        queued: u32,
        /// The encoded draft of its image.
        draft: Bytes,
    },
    /// The connection stands still and was read.
    Frozen {
        /// The encoded image, without what the draft has.
        image: Bytes,
    },
    /// The connection is as it was read, and its packets go to the target.
    Confirmed {
        /// Those that arrived here meanwhile.
        packets: Vec<Bytes>,
    },
    /// What a person has decided, if anything.
    Decided(Option<Decision>),
    /// It is not done, for this reason.
    Failed(E),
    /// Nor is it when it is tried again: who answers there is not the target, or refuses this host.
    Hopeless(E),
}

/// Why a handover ended as it did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Why<E> {
    /// It took its course.
    #[default]
    Agreed,
    /// An action or the link failed.
    Failed(E),
    /// The target refused the connection.
    Refused(Refusal),
    /// The target could not build it, or had given it up when COMMIT came.
    Aborted(Refusal),
    /// It lived on the target, and ended there for this reason.
    Lost(String),
    /// The target knows nothing of the handover.
    Unknown,
    /// No answer came within this time.
    TooLate(Duration),
    /// The target speaks other versions of the protocol.
    Version {
        /// The oldest that it speaks.
        oldest: u16,
        /// The newest.
        newest: u16,
    },
    /// The target sent something else than the protocol allows.
    Unexpected(&'static str),
    /// It was [cancelled](SourceSession::cancel).
    Cancelled,
    /// A person [decided](SourceSession::settle).
    Settled,
    /// The process that had the connection ended before the target was given it.
    Orphaned,
}

impl SourceAction {
    /// Whether it is about the exchange with the target, and not about the connection.
    #[must_use]
    pub fn is_about_link(&self) -> bool {
        matches!(self, Self::Send(_) | Self::Connect | Self::Finish)
    }
}

impl<E: fmt::Display> fmt::Display for Why<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agreed => f.write_str("the target has it"),
            Self::Failed(why) => why.fmt(f),
            Self::Refused(refusal) | Self::Aborted(refusal) => refusal.fmt(f),
            Self::Lost(reason) => f.write_str(reason),
            Self::Unknown => f.write_str("the target knows nothing of it"),
            Self::TooLate(within) => write!(f, "the target did not answer within {within:?}"),
            Self::Version { oldest, newest } => {
                write!(
                    f,
                    "the target speaks versions {oldest} to {newest} of the protocol"
                )
            }
            Self::Unexpected(what) => {
                write!(
                    f,
                    "the target does not follow the protocol: {what} was not expected"
                )
            }
            Self::Cancelled => f.write_str("nobody waited for it any longer"),
            Self::Settled => f.write_str("it was settled by hand"),
            Self::Orphaned => f.write_str("its process ended before the target was given it"),
        }
    }
}
