//! The representations of which a header block consists (RFC 7541, section 6).

use super::Undecodable;

/// A header string as it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Text<'a> {
    pub(super) is_huffman: bool,
    pub(super) bytes: &'a [u8],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Name<'a> {
    Index(usize),
    Text(Text<'a>),
}

/// Whether a literal goes into the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Indexing {
    Incremental,
    Without,
    Never,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Field<'a> {
    Indexed(usize),
    Literal {
        indexing: Indexing,
        name: Name<'a>,
        value: Text<'a>,
    },
    /// The table's new size.
    Size(usize),
}

/// A number with a prefix of so many bits (section 5.1). More than 32 bits nobody needs.
fn number(bytes: &mut &[u8], prefix: u32) -> Result<usize, Undecodable> {
    let (&first, mut rest) = bytes.split_first().ok_or(Undecodable)?;
    let mask = (1_u64 << prefix) - 1;
    let mut value = u64::from(first) & mask;
    if value == mask {
        for shift in [0, 7, 14, 21, 28] {
            let (&next, behind) = rest.split_first().ok_or(Undecodable)?;
            rest = behind;
            value += u64::from(next & 0x7f) << shift;
            if next & 0x80 == 0 {
                *bytes = rest;
                return usize::try_from(value).map_err(|_| Undecodable);
            }
        }
        return Err(Undecodable);
    }
    *bytes = rest;
    Ok(value as usize)
}

fn text<'a>(bytes: &mut &'a [u8]) -> Result<Text<'a>, Undecodable> {
    let is_huffman = bytes.first().ok_or(Undecodable)? & 0x80 != 0;
    let len = number(bytes, 7)?;
    let (text, rest) = bytes.split_at_checked(len).ok_or(Undecodable)?;
    *bytes = rest;
    Ok(Text {
        is_huffman,
        bytes: text,
    })
}

/// Takes the next representation.
pub(super) fn next<'a>(bytes: &mut &'a [u8]) -> Result<Option<Field<'a>>, Undecodable> {
    let Some(&first) = bytes.first() else {
        return Ok(None);
    };
    let (indexing, prefix) = match first {
        0x80.. => return number(bytes, 7).map(|index| Some(Field::Indexed(index))),
        0x40.. => (Indexing::Incremental, 6),
        0x20.. => return number(bytes, 5).map(|size| Some(Field::Size(size))),
        0x10.. => (Indexing::Never, 4),
        _ => (Indexing::Without, 4),
    };
    let name = match number(bytes, prefix)? {
        0 => Name::Text(text(bytes)?),
        index => Name::Index(index),
    };
    let value = text(bytes)?;
    Ok(Some(Field::Literal {
        indexing,
        name,
        value,
    }))
}

fn put_number(into: &mut Vec<u8>, first: u8, prefix: u32, value: usize) {
    let mask = (1_usize << prefix) - 1;
    if value < mask {
        // INVARIANT: below the mask, which is of a byte.
        into.push(first | value as u8);
        return;
    }
    into.push(first | mask as u8);
    let mut rest = value - mask;
    while rest >= 0x80 {
        into.push(0x80 | (rest & 0x7f) as u8);
        rest >>= 7;
    }
    into.push(rest as u8);
}

fn put_text(into: &mut Vec<u8>, text: Text<'_>) {
    let first = if text.is_huffman { 0x80 } else { 0 };
    put_number(into, first, 7, text.bytes.len());
    into.extend_from_slice(text.bytes);
}

/// Appends a representation.
pub(super) fn put(into: &mut Vec<u8>, field: Field<'_>) {
    match field {
        Field::Indexed(index) => put_number(into, 0x80, 7, index),
        Field::Size(size) => put_number(into, 0x20, 5, size),
        Field::Literal {
            indexing,
            name,
            value,
        } => {
            let (first, prefix) = match indexing {
                Indexing::Incremental => (0x40, 6),
                Indexing::Without => (0, 4),
                Indexing::Never => (0x10, 4),
            };
            match name {
                Name::Index(index) => put_number(into, first, prefix, index),
                Name::Text(name) => {
                    into.push(first);
                    put_text(into, name);
                }
            }
            put_text(into, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7541, appendix C.1.
    #[test]
    fn numbers_are_those_of_the_rfc() {
        for (value, prefix, encoded) in [
            (10, 5, &[10][..]),
            (1337, 5, &[31, 154, 10]),
            (42, 8, &[42]),
        ] {
            let mut got = Vec::new();
            put_number(&mut got, 0, prefix, value);
            assert_eq!(got, encoded);
            assert_eq!(number(&mut &got[..], prefix).unwrap(), value);
            for cut in 0..got.len() {
                assert!(number(&mut &got[..cut], prefix).is_err());
            }
        }
        assert!(number(&mut &[31, 255, 255, 255, 255, 255, 0][..], 5).is_err());
    }
}
