//! What of a session goes along with its connection.

use libc::iovec;
use tcpmig_format::{Layer, SecretBytes};

use super::buffers::{self, Buffers};
use super::structs::SessionStruct;
use crate::border::Done;
use crate::layer;
use crate::sized;

/// All bytes of these vectors, in order.
///
/// # Safety
///
/// As the header says of them.
unsafe fn gather(first: *const iovec, count: usize, what: &str) -> Done<SecretBytes> {
    // SAFETY: as the caller's.
    let vectors = unsafe { sized::slice(first, count, what) }?;
    let length: usize = vectors.iter().map(|vector| vector.iov_len).sum();
    // In one piece: memory that grows leaves what it had behind where it was.
    let mut bytes = Vec::with_capacity(length.min(isize::MAX as usize));
    for vector in vectors {
        // SAFETY: as the caller's.
        let more = unsafe { sized::slice::<u8>(vector.iov_base.cast(), vector.iov_len, what) }?;
        bytes.extend_from_slice(more);
    }
    Ok(bytes.into())
}

/// All layers of a session.
///
/// # Safety
///
/// As the header says of it.
pub(crate) unsafe fn layers_of(session: *const SessionStruct) -> Done<Vec<Layer>> {
    if session.is_null() {
        return Ok(Vec::new());
    }
    // SAFETY: it is as long as it says.
    let session = unsafe { sized::read(session, "session") }?;
    // SAFETY: as the header says.
    let layers = unsafe { layer::read(session.layers, session.layer_count) }?;
    // SAFETY: as the header says.
    let unprocessed = unsafe {
        gather(
            session.unprocessed,
            session.unprocessed_count,
            "unprocessed",
        )
    }?;
    // SAFETY: as the header says.
    let unsent = unsafe { gather(session.unsent, session.unsent_count, "unsent") }?;
    let buffers = Buffers {
        unprocessed,
        unsent,
    };
    Ok(buffers::put_in(layers, &buffers))
}
