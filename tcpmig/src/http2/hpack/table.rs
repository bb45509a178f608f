//! Dynamic tables (RFC 7541, sections 2.3 and 4).

use std::collections::VecDeque;

use bytes::Bytes;

use super::field::Text;
use super::{Undecodable, huffman};

/// How many entries the static table has.
pub(super) const STATIC: usize = 61;
/// What an entry counts beside its strings.
const OVERHEAD: usize = 32;

/// How long the names of the static table are (appendix A).
const NAME_LENGTHS: [u8; STATIC] = [
    10, 7, 7, 5, 5, 7, 7, 7, 7, 7, 7, 7, 7, 7, 14, 15, 15, 13, 6, 27, 3, 5, 13, 13, 19, 16, 16, 14,
    16, 13, 12, 6, 4, 4, 6, 7, 4, 4, 8, 17, 13, 8, 19, 13, 4, 8, 12, 18, 19, 5, 7, 7, 11, 6, 10,
    25, 17, 10, 4, 3, 16,
];

/// A header string that is kept as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) is_huffman: bool,
    pub(super) bytes: Bytes,
    /// When it is decoded.
    len: usize,
}

impl Kept {
    pub(super) fn new(text: Text<'_>) -> Result<Self, Undecodable> {
        let len = match text.is_huffman {
            true => huffman::decoded_len(text.bytes).ok_or(Undecodable)?,
            false => text.bytes.len(),
        };
        Ok(Self {
            is_huffman: text.is_huffman,
            bytes: Bytes::copy_from_slice(text.bytes),
            len,
        })
    }

    pub(super) fn text(&self) -> Text<'_> {
        Text {
            is_huffman: self.is_huffman,
            bytes: &self.bytes,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum KeptName {
    /// That of an entry of the static table.
    Static(usize),
    Text(Kept),
}

/// An entry of a dynamic table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) name: KeptName,
    pub(super) value: Kept,
    /// The place in another table that it was put into, counted from that one's beginning.
    pub(super) told: Option<u64>,
}

impl Entry {
    pub(super) fn size(&self) -> usize {
        let name = match &self.name {
            // INVARIANT: an index of the static table.
            KeptName::Static(index) => NAME_LENGTHS[index - 1].into(),
            KeptName::Text(name) => name.len,
        };
        name + self.value.len + OVERHEAD
    }
}

/// The table that an encoder fills, as its decoder has it.
#[derive(Debug, Clone)]
pub(super) struct Table {
    /// The newest first.
    pub(super) entries: VecDeque<Entry>,
    size: usize,
    /// How large the encoder lets it become.
    pub(super) max: usize,
    /// How large the encoder may let it become.
    pub(super) limit: usize,
}

impl Table {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            entries: VecDeque::new(),
            size: 0,
            max: limit,
            limit,
        }
    }

    /// That of an index beyond the static table.
    pub(super) fn get(&mut self, index: usize) -> Result<&mut Entry, Undecodable> {
        let at = index.checked_sub(STATIC + 1).ok_or(Undecodable)?;
        self.entries.get_mut(at).ok_or(Undecodable)
    }

    pub(super) fn insert(&mut self, entry: Entry) {
        let size = entry.size();
        self.shrink_to(self.max.saturating_sub(size));
        if size <= self.max {
            self.size += size;
            self.entries.push_front(entry);
        }
    }

    pub(super) fn resize(&mut self, max: usize) -> Result<(), Undecodable> {
        if max > self.limit {
            return Err(Undecodable);
        }
        self.max = max;
        self.shrink_to(max);
        Ok(())
    }

    fn shrink_to(&mut self, most: usize) {
        while self.size > most
            && let Some(oldest) = self.entries.pop_back()
        {
            self.size -= oldest.size();
        }
    }
}

/// What is known of the table of a decoder that is told other blocks than came: how large its entries are.
#[derive(Debug, Clone)]
pub(super) struct Mirror {
    /// The newest first.
    sizes: VecDeque<usize>,
    size: usize,
    max: usize,
    /// How many it was ever given.
    given: u64,
}

impl Mirror {
    pub(super) fn new(max: usize) -> Self {
        Self {
            sizes: VecDeque::new(),
            size: 0,
            max,
            given: 0,
        }
    }

    /// Of a decoder that has the same entries, whose places are noted in them.
    pub(super) fn of(table: &mut Table) -> Self {
        let count = table.entries.len() as u64;
        for (entry, place) in table.entries.iter_mut().zip((0..count).rev()) {
            entry.told = Some(place);
        }
        Self {
            sizes: table.entries.iter().map(Entry::size).collect(),
            size: table.size,
            max: table.max,
            given: count,
        }
    }

    /// The index of an entry, if it is still there.
    pub(super) fn index(&self, place: u64) -> Option<usize> {
        // INVARIANT: it was given before.
        let newer = usize::try_from(self.given - 1 - place).ok()?;
        (newer < self.sizes.len()).then_some(STATIC + 1 + newer)
    }

    /// Whether an entry can be in it.
    pub(super) fn takes(&self, size: usize) -> bool {
        size <= self.max
    }

    /// The place of an entry that it is given now.
    pub(super) fn give(&mut self, size: usize) -> u64 {
        while self.size + size > self.max
            && let Some(oldest) = self.sizes.pop_back()
        {
            self.size -= oldest;
        }
        if self.takes(size) {
            self.sizes.push_front(size);
            self.size += size;
            self.given += 1;
        }
        self.given.saturating_sub(1)
    }
}
