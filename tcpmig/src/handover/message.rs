//! The messages of a handover and their bytes.

use std::fmt;

use bytes::Bytes;
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Code;

/// Names one handover of one connection; random, chosen by the source.
// As one number: it is looked up several dozen times for each connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HandoverId(u128);

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
        Ok(Self::from_bytes(id))
    }

    /// Its bytes.
    #[must_use]
    pub const fn bytes(&self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// The one with these bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(u128::from_be_bytes(bytes))
    }
}

/// As bytes, of which there have to be 16.
impl Serialize for HandoverId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.bytes())
    }
}

impl<'de> Deserialize<'de> for HandoverId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Id;

        impl Visitor<'_> for Id {
            type Value = HandoverId;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("16 bytes")
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<HandoverId, E> {
                let id = bytes.try_into().map(HandoverId::from_bytes);
                id.map_err(|_| E::invalid_length(bytes.len(), &self))
            }
        }

        deserializer.deserialize_bytes(Id)
    }
}

impl fmt::Display for HandoverId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for HandoverId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HandoverId({self})")
    }
}

/// The newest version of the protocol that this crate speaks.
pub const VERSION: u16 = 2;

/// The oldest.
pub const OLDEST_VERSION: u16 = 2;

/// Maps and lists inside each other, in fields that this version skips.
const MAX_DEPTH: usize = 16;

/// Bytes of most messages, without an image.
const USUAL_LEN: usize = 96;

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
    /// Source: would you take this connection? It still lives here.
    Offer {
        /// The handover.
        id: HandoverId,
        /// Bytes in its queues.
        queued: u32,
        /// The encoded image of `tcpmig-format`, whose numbers and queues mean nothing yet. It travels in a frame of its own, so
        /// that it is not copied.
        #[serde(skip)]
        draft: Bytes,
    },
    /// Target: I will, and wait for its image.
    Accepted {
        /// The handover.
        id: HandoverId,
        /// For so long, in milliseconds, its packets are locked here whatever becomes of the target's process: they may come
        /// meanwhile. 0 if they are not.
        locked_ms: u32,
    },
    /// Source: it stands still, and this is what the draft lacks.
    Image {
        /// The handover.
        id: HandoverId,
        /// Whether the source waits for PREPARED before it commits.
        waits: bool,
        /// The encoded image. What the draft has of it counts there. It travels in a frame of its own.
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
    /// Target: I will not, and nothing of it is left here.
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
        /// How long building took, in microseconds.
        rebuild_us: u32,
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
            | Self::Accepted { id, .. }
            | Self::Image { id, .. }
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
            Self::Accepted { .. } => "ACCEPTED",
            Self::Image { .. } => "IMAGE",
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

    /// The frames that carry it: two for OFFER and IMAGE, else one.
    #[must_use]
    pub fn encode(self) -> (Bytes, Option<Bytes>) {
        let mut bytes = Vec::with_capacity(USUAL_LEN);
        let encoded = rmp_serde::encode::write_named(&mut bytes, &self);
        let image = match self {
            Self::Offer { draft: image, .. } | Self::Image { image, .. } => Some(image),
            _ => None,
        };
        // INVARIANT: integers, strings and bytes always have an encoding, and a `Vec` takes it.
        encoded.expect("a message can be encoded");
        (bytes.into(), image)
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
            Self::Offer { queued, draft, .. } => {
                shown.field("queued", queued).field("bytes", &draft.len())
            }
            Self::Accepted { locked_ms, .. } => shown.field("locked_ms", locked_ms),
            Self::Image { waits, image, .. } => {
                shown.field("waits", waits).field("bytes", &image.len())
            }
            Self::Commit { packets, .. } => shown.field("packets", &packets.len()),
            Self::Prepared { rebuild_us, .. } => shown.field("rebuild_us", rebuild_us),
            Self::Active {
                rebuild_us,
                activate_us,
                ..
            } => shown
                .field("rebuild_us", rebuild_us)
                .field("activate_us", activate_us),
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
    /// A message whose image comes in the next frame.
    begun: Option<Message>,
}

impl Decoder {
    /// Takes the next frame; `None` if the message goes on in the one after it.
    ///
    /// # Errors
    ///
    /// [`MessageError`]; the link cannot be used any longer.
    pub fn frame(&mut self, frame: Bytes) -> Result<Option<Message>, MessageError> {
        if let Some(mut message) = self.begun.take() {
            if let Message::Offer { draft: image, .. } | Message::Image { image, .. } = &mut message
            {
                *image = frame;
            }
            return Ok(Some(message));
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
        if matches!(message, Message::Offer { .. } | Message::Image { .. }) {
            self.begun = Some(message);
            return Ok(None);
        }
        Ok(Some(message))
    }
}
