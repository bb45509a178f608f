//! What runs on a connection.

use std::ffi::{CStr, c_char, c_void};
use std::mem::{offset_of, size_of};

use tcpmig_format::Layer;

use crate::border::{Done, Failure};
use crate::sized::{self, Sized_};

/// `struct tcpmig_layer`.
#[derive(Debug, Clone, Copy)]
#[expect(missing_docs, reason = "the header says what each is")]
#[repr(C)]
pub struct LayerStruct {
    pub size: usize,
    pub kind: *const c_char,
    pub payload: *const c_void,
    pub payload_length: usize,
    pub version: u32,
}

// SAFETY: numbers and pointers only, and the size is the first.
unsafe impl Sized_ for LayerStruct {
    const OLDEST: usize = offset_of!(Self, version) + size_of::<u32>();
}

impl LayerStruct {
    /// One that is valid as long as the layer and its kind are.
    pub(crate) fn borrowed(layer: &Layer, kind: &CStr) -> Self {
        Self {
            size: size_of::<Self>(),
            kind: kind.as_ptr(),
            payload: layer.payload.as_ptr().cast(),
            payload_length: layer.payload.len(),
            version: layer.version,
        }
    }
}

/// The layers of an array. Each element is as long as the first says.
///
/// # Safety
///
/// The pointer is null or that of so many layers.
pub(crate) unsafe fn read(first: *const LayerStruct, count: usize) -> Done<Vec<Layer>> {
    if count > tcpmig_format::MAX_LAYERS {
        return Err(Failure::invalid(format_args!(
            "{count} layers: a connection has {} at most",
            tcpmig_format::MAX_LAYERS
        )));
    }
    let mut layers = Vec::with_capacity(count);
    let mut next = first;
    let mut length = None;
    for _ in 0..count {
        // SAFETY: there are so many, each as long as it says.
        let layer = unsafe { sized::read(next, "a layer") }?;
        if *length.get_or_insert(layer.size) != layer.size {
            return Err(Failure::invalid("the layers are not of one size"));
        }
        next = next.wrapping_byte_add(layer.size);
        // SAFETY: a string, as the header says.
        let kind = unsafe { sized::text(layer.kind, "the kind of a layer") }?;
        // SAFETY: so many bytes, as the header says.
        let payload = unsafe {
            sized::slice::<u8>(
                layer.payload.cast(),
                layer.payload_length,
                "the payload of a layer",
            )
        }?;
        layers.push(Layer::new(kind, layer.version, payload));
    }
    Ok(layers)
}
