//! Header compression (RFC 7541), as far as a third one needs it who reads what an encoder tells its decoder.
//!
//! A [`Bridge`] follows the table that a peer's encoder fills. The decoder behind it has the same table, and then blocks pass
//! as they are; or it is another decoder, which has not seen what came before, and then the bridge tells it what
//! it lacks. Strings are kept as they came and never decoded.

mod field;
mod huffman;
mod table;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use field::{Field, Indexing, Name, Text};
use table::{Entry, Kept, KeptName, Mirror, STATIC, Table};

/// A header block, or a table, that is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Undecodable;

/// The size of a table about which nobody has said anything: `SETTINGS_HEADER_TABLE_SIZE` as it begins.
pub(super) const TABLE: usize = 4096;
/// The largest block that is taken or made.
pub(super) const MAX_BLOCK: usize = 1 << 16;

/// A table between hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TableImage {
    max: usize,
    /// The oldest first.
    entries: Vec<EntryImage>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct EntryImage {
    /// That of the static table which has its name, or 0.
    index: u8,
    #[serde(with = "serde_bytes")]
    name: Vec<u8>,
    name_is_huffman: bool,
    #[serde(with = "serde_bytes")]
    value: Vec<u8>,
    value_is_huffman: bool,
}

/// Between an encoder and a decoder.
#[derive(Debug, Clone)]
pub(super) struct Bridge {
    table: Table,
    /// The decoder's table; `None` if it is the same.
    mirror: Option<Mirror>,
}

/// How what an encoder says is told to its decoder.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Telling {
    /// As it came.
    Same,
    /// For the decoder's own table.
    Bridged,
    /// For any table.
    Literally,
}

impl Bridge {
    /// Between an encoder and a decoder that begin.
    pub(super) fn new() -> Self {
        Self {
            table: Table::new(TABLE),
            mirror: None,
        }
    }

    /// Between an encoder that has this table and a decoder that begins.
    pub(super) fn resume(image: &TableImage) -> Result<Self, Undecodable> {
        let mut table = Table::new(TABLE);
        table.resize(image.max)?;
        for entry in &image.entries {
            table.insert(entry.entry()?);
        }
        if table.entries.len() != image.entries.len() {
            return Err(Undecodable);
        }
        Ok(Self {
            table,
            mirror: Some(Mirror::new(TABLE)),
        })
    }

    pub(super) fn image(&self) -> TableImage {
        TableImage {
            max: self.table.max,
            entries: self
                .table
                .entries
                .iter()
                .rev()
                .map(EntryImage::of)
                .collect(),
        }
    }

    /// The block that the decoder is told instead of this one; `None` if it is the same.
    pub(super) fn pass(&mut self, block: &[u8]) -> Result<Option<Vec<u8>>, Undecodable> {
        let telling = match self.mirror {
            None => Telling::Same,
            Some(_) => Telling::Bridged,
        };
        let told = self.walk(block, telling)?;
        Ok((telling == Telling::Bridged).then_some(told))
    }

    /// A block that says the same to any decoder, whatever is in its table. The decoder behind the bridge is not told this one now.
    pub(super) fn hold(&mut self, block: &[u8]) -> Result<Vec<u8>, Undecodable> {
        if self.mirror.is_none() {
            self.mirror = Some(Mirror::of(&mut self.table));
        }
        self.walk(block, Telling::Literally)
    }

    fn walk(&mut self, block: &[u8], telling: Telling) -> Result<Vec<u8>, Undecodable> {
        if block.len() > MAX_BLOCK {
            return Err(Undecodable);
        }
        let mut rest = block;
        let mut told = Vec::new();
        let mut can_resize = true;
        while let Some(field) = field::next(&mut rest)? {
            match field {
                Field::Size(size) if can_resize => {
                    self.table.resize(size)?;
                    continue;
                }
                Field::Size(_) => return Err(Undecodable),
                Field::Indexed(index) => self.indexed(index, telling, &mut told)?,
                Field::Literal {
                    indexing,
                    name,
                    value,
                } => self.literal(indexing, name, value, telling, &mut told)?,
            }
            can_resize = false;
            // A few bytes can stand for thousands.
            if told.len() > MAX_BLOCK {
                return Err(Undecodable);
            }
        }
        Ok(told)
    }

    fn indexed(
        &mut self,
        index: usize,
        telling: Telling,
        told: &mut Vec<u8>,
    ) -> Result<(), Undecodable> {
        if index == 0 {
            return Err(Undecodable);
        }
        if index <= STATIC {
            if telling != Telling::Same {
                field::put(told, Field::Indexed(index));
            }
            return Ok(());
        }
        let entry = self.table.get(index)?;
        match (telling, &mut self.mirror) {
            (Telling::Same, _) => {}
            (Telling::Bridged, Some(mirror)) => tell(entry, mirror, told),
            _ => put_literal(told, Indexing::Without, &entry.name, entry.value.text()),
        }
        Ok(())
    }

    fn literal(
        &mut self,
        indexing: Indexing,
        name: Name<'_>,
        value: Text<'_>,
        telling: Telling,
        told: &mut Vec<u8>,
    ) -> Result<(), Undecodable> {
        if indexing != Indexing::Incremental && telling == Telling::Same {
            // It changes nothing; who decodes it looks at its name.
            return Ok(());
        }
        let name = match name {
            Name::Index(index) if index <= STATIC => KeptName::Static(index),
            Name::Index(index) => self.table.get(index)?.name.clone(),
            Name::Text(name) => KeptName::Text(Kept::new(name)?),
        };
        if indexing != Indexing::Incremental {
            put_literal(told, indexing, &name, value);
            return Ok(());
        }
        let mut entry = Entry {
            name,
            value: Kept::new(value)?,
            told: None,
        };
        match (telling, &mut self.mirror) {
            (Telling::Same, _) => {}
            (Telling::Bridged, Some(mirror)) => tell(&mut entry, mirror, told),
            _ => put_literal(told, Indexing::Without, &entry.name, entry.value.text()),
        }
        self.table.insert(entry);
        Ok(())
    }
}

/// Tells a decoder of an entry, which it may have.
fn tell(entry: &mut Entry, mirror: &mut Mirror, told: &mut Vec<u8>) {
    if let Some(index) = entry.told.and_then(|place| mirror.index(place)) {
        field::put(told, Field::Indexed(index));
        return;
    }
    let size = entry.size();
    let indexing = if mirror.takes(size) {
        entry.told = Some(mirror.give(size));
        Indexing::Incremental
    } else {
        Indexing::Without
    };
    put_literal(told, indexing, &entry.name, entry.value.text());
}

fn put_literal(told: &mut Vec<u8>, indexing: Indexing, name: &KeptName, value: Text<'_>) {
    let name = match name {
        KeptName::Static(index) => Name::Index(*index),
        KeptName::Text(name) => Name::Text(name.text()),
    };
    let literal = Field::Literal {
        indexing,
        name,
        value,
    };
    field::put(told, literal);
}

/// Appends a header to a block that says the same to any decoder.
pub(crate) fn put_header(block: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    let text = |bytes| Text {
        is_huffman: false,
        bytes,
    };
    let literal = Field::Literal {
        indexing: Indexing::Without,
        name: Name::Text(text(name)),
        value: text(value),
    };
    field::put(block, literal);
}

/// Empties a decoder's table, at the beginning of a block: a size of 0.
pub(super) const EMPTIES: u8 = 0x20;

impl EntryImage {
    fn of(entry: &Entry) -> Self {
        let (index, name, name_is_huffman) = match &entry.name {
            // INVARIANT: an index of the static table.
            KeptName::Static(index) => (*index as u8, Vec::new(), false),
            KeptName::Text(name) => (0, name.bytes.to_vec(), name.is_huffman),
        };
        Self {
            index,
            name,
            name_is_huffman,
            value: entry.value.bytes.to_vec(),
            value_is_huffman: entry.value.is_huffman,
        }
    }

    fn entry(&self) -> Result<Entry, Undecodable> {
        let kept = |bytes: &[u8], is_huffman| Kept::new(Text { is_huffman, bytes });
        let name = match self.index.into() {
            0 => KeptName::Text(kept(&self.name, self.name_is_huffman)?),
            index @ 1..=STATIC if self.name.is_empty() => KeptName::Static(index),
            _ => return Err(Undecodable),
        };
        Ok(Entry {
            name,
            value: kept(&self.value, self.value_is_huffman)?,
            told: None,
        })
    }
}
