//! Limits on what a decoder accepts.

const MIB: usize = 1 << 20;

/// What [`Image::decode`](crate::Image::decode) accepts at most, in bytes.
///
/// Decoding never allocates more than a small multiple of its input, whatever
/// the limits are; they bound what is kept in memory and what a peer may
/// hand over.
///
/// ```
/// use tcpmig_format::Limits;
///
/// let mut limits = Limits::default();
/// limits.max_layers = 1 << 20;
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Limits {
    /// The whole image with its envelope. Default: 256 MiB.
    pub max_image: usize,
    /// Each of the three queues: sent, unsent, received. Default: 64 MiB.
    pub max_queue: usize,
    /// The payloads of all layers together. Default: 64 MiB.
    pub max_layers: usize,
    /// Any text: names of interfaces, of kinds of layers, of critical parts.
    /// Default: 255.
    pub max_text: usize,
}

impl Limits {
    /// The default, where a constant is wanted.
    pub const DEFAULT: Self = Self {
        max_image: 256 * MIB,
        max_queue: 64 * MIB,
        max_layers: 64 * MIB,
        max_text: 255,
    };
}

impl Default for Limits {
    fn default() -> Self {
        Self::DEFAULT
    }
}
