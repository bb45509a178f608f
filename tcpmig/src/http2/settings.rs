//! SETTINGS (RFC 9113, section 6.5).

use bytes::{BufMut, BytesMut};
use serde::{Deserialize, Serialize};

pub(super) const HEADER_TABLE_SIZE: u16 = 1;
pub(super) const INITIAL_WINDOW_SIZE: u16 = 4;

/// One past the last setting that is known here (RFC 8441's). Others nobody here asks for.
const KNOWN: usize = 9;

/// What one end has told the other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Settings([Option<u32>; KNOWN]);

impl Settings {
    /// What a frame of this payload says; `None` if it is malformed.
    pub(super) fn read(payload: &[u8]) -> Option<Self> {
        let mut read = Self::default();
        let mut settings = payload.chunks_exact(6);
        for setting in &mut settings {
            let [a, b, value @ ..] = *setting.first_chunk::<6>()?;
            read.set(u16::from_be_bytes([a, b]), u32::from_be_bytes(value));
        }
        settings.remainder().is_empty().then_some(read)
    }

    /// The payload of a frame that says this.
    pub(super) fn payload(&self) -> BytesMut {
        let mut payload = BytesMut::new();
        for (id, value) in (0..).zip(self.0) {
            if let Some(value) = value {
                payload.put_u16(id);
                payload.put_u32(value);
            }
        }
        payload
    }

    pub(super) fn set(&mut self, id: u16, value: u32) {
        if let Some(slot) = self.0.get_mut(usize::from(id)) {
            *slot = Some(value);
        }
    }

    /// A later frame said this.
    pub(super) fn update(&mut self, later: &Self) {
        for (slot, value) in self.0.iter_mut().zip(later.0) {
            *slot = value.or(*slot);
        }
    }

    pub(super) fn get(&self, id: u16) -> Option<u32> {
        self.0.get(usize::from(id)).copied().flatten()
    }

    pub(super) fn initial_window(&self) -> i64 {
        self.get(INITIAL_WINDOW_SIZE).unwrap_or(65_535).into()
    }

    pub(super) fn header_table(&self) -> u32 {
        self.get(HEADER_TABLE_SIZE).unwrap_or(4096)
    }
}
