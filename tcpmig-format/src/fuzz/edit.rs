//! Changes of a payload: of its values, and of its bytes.

use arbitrary::Arbitrary;

use super::msgpack::{self, Nest, Node, Value};

/// Edits that are done; more would only nest deeper than this code wants to.
const MAX_EDITS: usize = 32;
/// Bytes of a payload to which no more is added.
const MAX_LEN: usize = 256 << 10;

/// A change. Values are numbered from the outside in, keys included, modulo how many there are;
/// bytes likewise.
#[derive(Arbitrary, Debug)]
#[allow(missing_docs, reason = "made by the fuzzer, not by people")]
#[allow(private_interfaces, reason = "as above")]
pub enum Edit {
    /// Written in the longest form that there is.
    Wide { at: u16 },
    /// Fields of a map in another order.
    Rotate { at: u16, by: u8 },
    /// A field of a name that no version has, in a map.
    Unknown { at: u16, name: u8, value: Junk },
    /// Another value, of any type.
    Put { at: u16, value: Junk },
    /// Without one of the fields or items.
    Remove { at: u16, index: u8 },
    /// One of the fields or items twice.
    Repeat { at: u16, index: u8 },
    /// A value of elsewhere.
    Copy { from: u16, to: u16 },
    /// A value in lists or maps.
    Nest { at: u16, depth: u16, nest: Nest },
    /// A length that is not so.
    Claim { at: u16, len: u32 },
    /// Bits of a byte.
    Flip { at: u32, mask: u8 },
    /// New bytes.
    Insert { at: u32, inserted: [u8; 4] },
    /// Bytes of elsewhere.
    Splice { from: u32, len: u16, to: u32 },
    /// Without some bytes.
    Delete { at: u32, len: u16 },
    /// Without the rest.
    Cut { at: u32 },
}

/// A value of any type.
#[derive(Arbitrary, Clone, Debug)]
#[allow(missing_docs, reason = "made by the fuzzer, not by people")]
pub enum Junk {
    Nil,
    Bool(bool),
    Small(u8),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text(String),
    Bin(Vec<u8>),
    Ext(i8, Vec<u8>),
    Lists(u8),
    Maps(u8),
    /// So many of the same.
    Long(u16),
}

impl Edit {
    /// Whether an image says the same after it.
    pub(super) fn is_harmless(&self) -> bool {
        matches!(
            self,
            Self::Wide { .. } | Self::Rotate { .. } | Self::Unknown { .. }
        )
    }
}

impl Junk {
    fn value(&self) -> Value {
        let nested = |depth: &u8, nest| {
            // Readers skip 32 levels, of which the fields around take some.
            let inner = Box::new(Value::Bool(true).into());
            Value::Nested(u16::from(*depth % 16), nest, inner)
        };
        match self {
            Self::Nil => Value::Nil,
            Self::Bool(on) => Value::Bool(*on),
            Self::Small(value) => Value::Unsigned((*value).into()),
            Self::Unsigned(value) => Value::Unsigned(*value),
            Self::Signed(value) => Value::Signed(*value),
            Self::Float(value) => Value::Float(*value),
            Self::Text(text) => Value::Text(text.clone().into()),
            Self::Bin(bytes) => Value::Bin(bytes.clone()),
            Self::Ext(kind, bytes) => Value::Ext(*kind, bytes.clone()),
            Self::Lists(depth) => nested(depth, Nest::Lists),
            Self::Maps(depth) => nested(depth, Nest::Maps),
            Self::Long(len) => Value::List(vec![Value::Nil.into(); usize::from(*len % 4096)]),
        }
    }
}

/// The payload after the edits: first those of values, if it is `MessagePack`, then those of bytes.
pub(super) fn apply(payload: &[u8], edits: &[Edit]) -> Vec<u8> {
    let edits = &edits[..edits.len().min(MAX_EDITS)];
    let mut bytes = payload.to_vec();
    if let Some(mut root) = msgpack::read(payload) {
        for edit in edits {
            change(&mut root, edit);
            bytes.clear();
            root.write(&mut bytes);
            if bytes.len() > MAX_LEN {
                break;
            }
        }
    }
    for edit in edits {
        overwrite(&mut bytes, edit);
    }
    bytes
}

fn change(root: &mut Node, edit: &Edit) {
    let count = root.count();
    let nth = |number: u16| usize::from(number) % count;
    match edit {
        Edit::Wide { at } => with(root, nth(*at), |node| node.wide = true),
        Edit::Claim { at, len } => with(root, nth(*at), |node| node.claim = Some(*len)),
        Edit::Put { at, value } => with(root, nth(*at), |node| node.value = value.value()),
        Edit::Rotate { at, by } => with(root, nth(*at), |node| {
            if let Value::Map(entries) = &mut node.value
                && !entries.is_empty()
            {
                let by = usize::from(*by) % entries.len();
                entries.rotate_left(by);
            }
        }),
        Edit::Unknown { at, name, value } => with(root, nth(*at), |node| {
            if let Value::Map(entries) = &mut node.value {
                let name = Value::Text(format!("x-{name}").into());
                entries.push((name.into(), value.value().into()));
            }
        }),
        Edit::Remove { at, index } => with(root, nth(*at), |node| match &mut node.value {
            Value::List(items) if !items.is_empty() => {
                items.remove(usize::from(*index) % items.len());
            }
            Value::Map(entries) if !entries.is_empty() => {
                entries.remove(usize::from(*index) % entries.len());
            }
            _ => {}
        }),
        Edit::Repeat { at, index } => with(root, nth(*at), |node| match &mut node.value {
            Value::List(items) if !items.is_empty() => {
                items.push(items[usize::from(*index) % items.len()].clone());
            }
            Value::Map(entries) if !entries.is_empty() => {
                entries.push(entries[usize::from(*index) % entries.len()].clone());
            }
            _ => {}
        }),
        Edit::Copy { from, to } => {
            let copy = root.nth(nth(*from)).map(|node| node.clone());
            if let Some(copy) = copy {
                with(root, nth(*to), |node| *node = copy);
            }
        }
        Edit::Nest { at, depth, nest } => with(root, nth(*at), |node| {
            let inner = std::mem::replace(node, Value::Nil.into());
            node.value = Value::Nested(*depth, *nest, Box::new(inner));
        }),
        Edit::Flip { .. }
        | Edit::Insert { .. }
        | Edit::Splice { .. }
        | Edit::Delete { .. }
        | Edit::Cut { .. } => {}
    }
}

fn with(root: &mut Node, number: usize, change: impl FnOnce(&mut Node)) {
    if let Some(node) = root.nth(number) {
        change(node);
    }
}

fn overwrite(bytes: &mut Vec<u8>, edit: &Edit) {
    let len = bytes.len();
    let place = |at: u32| at as usize % (len + 1);
    let range = |at: u32, count: u16| {
        let from = place(at);
        from..len.min(from + usize::from(count))
    };
    match *edit {
        Edit::Flip { at, mask } => {
            if let Some(byte) = bytes.get_mut(place(at)) {
                *byte ^= mask;
            }
        }
        Edit::Insert { at, inserted } => {
            let at = place(at);
            bytes.splice(at..at, inserted);
        }
        Edit::Splice { from, len, to } => {
            let copy = bytes[range(from, len)].to_vec();
            let to = place(to);
            bytes.splice(to..to, copy);
        }
        Edit::Delete { at, len } => {
            bytes.drain(range(at, len));
        }
        Edit::Cut { at } => bytes.truncate(place(at)),
        _ => {}
    }
}
