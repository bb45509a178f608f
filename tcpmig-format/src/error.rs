//! Why an image cannot be encoded or decoded.

use crate::{FORMAT_VERSION, FlowError, InvalidIp, InvalidListen, InvalidTcp, MAX_LAYERS};

/// Why an [`Image`](crate::Image) cannot be encoded: it is the caller's doing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// The network layer contradicts itself.
    #[error("ip: {0}")]
    InvalidIp(#[from] InvalidIp),
    /// The listener contradicts itself.
    #[error("listener: {0}")]
    InvalidListen(#[from] InvalidListen),
    /// There are more layers than the format allows.
    #[error("{0} layers, the format allows {MAX_LAYERS}")]
    TooManyLayers(usize),
    /// A part is longer than the format allows.
    #[error("{what}: {len} bytes, the format allows {limit}")]
    TooLong {
        /// Which part.
        what: &'static str,
        /// Its length.
        len: usize,
        /// What the format allows.
        limit: usize,
    },
    /// The `MessagePack` encoder failed.
    #[error("MessagePack: {0}")]
    Serialize(String),
}

/// Why bytes are not an image that this crate reads. Errors name the place
/// and never quote queues or the payload of a layer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The image is cut off.
    #[error("cut off: {len} bytes of at least {needed}")]
    TooShort {
        /// How many bytes there are.
        len: usize,
        /// How many there have to be, as far as known.
        needed: u64,
    },
    /// The first bytes are not those of an image.
    #[error("not an image of tcpmig: the first bytes are wrong")]
    BadMagic,
    /// The image needs a newer reader.
    #[error(
        "format version {version} needs a reader of version {min_version}, this one is {FORMAT_VERSION}"
    )]
    UnsupportedVersion {
        /// The version that wrote the image.
        version: u16,
        /// The lowest version that can read it.
        min_version: u16,
    },
    /// The versions in the envelope cannot be: one is 0 or they are swapped.
    #[error("format version {version} with lowest compatible version {min_version}")]
    VersionOrder {
        /// The version that wrote the image.
        version: u16,
        /// The lowest version that can read it.
        min_version: u16,
    },
    /// A part is longer than the [`Limits`](crate::Limits) allow.
    #[error("{what}: {len} bytes, the limit is {limit}")]
    TooLong {
        /// Which part.
        what: &'static str,
        /// Its length.
        len: u64,
        /// The limit.
        limit: usize,
    },
    /// Bytes follow the end of the image.
    #[error("{count} bytes after the end of the image")]
    TrailingBytes {
        /// How many.
        count: u64,
    },
    /// The image was damaged.
    #[error("damaged: checksum is {computed:08x}, the envelope says {stored:08x}")]
    ChecksumMismatch {
        /// The checksum in the envelope.
        stored: u32,
        /// The checksum of the bytes.
        computed: u32,
    },
    /// The payload is not the `MessagePack` that the format describes.
    #[error("{place}: {reason}")]
    Malformed {
        /// The part, as in FORMAT.md: `tcp.window.snd_wnd`, `layers[1].kind`.
        place: String,
        /// What is wrong there.
        reason: String,
    },
    /// Inside the envelope, bytes follow the `MessagePack` value.
    #[error("bytes after the end of the payload's map")]
    TrailingPayload,
    /// A part that a reader must understand is not known to this one.
    #[error("critical part {0:?} is not known to format version {FORMAT_VERSION}")]
    UnknownCritical(String),
    /// A part is declared critical and missing.
    #[error("critical part {0:?} is missing")]
    MissingCritical(&'static str),
    /// A field has a value without a meaning.
    #[error("{place}: {value:?} has no meaning")]
    UnknownValue {
        /// The part, as in FORMAT.md.
        place: &'static str,
        /// The value.
        value: String,
    },
    /// An address does not have the length of its family.
    #[error("{place}: {len} bytes, an address of this family has {expected}")]
    AddressLength {
        /// The part, as in FORMAT.md.
        place: &'static str,
        /// How many bytes there are.
        len: usize,
        /// How many there have to be.
        expected: usize,
    },
    /// The addresses are not the ends of a connection.
    #[error("ip: {0}")]
    InvalidFlow(#[from] FlowError),
    /// The network layer contradicts itself.
    #[error("ip: {0}")]
    InvalidIp(#[from] InvalidIp),
    /// The image is of nothing that this reader knows.
    #[error("subject: neither a connection nor a listener")]
    NoSubject,
    /// A listener has no connection, so that an image is of one of them.
    #[error("subject: a listener and a connection in one image")]
    TwoSubjects,
    /// The listener contradicts itself.
    #[error("listener: {0}")]
    InvalidListen(#[from] InvalidListen),
    /// The transport layer contradicts itself.
    #[error("tcp: {0}")]
    InvalidTcp(#[from] InvalidTcp),
}
