//! Messages as they are read.
//!
//! serde's own code for an enum with a tag keeps everything that comes before the tag, and reserves
//! room for what lists only announce: a few bytes make it allocate gigabytes. Here fields are read
//! into one structure, and then taken for the message that they are.

use std::fmt;

use bytes::Bytes;
use serde::de::{Deserialize, Deserializer, SeqAccess, Visitor};

use super::{Code, HandoverId, Message};

/// Bytes of the shortest IP header. Nothing shorter is a packet.
const SHORTEST_PACKET: usize = 20;

/// Packets of a COMMIT that are read: more than 64 MiB of full segments. Each one costs more memory than a short
/// packet has bytes.
const MOST_PACKETS: usize = 1 << 16;

#[derive(serde::Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Hello,
    Offer,
    Accepted,
    Image,
    Prepared,
    Refused,
    Commit,
    Abort,
    Active,
    Aborted,
    Lost,
    Unknown,
}

/// The fields of all messages.
#[derive(serde::Deserialize)]
pub(super) struct Wire {
    m: Kind,
    id: Option<HandoverId>,
    oldest: Option<u16>,
    newest: Option<u16>,
    queued: Option<u32>,
    locked_ms: Option<u32>,
    waits: Option<bool>,
    rebuild_us: Option<u32>,
    activate_us: Option<u32>,
    reason: Option<String>,
    code: Option<String>,
    #[serde(default)]
    packets: Packets,
}

/// A field that the message must have and does not.
#[derive(Debug)]
pub(super) struct Missing(&'static str);

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "missing field `{}`", self.0)
    }
}

impl TryFrom<Wire> for Message {
    type Error = Missing;

    fn try_from(wire: Wire) -> Result<Self, Missing> {
        let id = || wire.id.ok_or(Missing("id"));
        let reason = wire.reason.ok_or(Missing("reason"));
        // A target that does not say it yet has the reason alone.
        let code = wire.code.as_deref().map(Code::of).unwrap_or_default();
        Ok(match wire.m {
            Kind::Hello => Self::Hello {
                oldest: wire.oldest.ok_or(Missing("oldest"))?,
                newest: wire.newest.ok_or(Missing("newest"))?,
            },
            Kind::Offer => Self::Offer {
                id: id()?,
                queued: wire.queued.ok_or(Missing("queued"))?,
                draft: Bytes::new(),
            },
            Kind::Accepted => Self::Accepted {
                id: id()?,
                locked_ms: wire.locked_ms.ok_or(Missing("locked_ms"))?,
            },
            Kind::Image => Self::Image {
                id: id()?,
                waits: wire.waits.ok_or(Missing("waits"))?,
                image: Bytes::new(),
            },
            Kind::Prepared => Self::Prepared {
                id: id()?,
                rebuild_us: wire.rebuild_us.ok_or(Missing("rebuild_us"))?,
            },
            Kind::Refused => Self::Refused {
                id: id()?,
                code,
                reason: reason?,
            },
            Kind::Commit => Self::Commit {
                id: id()?,
                packets: wire.packets.0,
            },
            Kind::Abort => Self::Abort { id: id()? },
            Kind::Active => Self::Active {
                id: id()?,
                rebuild_us: wire.rebuild_us.ok_or(Missing("rebuild_us"))?,
                activate_us: wire.activate_us.ok_or(Missing("activate_us"))?,
            },
            Kind::Aborted => Self::Aborted {
                id: id()?,
                code,
                reason: reason?,
            },
            Kind::Lost => Self::Lost {
                id: id()?,
                reason: reason?,
            },
            Kind::Unknown => Self::Unknown { id: id()? },
        })
    }
}

/// Packets, without those that cannot be any, and not more than a source can have: a list of short ones would take
/// many times its bytes in memory.
#[derive(Default)]
struct Packets(Vec<Bytes>);

impl<'de> Deserialize<'de> for Packets {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List;

        impl<'de> Visitor<'de> for List {
            type Value = Packets;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of packets")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Packets, A::Error> {
                let mut packets = Vec::new();
                while let Some(packet) = seq.next_element::<Bytes>()? {
                    if packet.len() >= SHORTEST_PACKET && packets.len() < MOST_PACKETS {
                        packets.push(packet);
                    }
                }
                Ok(Packets(packets))
            }
        }

        deserializer.deserialize_seq(List)
    }
}
