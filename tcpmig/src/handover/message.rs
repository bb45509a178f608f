//! The messages of a handover and their bytes.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::Code;

/// Names one handover of one connection; random, chosen by the source.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct HandoverId([u8; 16]);

impl HandoverId {
    /// A new one.
    ///
    /// # Errors
    ///
    /// If the system has no randomness to give.
    #[cfg(feature = "driver")]
    pub fn random() -> std::io::Result<Self> {
        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(std::io::Error::other)?;
        Ok(Self(id))
    }

    /// Its bytes.
    #[must_use]
    pub fn octets(&self) -> [u8; 16] {
        self.0
    }

    /// The one with these bytes.
    #[must_use]
    pub const fn from_octets(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for HandoverId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for HandoverId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HandoverId({self})")
    }
}

/// The newest version of the protocol that this crate speaks.
pub const VERSION: u16 = 1;

/// The oldest.
pub const OLDEST_VERSION: u16 = 1;

/// Maps and lists inside each other, in fields that this version skips.
const MAX_DEPTH: usize = 16;

/// What source and target say to each other.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "m", rename_all = "snake_case", try_from = "super::wire::Wire")]
#[non_exhaustive]
pub enum Message {
    /// First in each exchange. Source: which versions I speak, and what follows is in the newest. Target, and
    /// then it ends the exchange: I speak these, and not that.
    Hello {
        /// The oldest version.
        oldest: u16,
        /// The newest version.
        newest: u16,
    },
    /// Source: take this connection. The image is one of `tcpmig-format`.
    Offer {
        /// The handover.
        id: HandoverId,
        /// The encoded image. It travels in a frame of its own, so that it is not copied.
        #[serde(skip)]
        image: Bytes,
    },
    /// Target: it is built, locked and in repair mode, and waits for COMMIT.
    Prepared {
        /// The handover.
        id: HandoverId,
        /// How long building took, in microseconds.
        rebuild_us: u32,
    },
    /// Target: it was not built, or it has been discarded.
    Refused {
        /// The handover.
        id: HandoverId,
        /// Why, for the source's program.
        code: Code,
        /// Why, for a person to read.
        reason: String,
    },
    /// Source: it is yours. May come again, over another link, with the same packets.
    Commit {
        /// The handover.
        id: HandoverId,
        /// Packets for the connection that arrived at the source while it stood still, from their
        /// IP headers on, in the order of their arrival. A reader leaves out those of less than 20
        /// bytes.
        packets: Vec<Bytes>,
    },
    /// Source: discard it, it stays with me.
    Abort {
        /// The handover.
        id: HandoverId,
    },
    /// Target: it lives here.
    Active {
        /// The handover.
        id: HandoverId,
        /// How long activation took, in microseconds.
        activate_us: u32,
    },
    /// Target: COMMIT came too late, it was discarded and never lived here.
    Aborted {
        /// The handover.
        id: HandoverId,
        /// Why, for the source's program.
        code: Code,
        /// Why, for a person to read.
        reason: String,
    },
    /// Target: it lived here, and ended with the process that had it.
    Lost {
        /// The handover.
        id: HandoverId,
        /// Why, for a person to read.
        reason: String,
    },
    /// Target: it knows nothing of this handover (it was started again since).
    Unknown {
        /// The handover.
        id: HandoverId,
    },
}

/// Why bytes are not a message.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MessageError {
    /// The frame is not a message of this protocol.
    #[error("a frame of {len} bytes is not a handover message: {source}")]
    Malformed {
        /// Its length.
        len: usize,
        /// What the decoder said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Bytes follow the message in its frame.
    #[error("{0} bytes follow a handover message in its frame")]
    Trailing(usize),
}

impl Message {
    /// The versions of this crate.
    #[must_use]
    pub fn hello() -> Self {
        Self::Hello {
            oldest: OLDEST_VERSION,
            newest: VERSION,
        }
    }

    /// COMMIT with nothing that arrived meanwhile.
    #[must_use]
    pub fn commit(id: HandoverId) -> Self {
        Self::Commit {
            id,
            packets: Vec::new(),
        }
    }

    /// The handover that the message is about; `None` of a HELLO.
    #[must_use]
    pub fn id(&self) -> Option<HandoverId> {
        match self {
            Self::Hello { .. } => None,
            Self::Offer { id, .. }
            | Self::Prepared { id, .. }
            | Self::Refused { id, .. }
            | Self::Commit { id, .. }
            | Self::Abort { id }
            | Self::Active { id, .. }
            | Self::Aborted { id, .. }
            | Self::Lost { id, .. }
            | Self::Unknown { id } => Some(*id),
        }
    }

    /// Its name as in the documentation.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Hello { .. } => "HELLO",
            Self::Offer { .. } => "OFFER",
            Self::Prepared { .. } => "PREPARED",
            Self::Refused { .. } => "REFUSED",
            Self::Commit { .. } => "COMMIT",
            Self::Abort { .. } => "ABORT",
            Self::Active { .. } => "ACTIVE",
            Self::Aborted { .. } => "ABORTED",
            Self::Lost { .. } => "LOST",
            Self::Unknown { .. } => "UNKNOWN",
        }
    }

    /// The frames that carry it: two for an OFFER, else one.
    #[must_use]
    pub fn encode(self) -> (Bytes, Option<Bytes>) {
        let bytes = rmp_serde::to_vec_named(&self);
        let image = match self {
            Self::Offer { image, .. } => Some(image),
            _ => None,
        };
        // INVARIANT: integers, strings and bytes always have an encoding, and a `Vec` takes it.
        (bytes.expect("a message can be encoded").into(), image)
    }
}

impl fmt::Debug for Message {
    // Images and packets hold the users' data: lengths only.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct(self.name());
        if let Some(id) = self.id() {
            shown.field("id", &id);
        }
        match self {
            Self::Hello { oldest, newest } => shown.field("versions", &(oldest..=newest)),
            Self::Offer { image, .. } => shown.field("bytes", &image.len()),
            Self::Commit { packets, .. } => shown.field("packets", &packets.len()),
            Self::Prepared { rebuild_us, .. } => shown.field("rebuild_us", rebuild_us),
            Self::Active { activate_us, .. } => shown.field("activate_us", activate_us),
            Self::Refused { code, reason, .. } | Self::Aborted { code, reason, .. } => {
                shown.field("code", code).field("reason", reason)
            }
            Self::Lost { reason, .. } => shown.field("reason", reason),
            Self::Abort { .. } | Self::Unknown { .. } => &mut shown,
        };
        shown.finish()
    }
}

/// Puts frames together to messages.
#[derive(Debug, Default)]
pub struct Decoder {
    offered: Option<HandoverId>,
}

impl Decoder {
    /// Takes the next frame; `None` if the message goes on in the one after it.
    ///
    /// # Errors
    ///
    /// [`MessageError`]; the link cannot be used any longer.
    pub fn frame(&mut self, frame: Bytes) -> Result<Option<Message>, MessageError> {
        if let Some(id) = self.offered.take() {
            return Ok(Some(Message::Offer { id, image: frame }));
        }
        let mut rest = &frame[..];
        let mut deserializer = rmp_serde::Deserializer::new(&mut rest);
        deserializer.set_max_depth(MAX_DEPTH);
        let message =
            Message::deserialize(&mut deserializer).map_err(|error| MessageError::Malformed {
                len: frame.len(),
                source: error.into(),
            })?;
        if !rest.is_empty() {
            return Err(MessageError::Trailing(rest.len()));
        }
        if let Message::Offer { id, .. } = message {
            self.offered = Some(id);
            return Ok(None);
        }
        Ok(Some(message))
    }
}
