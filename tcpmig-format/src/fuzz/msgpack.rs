//! `MessagePack` as a tree that can be changed, and written as no encoder would.

/// How deep the reader looks; what is deeper is left as bytes.
const MAX_DEPTH: usize = 32;

/// A value, and how it is written.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Node {
    pub(super) value: Value,
    /// In the longest form instead of the shortest.
    pub(super) wide: bool,
    /// The length that is written, if not the right one.
    pub(super) claim: Option<u32>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Nil,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text(Vec<u8>),
    Bin(Vec<u8>),
    Ext(i8, Vec<u8>),
    List(Vec<Node>),
    Map(Vec<(Node, Node)>),
    /// A value in this many lists or maps.
    Nested(u16, Nest, Box<Node>),
}

#[derive(Clone, Copy, Debug, PartialEq, arbitrary::Arbitrary)]
pub(super) enum Nest {
    Lists,
    Maps,
}

impl From<Value> for Node {
    fn from(value: Value) -> Self {
        Self {
            value,
            wide: false,
            claim: None,
        }
    }
}

/// Reads exactly one value; `None` if that is not what `bytes` are.
pub(super) fn read(bytes: &[u8]) -> Option<Node> {
    let mut rest = bytes;
    let node = node(&mut rest, MAX_DEPTH)?;
    rest.is_empty().then_some(node)
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(count)?;
    *rest = left;
    Some(taken)
}

/// A big-endian number of so many bytes.
fn number(rest: &mut &[u8], bytes: usize) -> Option<u64> {
    let bytes = take(rest, bytes)?;
    Some(
        bytes
            .iter()
            .fold(0, |high, low| high << 8 | u64::from(*low)),
    )
}

fn node(rest: &mut &[u8], depth: usize) -> Option<Node> {
    let depth = depth.checked_sub(1)?;
    let marker = number(rest, 1)? as u8;
    let low = u64::from(marker);
    let sized = |rest: &mut &[u8], power: u8| number(rest, 1 << power);
    let value = match marker {
        0x00..=0x7f => Value::Unsigned(low),
        0x80..=0x8f => map(rest, low & 15, depth)?,
        0x90..=0x9f => list(rest, low & 15, depth)?,
        0xa0..=0xbf => Value::Text(take(rest, usize::from(marker & 31))?.to_vec()),
        0xc0 => Value::Nil,
        0xc1 => return None,
        0xc2 | 0xc3 => Value::Bool(marker == 0xc3),
        0xc4..=0xc6 => {
            let len = sized(rest, marker - 0xc4)? as usize;
            Value::Bin(take(rest, len)?.to_vec())
        }
        0xc7..=0xc9 => {
            let len = sized(rest, marker - 0xc7)? as usize;
            let kind = number(rest, 1)? as i8;
            Value::Ext(kind, take(rest, len)?.to_vec())
        }
        0xca => Value::Float(f32::from_bits(number(rest, 4)? as u32).into()),
        0xcb => Value::Float(f64::from_bits(number(rest, 8)?)),
        0xcc..=0xcf => Value::Unsigned(sized(rest, marker - 0xcc)?),
        0xd0..=0xd3 => {
            let bytes = 1 << (marker - 0xd0);
            let shift = 64 - 8 * bytes as u32;
            Value::Signed((number(rest, bytes)? << shift) as i64 >> shift)
        }
        0xd4..=0xd8 => {
            let kind = number(rest, 1)? as i8;
            Value::Ext(kind, take(rest, 1 << (marker - 0xd4))?.to_vec())
        }
        0xd9..=0xdb => {
            let len = sized(rest, marker - 0xd9)? as usize;
            Value::Text(take(rest, len)?.to_vec())
        }
        0xdc | 0xdd => {
            let len = sized(rest, marker - 0xdc + 1)?;
            list(rest, len, depth)?
        }
        0xde | 0xdf => {
            let len = sized(rest, marker - 0xde + 1)?;
            map(rest, len, depth)?
        }
        0xe0..=0xff => Value::Signed((marker as i8).into()),
    };
    Some(value.into())
}

fn list(rest: &mut &[u8], len: u64, depth: usize) -> Option<Value> {
    let items: Option<_> = (0..len).map(|_| node(rest, depth)).collect();
    items.map(Value::List)
}

fn map(rest: &mut &[u8], len: u64, depth: usize) -> Option<Value> {
    let entries: Option<_> = (0..len)
        .map(|_| Some((node(rest, depth)?, node(rest, depth)?)))
        .collect();
    entries.map(Value::Map)
}

impl Node {
    /// How many nodes there are, this one included.
    pub(super) fn count(&self) -> usize {
        1 + match &self.value {
            Value::List(items) => items.iter().map(Self::count).sum(),
            Value::Map(entries) => entries.iter().map(|(k, v)| k.count() + v.count()).sum(),
            Value::Nested(_, _, inner) => inner.count(),
            _ => 0,
        }
    }

    /// The node with this number, counted from the outside in.
    pub(super) fn nth(&mut self, number: usize) -> Option<&mut Self> {
        let mut left = number;
        self.find(&mut left)
    }

    fn find(&mut self, left: &mut usize) -> Option<&mut Self> {
        if *left == 0 {
            return Some(self);
        }
        *left -= 1;
        match &mut self.value {
            Value::List(items) => items.iter_mut().find_map(|item| item.find(left)),
            Value::Map(entries) => entries
                .iter_mut()
                .find_map(|(key, value)| key.find(left).or_else(|| value.find(left))),
            Value::Nested(_, _, inner) => inner.find(left),
            _ => None,
        }
    }

    /// Appends the value, as it is to be written.
    pub(super) fn write(&self, to: &mut Vec<u8>) {
        match &self.value {
            Value::Nil => to.push(0xc0),
            Value::Bool(on) => to.push(0xc2 | u8::from(*on)),
            Value::Unsigned(value) if self.wide => sized(to, 0xcf, &value.to_be_bytes()),
            Value::Unsigned(value) => unsigned(to, *value),
            Value::Signed(value) if self.wide => sized(to, 0xd3, &value.to_be_bytes()),
            Value::Signed(value) => signed(to, *value),
            Value::Float(value) => sized(to, 0xcb, &value.to_be_bytes()),
            Value::Text(text) => {
                self.header(
                    to,
                    text.len(),
                    Some((0xa0, 31)),
                    [Some(0xd9), Some(0xda), Some(0xdb)],
                );
                to.extend(text);
            }
            Value::Bin(bytes) => {
                self.header(to, bytes.len(), None, [Some(0xc4), Some(0xc5), Some(0xc6)]);
                to.extend(bytes);
            }
            Value::Ext(kind, bytes) => {
                self.header(to, bytes.len(), None, [Some(0xc7), Some(0xc8), Some(0xc9)]);
                to.push(*kind as u8);
                to.extend(bytes);
            }
            Value::List(items) => {
                self.header(
                    to,
                    items.len(),
                    Some((0x90, 15)),
                    [None, Some(0xdc), Some(0xdd)],
                );
                items.iter().for_each(|item| item.write(to));
            }
            Value::Map(entries) => {
                self.header(
                    to,
                    entries.len(),
                    Some((0x80, 15)),
                    [None, Some(0xde), Some(0xdf)],
                );
                for (key, value) in entries {
                    key.write(to);
                    value.write(to);
                }
            }
            Value::Nested(depth, nest, inner) => {
                for _ in 0..*depth {
                    match nest {
                        Nest::Lists => to.push(0x91),
                        Nest::Maps => to.extend([0x81, 0xa1, b'x']),
                    }
                }
                inner.write(to);
            }
        }
    }

    /// The marker and length of what has one: in the marker itself up to a maximum, or behind
    /// markers for 8, 16 and 32 bits.
    fn header(
        &self,
        to: &mut Vec<u8>,
        len: usize,
        short: Option<(u8, usize)>,
        [byte, word, long]: [Option<u8>; 3],
    ) {
        let len = self.claim.unwrap_or(len as u32);
        let wide = self.wide;
        match (short, byte, word, long) {
            (Some((marker, max)), ..) if !wide && len as usize <= max => {
                to.push(marker | len as u8);
            }
            (_, Some(marker), ..) if !wide && len <= 0xff => to.extend([marker, len as u8]),
            (_, _, Some(marker), _) if !wide && len <= 0xffff => {
                sized(to, marker, &(len as u16).to_be_bytes());
            }
            (.., Some(marker)) => sized(to, marker, &len.to_be_bytes()),
            _ => {}
        }
    }
}

fn sized(to: &mut Vec<u8>, marker: u8, bytes: &[u8]) {
    to.push(marker);
    to.extend(bytes);
}

fn unsigned(to: &mut Vec<u8>, value: u64) {
    match value {
        0..=0x7f => to.push(value as u8),
        0x80..=0xff => to.extend([0xcc, value as u8]),
        0x100..=0xffff => sized(to, 0xcd, &(value as u16).to_be_bytes()),
        0x1_0000..=0xffff_ffff => sized(to, 0xce, &(value as u32).to_be_bytes()),
        _ => sized(to, 0xcf, &value.to_be_bytes()),
    }
}

fn signed(to: &mut Vec<u8>, value: i64) {
    match value {
        -0x20..=-1 => to.push(value as u8),
        -0x80..=0x7f => to.extend([0xd0, value as u8]),
        -0x8000..=0x7fff => sized(to, 0xd1, &(value as i16).to_be_bytes()),
        -0x8000_0000..=0x7fff_ffff => sized(to, 0xd2, &(value as i32).to_be_bytes()),
        _ => sized(to, 0xd3, &value.to_be_bytes()),
    }
}
