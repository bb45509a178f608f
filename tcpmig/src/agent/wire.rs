//! The messages of the agent's socket, as AGENT.md has them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tcpmig_format::{FourTuple, Layer, MAX_LAYERS, SecretBytes};

/// The versions of this protocol that are spoken here.
pub(super) const VERSION: u16 = 1;
/// The most bytes of a packet.
pub(super) const MAX_PACKET: usize = 64 << 10;
/// The most bytes of layers, or of what was not written, in one packet: the rest of it is the message's fields.
const PIECE: usize = 48 << 10;
/// How many bytes the other fields of a message mostly have.
const FIELDS: usize = 1 << 10;
/// The most bytes that a side has sent in pieces and not completed.
const MAX_PIECES: usize = 64 << 20;
/// The most messages of which a side has sent pieces and not the rest.
const MAX_UNFINISHED: usize = 256;
/// How deep a message can be.
const MAX_DEPTH: usize = 16;

/// What a client says.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ToAgent {
    Hello {
        oldest: u16,
        newest: u16,
    },
    Register {
        id: u64,
        service: String,
        #[serde(with = "texts")]
        addresses: Vec<SocketAddr>,
        #[serde(default)]
        sessions: Option<Vec<Kind>>,
        takes: bool,
    },
    Give {
        id: u64,
        service: String,
        to: String,
        #[serde(with = "bin")]
        layers: SecretBytes,
    },
    Cancel {
        id: u64,
    },
    Recover {
        id: u64,
        service: String,
        #[serde(with = "text")]
        flow: FourTuple,
    },
    Take {
        id: u64,
    },
    Refuse {
        id: u64,
        code: String,
        reason: String,
    },
    Drained {
        id: u64,
        left: u64,
    },
    Status {
        id: u64,
    },
    Drain {
        id: u64,
        #[serde(default)]
        service: Option<String>,
        to: Vec<String>,
    },
    Move {
        id: u64,
        #[serde(with = "text")]
        flow: FourTuple,
        to: String,
    },
    Piece {
        id: u64,
        #[serde(with = "bin")]
        octets: SecretBytes,
    },
}

/// What an agent says.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ToClient {
    Welcome {
        version: u16,
        host: String,
        gives: u32,
    },
    Done {
        id: u64,
    },
    Failed {
        id: u64,
        code: String,
        reason: String,
    },
    Moved {
        id: u64,
        handover: String,
        report: BTreeMap<String, u64>,
    },
    Kept {
        id: u64,
        code: String,
        reason: String,
    },
    Lost {
        id: u64,
        reason: String,
    },
    Doubt {
        id: u64,
        #[serde(default)]
        handover: Option<String>,
    },
    Gone {
        id: u64,
        reason: String,
    },
    Offer {
        id: u64,
        service: String,
        #[serde(with = "text")]
        flow: FourTuple,
        from: String,
        #[serde(with = "bin")]
        layers: SecretBytes,
    },
    Withdrawn {
        id: u64,
    },
    Arrived {
        id: u64,
        #[serde(with = "bin")]
        unwritten: SecretBytes,
    },
    Drain {
        id: u64,
        service: String,
        to: Vec<String>,
    },
    Want {
        service: String,
        #[serde(with = "text")]
        flow: FourTuple,
        to: String,
    },
    Progress {
        id: u64,
        moved: u64,
        kept: u64,
        left: u64,
    },
    Status {
        id: u64,
        status: super::Status,
    },
    Piece {
        id: u64,
        #[serde(with = "bin")]
        octets: SecretBytes,
    },
}

/// A kind of session and its versions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Kind {
    pub(super) kind: String,
    pub(super) oldest: u32,
    pub(super) newest: u32,
}

/// Why what came is not a message.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    #[error("a packet that is not a message: {0}")]
    Malformed(String),
    #[error("bytes follow a message in its packet")]
    Trailing,
    #[error("more than {MAX_PIECES} bytes in pieces, or of more than {MAX_UNFINISHED} messages")]
    TooMuch,
    #[error("layers that cannot be read: {0}")]
    Layers(String),
}

/// Encodes something of about so many bytes. In one piece: memory that grows leaves secrets behind where it was.
fn encoded<T: Serialize>(value: &T, about: usize) -> SecretBytes {
    let mut bytes = Vec::with_capacity(about);
    let mut serializer = rmp_serde::Serializer::new(&mut bytes).with_struct_map();
    // INVARIANT: numbers, strings, bytes and lists of them always have an encoding, and a `Vec` takes it.
    value
        .serialize(&mut serializer)
        .expect("a message can be encoded");
    bytes.into()
}

fn decoded<T: DeserializeOwned>(mut bytes: &[u8]) -> Result<T, WireError> {
    let mut deserializer = rmp_serde::Deserializer::new(&mut bytes);
    deserializer.set_max_depth(MAX_DEPTH);
    let value = T::deserialize(&mut deserializer);
    let value = value.map_err(|error| WireError::Malformed(error.to_string()))?;
    if bytes.is_empty() {
        Ok(value)
    } else {
        Err(WireError::Trailing)
    }
}

/// A message of either side, which may have pieces before it.
pub(super) trait Message: Serialize + DeserializeOwned {
    fn piece(id: u64, octets: SecretBytes) -> Self;

    /// The part of the message that may be too long for a packet, and the message's number.
    fn long(&mut self) -> Option<(u64, &mut SecretBytes)>;

    /// Whether it is a piece of what comes later.
    fn as_piece(&self) -> Option<(u64, &SecretBytes)>;
}

impl Message for ToAgent {
    fn piece(id: u64, octets: SecretBytes) -> Self {
        Self::Piece { id, octets }
    }

    fn long(&mut self) -> Option<(u64, &mut SecretBytes)> {
        match self {
            Self::Give { id, layers, .. } => Some((*id, layers)),
            _ => None,
        }
    }

    fn as_piece(&self) -> Option<(u64, &SecretBytes)> {
        match self {
            Self::Piece { id, octets } => Some((*id, octets)),
            _ => None,
        }
    }
}

impl Message for ToClient {
    fn piece(id: u64, octets: SecretBytes) -> Self {
        Self::Piece { id, octets }
    }

    fn long(&mut self) -> Option<(u64, &mut SecretBytes)> {
        match self {
            Self::Offer { id, layers, .. } => Some((*id, layers)),
            Self::Arrived { id, unwritten } => Some((*id, unwritten)),
            _ => None,
        }
    }

    fn as_piece(&self) -> Option<(u64, &SecretBytes)> {
        match self {
            Self::Piece { id, octets } => Some((*id, octets)),
            _ => None,
        }
    }
}

/// The packets of a message, in order.
pub(super) fn packets<M: Message>(mut message: M) -> Vec<SecretBytes> {
    let mut packets = Vec::new();
    if let Some((id, long)) = message.long() {
        while long.len() > PIECE {
            let piece = M::piece(id, long.split_to(PIECE));
            packets.push(encoded(&piece, PIECE + FIELDS));
        }
    }
    let rest = message.long().map_or(0, |(_, rest)| rest.len());
    packets.push(encoded(&message, rest + FIELDS));
    packets
}

/// How many bytes in pieces several links may have together.
#[derive(Debug)]
pub(super) struct Budget {
    used: AtomicUsize,
    most: usize,
}

impl Budget {
    pub(super) fn new(most: usize) -> Self {
        let used = AtomicUsize::new(0);
        Self { used, most }
    }
}

impl Default for Budget {
    /// As much as one link may have.
    fn default() -> Self {
        Self::new(MAX_PIECES)
    }
}

/// Puts packets together to messages.
#[derive(Debug, Default)]
pub(super) struct Assembler {
    pieces: BTreeMap<u64, SecretBytes>,
    bytes: usize,
    budget: Arc<Budget>,
}

impl Drop for Assembler {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Assembler {
    /// One of several that have a budget together.
    pub(super) fn within(budget: Arc<Budget>) -> Self {
        Self {
            pieces: BTreeMap::new(),
            bytes: 0,
            budget,
        }
    }

    /// Takes the next packet; `None` if the message goes on in those after it.
    pub(super) fn packet<M: Message>(&mut self, packet: &[u8]) -> Result<Option<M>, WireError> {
        let mut message: M = decoded(packet)?;
        if let Some((id, octets)) = message.as_piece() {
            self.bytes += octets.len();
            let used = self.budget.used.fetch_add(octets.len(), Ordering::Relaxed);
            if used + octets.len() > self.budget.most {
                return Err(WireError::TooMuch);
            }
            let whole = self.pieces.entry(id).or_default();
            whole.extend_from_slice(octets);
            // Short pieces of many messages would take many times their bytes.
            if self.bytes > MAX_PIECES || self.pieces.len() > MAX_UNFINISHED {
                return Err(WireError::TooMuch);
            }
            return Ok(None);
        }
        if let Some((id, rest)) = message.long()
            && let Some(mut whole) = self.pieces.remove(&id)
        {
            self.bytes -= whole.len();
            self.budget.used.fetch_sub(whole.len(), Ordering::Relaxed);
            whole.extend_from_slice(rest);
            *rest = whole;
        }
        Ok(Some(message))
    }
}

/// A layer as it is encoded in a list.
#[derive(Serialize, Deserialize)]
struct WireLayer {
    kind: String,
    version: u32,
    #[serde(with = "bin")]
    payload: SecretBytes,
}

pub(super) fn encode_layers(layers: &[Layer]) -> SecretBytes {
    let layers: Vec<WireLayer> = layers
        .iter()
        .map(|layer| WireLayer {
            kind: layer.kind.clone(),
            version: layer.version,
            payload: layer.payload.clone(),
        })
        .collect();
    let payloads: usize = layers.iter().map(|layer| layer.payload.len()).sum();
    encoded(&layers, payloads + layers.len() * (255 + 64) + 16)
}

pub(super) fn decode_layers(bytes: &[u8]) -> Result<Vec<Layer>, WireError> {
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    let layers: Vec<WireLayer> =
        decoded(bytes).map_err(|error| WireError::Layers(error.to_string()))?;
    if layers.len() > MAX_LAYERS {
        return Err(WireError::Layers(format!("{} of them", layers.len())));
    }
    let layer = |layer: WireLayer| Layer::new(layer.kind, layer.version, layer.payload);
    Ok(layers.into_iter().map(layer).collect())
}

/// Bytes that are wiped, as `bin`.
mod bin {
    use serde::{Deserializer, Serializer};
    use tcpmig_format::SecretBytes;

    pub(super) fn serialize<S: Serializer>(bytes: &SecretBytes, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_bytes(bytes)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<SecretBytes, D::Error> {
        let bytes: Vec<u8> = serde_bytes::deserialize(from)?;
        Ok(bytes.into())
    }
}

/// What has a text, as that.
mod text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<T: Display, S: Serializer>(
        value: &T,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_str(value)
    }

    pub(super) fn deserialize<'de, T: FromStr<Err: Display>, D: Deserializer<'de>>(
        from: D,
    ) -> Result<T, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

/// A list of what has a text.
pub(super) mod texts {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(in crate::agent) fn serialize<T: Display, S: Serializer>(
        values: &[T],
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_seq(values.iter().map(ToString::to_string))
    }

    pub(in crate::agent) fn deserialize<'de, T: FromStr<Err: Display>, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Vec<T>, D::Error> {
        let texts = Vec::<String>::deserialize(from)?;
        let parse = |text: &String| text.parse().map_err(D::Error::custom);
        texts.iter().map(parse).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn through<M: Message>(message: M) -> (usize, M) {
        let packets = packets(message);
        let mut assembler = Assembler::default();
        let mut whole = None;
        for packet in &packets {
            assert!(packet.len() <= MAX_PACKET, "{} bytes", packet.len());
            assert!(whole.is_none(), "the message is the last packet");
            whole = assembler.packet(packet).unwrap();
        }
        assert!(assembler.pieces.is_empty());
        (packets.len(), whole.unwrap())
    }

    #[test]
    fn messages_arrive_as_they_were_sent() {
        for len in [0, 1, PIECE, PIECE + 1, 1 << 20] {
            let layers = vec![
                Layer::new("tls", 2, &b"keys"[..]),
                Layer::new("chat", 1, vec![7; len]),
            ];
            let give = ToAgent::Give {
                id: 1 << 40,
                service: "web".to_owned(),
                to: "b.example".to_owned(),
                layers: encode_layers(&layers),
            };
            let (packets, got) = through(give);
            assert_eq!(packets > 1, len > PIECE - 64);
            let ToAgent::Give {
                id, layers: got, ..
            } = got
            else {
                panic!("{got:?}")
            };
            assert_eq!(id, 1 << 40);
            assert_eq!(decode_layers(&got).unwrap(), layers);
        }
        let flow: FourTuple = "10.0.0.1:80,10.0.0.9:5000".parse().unwrap();
        let offer = ToClient::Offer {
            id: 3,
            service: "web".to_owned(),
            flow,
            from: "a.example".to_owned(),
            layers: SecretBytes::new(),
        };
        let (_, got) = through(offer);
        assert!(matches!(got, ToClient::Offer { flow: same, .. } if same == flow));
    }

    #[test]
    fn a_message_is_the_map_that_the_specification_shows() {
        let cancel = packets(ToAgent::Cancel { id: 7 });
        assert_eq!(*cancel[0], *b"\x81\xa6cancel\x81\xa2id\x07");
        // As another language may have it: fields in another order, of other widths, and unknown ones.
        let other = b"\x81\xa4take\x82\xa3new\xc0\xa2id\xcf\0\0\0\0\0\0\0\x07";
        let message: ToAgent = Assembler::default().packet(other).unwrap().unwrap();
        assert!(matches!(message, ToAgent::Take { id: 7 }));
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let mut assembler = Assembler::default();
        let cases: [&[u8]; 6] = [
            b"",
            b"\xc1",
            b"\xa6cancel",
            b"\x81\xa7nothing\x81\xa2id\x07",
            b"\x81\xa6cancel\x81\xa2id\x07\0",
            b"\x81\xa6cancel\x80",
        ];
        for bytes in cases {
            assert!(assembler.packet::<ToAgent>(bytes).is_err(), "{bytes:?}");
        }
        assert!(decode_layers(b"\x91\x80").is_err());
        let many: Vec<Layer> = vec![Layer::new("x", 1, SecretBytes::new()); MAX_LAYERS + 1];
        assert!(decode_layers(&encode_layers(&many)).is_err());
    }

    #[test]
    fn pieces_have_a_limit() {
        let mut assembler = Assembler::default();
        let piece = packets(ToAgent::piece(1, vec![0; PIECE].into())).remove(0);
        let taken = (0..).take_while(|_| assembler.packet::<ToAgent>(&piece).is_ok());
        assert_eq!(taken.count(), MAX_PIECES / PIECE);
        // Of two links of one user.
        let budget = Arc::new(Budget::new(3 * PIECE));
        let mut one = Assembler::within(budget.clone());
        let mut other = Assembler::within(budget);
        let takes = |link: &mut Assembler| link.packet::<ToAgent>(&piece).is_ok();
        assert!(takes(&mut one) && takes(&mut one) && takes(&mut other) && !takes(&mut other));
        drop(one);
        assert!(takes(&mut other));
        let mut assembler = Assembler::default();
        let mut piece = |id| {
            let piece = packets(ToAgent::piece(id, b"x"[..].into())).remove(0);
            assembler.packet::<ToAgent>(&piece).is_ok()
        };
        assert_eq!((0..).take_while(|id| piece(*id)).count(), MAX_UNFINISHED);
    }
}
