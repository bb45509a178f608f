//! The image of a connection.

use crate::schema::{self, Source, Writer};
use crate::{
    DecodeError, EncodeError, Envelope, InvalidListen, IpImage, Limits, ListenImage, Octets,
    TcpImage, envelope,
};

/// The version of the format that this crate writes.
pub const FORMAT_VERSION: u16 = 2;

/// The lowest version of the format whose readers understand what this crate writes.
pub const LOWEST_COMPATIBLE_VERSION: u16 = 1;

/// The most octets that a queue or the payload of an application can have:
/// 1 GiB, which is also the largest window (RFC 7323).
pub const MAX_OCTETS: usize = 1 << 30;

/// The longest text that the format allows, in octets.
const MAX_TEXT: usize = 255;

/// A connection, in up to three layers, each of use on its own, or a listener.
///
/// ```
/// use tcpmig_format::{AppImage, Image, Limits, Octets};
///
/// let image = Image {
///     app: Some(AppImage {
///         kind: "org.example.chat".into(),
///         version: 1,
///         payload: Octets::from(&b"state"[..]),
///     }),
///     ..Image::default()
/// };
/// let bytes = image.encode()?;
/// assert_eq!(Image::decode(&bytes, &Limits::default())?, image);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Image {
    /// When the image was taken: microseconds since 1970-01-01 00:00 UTC by the clock of the host that took it.
    pub taken: Option<u64>,
    /// Addresses and routing.
    pub ip: Option<IpImage>,
    /// The connection.
    pub tcp: Option<TcpImage>,
    /// The session that runs on it.
    pub app: Option<AppImage>,
    /// A listener, which has neither `ip` nor `tcp` beside it.
    pub listen: Option<ListenImage>,
}

/// The session of an application, opaque to this crate.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct AppImage {
    /// What `payload` is, at most 255 octets.
    pub kind: String,
    /// The version of `payload`, counted by its kind.
    pub version: u32,
    /// The state of the session.
    pub payload: Octets,
}

impl Image {
    /// The image as octets. Equal images give equal octets.
    ///
    /// They hold the queues and the payload as they are: copies of them are
    /// the caller's to wipe.
    ///
    /// # Errors
    ///
    /// [`EncodeError`] if a layer contradicts itself or is too long.
    pub fn encode(&self) -> Result<Octets, EncodeError> {
        self.encode_with(FORMAT_VERSION, schema::write)
    }

    /// The image as the writer of this version wrote it, without what came later.
    #[cfg(any(test, feature = "arbitrary"))]
    pub(crate) fn encode_as(&self, version: u16) -> Result<Octets, EncodeError> {
        self.encode_with(version, |image, to| schema::write_as(version, image, to))
    }

    fn encode_with(
        &self,
        version: u16,
        write: impl FnOnce(&Self, &mut Writer<'_>) -> Result<(), EncodeError>,
    ) -> Result<Octets, EncodeError> {
        self.check()?;
        // Large enough to never grow: that would cost a copy and leave the
        // queues behind in freed memory.
        let mut bytes = Vec::with_capacity(self.size_estimate());
        bytes.resize(Envelope::LEN, 0);
        let mut payload = Writer::new(&mut bytes);
        write(self, &mut payload)?;
        let checksum = payload.finish();
        envelope::seal(&mut bytes, version, LOWEST_COMPATIBLE_VERSION, &checksum);
        Ok(bytes.into())
    }

    fn check(&self) -> Result<(), EncodeError> {
        if let Some(ip) = &self.ip {
            ip.check()?;
        }
        self.check_listen()?;
        if let Some(app) = &self.app {
            for (what, len, limit) in [
                ("app.kind", app.kind.len(), MAX_TEXT),
                ("app.payload", app.payload.len(), MAX_OCTETS),
            ] {
                if len > limit {
                    return Err(EncodeError::TooLong { what, len, limit });
                }
            }
        }
        Ok(())
    }

    /// The image in `bytes`, which must end with it. Queues and payload are copied.
    ///
    /// # Errors
    ///
    /// [`DecodeError`], which says what is wrong and where.
    pub fn decode(bytes: &[u8], limits: &Limits) -> Result<Self, DecodeError> {
        let (envelope, payload) = envelope::open(bytes, limits.max_image)?;
        schema::read(envelope.version, payload, Source::Copied, limits)
    }

    /// As [`Image::decode`], but queues and payload stay where they are, in the memory of `bytes`, which is zeroed
    /// when the last of them is dropped; on failure at once.
    ///
    /// ```
    /// use tcpmig_format::{Image, Limits};
    ///
    /// # let bytes = Image::default().encode()?;
    /// let image = Image::decode_shared(bytes, &Limits::default())?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Image::decode`].
    pub fn decode_shared(mut bytes: Octets, limits: &Limits) -> Result<Self, DecodeError> {
        // A second handle to the same memory, which parts are taken from while the payload is borrowed.
        let mut whole = bytes.clone_shared();
        let (envelope, payload) = envelope::open(&bytes, limits.max_image)?;
        let source = Source::Shared(&mut whole);
        schema::read(envelope.version, payload, source, limits)
    }

    /// Whether the listener, if there is one, agrees with itself and with what is beside it.
    pub(crate) fn check_listen(&self) -> Result<(), InvalidListen> {
        let Some(listen) = &self.listen else {
            return Ok(());
        };
        if self.ip.is_some() || self.tcp.is_some() {
            return Err(InvalidListen::Connection);
        }
        listen.check()
    }

    /// At least the length of the encoded image: the names and numbers of all
    /// fields take less than 2 KiB, checked texts less than 1 KiB.
    fn size_estimate(&self) -> usize {
        let queues = self.tcp.as_ref().map_or(0, |tcp| {
            tcp.send().sent.len() + tcp.send().unsent.len() + tcp.receive().queue.len()
        });
        let app = self.app.as_ref().map_or(0, |app| app.payload.len());
        4096 + queues + app
    }
}
