//! The image of a connection.

use crate::schema::{self, Source, Writer};
use crate::{
    DecodeError, EncodeError, Envelope, IpImage, Layer, LayerReader, Limits, ListenImage,
    SecretBytes, SocketOptions, TcpImage, envelope, layer,
};

/// The version of the format that this crate writes.
pub const FORMAT_VERSION: u16 = 3;

/// The lowest version of the format whose readers understand what this crate writes.
pub const LOWEST_COMPATIBLE_VERSION: u16 = 3;

/// The most bytes that a queue, or the payloads of all layers together, can have: 1 GiB, which is
/// also the largest window (RFC 7323).
pub const MAX_BYTES: usize = 1 << 30;

/// The longest text that the format allows, in bytes.
pub(crate) const MAX_TEXT: usize = 255;

/// What an image is of, and the layers that run on it.
///
/// ```
/// use tcpmig_format::{FourTuple, Image, IpImage, Layer, Limits, SocketFamily};
///
/// let flow: FourTuple = "10.0.0.1:443,10.0.0.9:51234".parse()?;
/// let mut image = Image::new(IpImage::new(flow, SocketFamily::Ipv4));
/// // From the bottom up.
/// image.layers.push(Layer::new("org.example.tls", 1, &b"keys"[..]));
/// image.layers.push(Layer::new("org.example.chat", 3, &b"room 7"[..]));
///
/// let bytes = image.encode()?;
/// assert_eq!(Image::decode(&bytes, &Limits::default())?, image);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # What a reader does not know
///
/// [`Image::decode`] skips fields that it does not know, and an image that is encoded again is
/// without them: its writer is this crate then. To pass an image on as it is, pass its bytes on.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Image {
    /// When the image was taken: microseconds since 1970-01-01 00:00 UTC by the clock of the host that took it.
    pub taken: Option<u64>,
    /// What it is of.
    pub subject: Subject,
    /// What runs on it, from the bottom up: TLS comes before the HTTP inside it. Whoever takes the
    /// image has to consume each of them, see [`Image::read_layers`].
    pub layers: Vec<Layer>,
}

/// What an image is of.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Subject {
    /// A connection. What is known of one takes some 700 bytes, and images pass through many hands.
    Connection(Box<ConnectionImage>),
    /// A listener.
    Listener(Box<ListenImage>),
}

impl Default for Subject {
    /// A connection of which nothing is said.
    fn default() -> Self {
        Self::Connection(Box::default())
    }
}

/// A connection, in two parts of which each is of use on its own. To restore it takes both.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct ConnectionImage {
    /// Addresses and routing.
    pub ip: Option<IpImage>,
    /// The connection.
    pub tcp: Option<TcpImage>,
}

impl ConnectionImage {
    /// A whole connection.
    #[must_use]
    pub fn new(ip: IpImage, tcp: TcpImage) -> Self {
        Self {
            ip: Some(ip),
            tcp: Some(tcp),
        }
    }
}

impl From<ConnectionImage> for Subject {
    fn from(connection: ConnectionImage) -> Self {
        Self::Connection(Box::new(connection))
    }
}

impl From<ListenImage> for Subject {
    fn from(listener: ListenImage) -> Self {
        Self::Listener(Box::new(listener))
    }
}

/// A connection of which only addresses and routing are known.
impl From<IpImage> for Subject {
    fn from(ip: IpImage) -> Self {
        let (ip, tcp) = (Some(ip), None);
        ConnectionImage { ip, tcp }.into()
    }
}

/// A connection whose addresses are not known.
impl From<TcpImage> for Subject {
    fn from(tcp: TcpImage) -> Self {
        let (ip, tcp) = (None, Some(tcp));
        ConnectionImage { ip, tcp }.into()
    }
}

impl Image {
    /// The image of this subject, without a layer and without a time.
    pub fn new(subject: impl Into<Subject>) -> Self {
        Self {
            taken: None,
            subject: subject.into(),
            layers: Vec::new(),
        }
    }

    /// The connection, if the image is of one.
    #[must_use]
    pub fn connection(&self) -> Option<&ConnectionImage> {
        match &self.subject {
            Subject::Connection(connection) => Some(connection),
            Subject::Listener(_) => None,
        }
    }

    /// The connection, if the image is of one, to be changed.
    #[must_use]
    pub fn connection_mut(&mut self) -> Option<&mut ConnectionImage> {
        match &mut self.subject {
            Subject::Connection(connection) => Some(connection),
            Subject::Listener(_) => None,
        }
    }

    /// Addresses and routing of the connection.
    #[must_use]
    pub fn ip(&self) -> Option<&IpImage> {
        self.connection()?.ip.as_ref()
    }

    /// The same, to be changed.
    #[must_use]
    pub fn ip_mut(&mut self) -> Option<&mut IpImage> {
        self.connection_mut()?.ip.as_mut()
    }

    /// TCP's part of the connection.
    #[must_use]
    pub fn tcp(&self) -> Option<&TcpImage> {
        self.connection()?.tcp.as_ref()
    }

    /// The listener, if the image is of one.
    #[must_use]
    pub fn listener(&self) -> Option<&ListenImage> {
        match &self.subject {
            Subject::Connection(_) => None,
            Subject::Listener(listener) => Some(listener),
        }
    }

    /// The layers, to be consumed from the bottom up.
    pub fn read_layers(&self) -> LayerReader<'_> {
        LayerReader::new(&self.layers)
    }

    /// The image as bytes. Equal images give equal bytes.
    ///
    /// They hold the queues and the payloads as they are: copies of them are
    /// the caller's to wipe.
    ///
    /// # Errors
    ///
    /// [`EncodeError`] if a part contradicts itself or is too long.
    pub fn encode(&self) -> Result<SecretBytes, EncodeError> {
        let versions = (FORMAT_VERSION, LOWEST_COMPATIBLE_VERSION);
        self.encode_with(versions, schema::write)
    }

    /// The image as the writer of this version wrote it, without what came later. Of the layers,
    /// versions 1 and 2 have room for the lowest.
    #[cfg(any(test, feature = "arbitrary"))]
    pub(crate) fn encode_as(&self, version: u16) -> Result<SecretBytes, EncodeError> {
        let lowest = if version < 3 { 1 } else { 3 };
        self.encode_with((version, lowest), |image, to| {
            schema::write_as(version, image, to)
        })
    }

    fn encode_with(
        &self,
        (version, lowest): (u16, u16),
        write: impl FnOnce(&Self, &mut Writer<'_>) -> Result<(), EncodeError>,
    ) -> Result<SecretBytes, EncodeError> {
        self.check()?;
        // Large enough to grow seldom: that costs a copy.
        let mut bytes = Vec::with_capacity(self.size_estimate());
        bytes.resize(Envelope::LEN, 0);
        let mut payload = Writer::new(&mut bytes);
        write(self, &mut payload)?;
        let checksum = payload.finish();
        envelope::seal(&mut bytes, version, lowest, checksum.as_ref());
        Ok(bytes.into())
    }

    fn check(&self) -> Result<(), EncodeError> {
        match &self.subject {
            Subject::Connection(connection) => {
                if let Some(ip) = &connection.ip {
                    ip.check()?;
                }
            }
            Subject::Listener(listener) => listener.check()?,
        }
        layer::check(&self.layers)
    }

    /// The image in `bytes`, which must end with it. Queues and payloads are copied.
    ///
    /// Images of earlier versions are read too: their `app` is the only layer.
    ///
    /// # Errors
    ///
    /// [`DecodeError`], which says what is wrong and where.
    pub fn decode(bytes: &[u8], limits: &Limits) -> Result<Self, DecodeError> {
        let (envelope, payload) = envelope::open(bytes, limits.max_image)?;
        schema::read(envelope.version, payload, Source::Copied, limits)
    }

    /// Like [`Image::decode`], but queues and payloads stay where they are, in the memory of `bytes`, which is zeroed
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
    /// The same as [`Image::decode`].
    pub fn decode_shared(mut bytes: SecretBytes, limits: &Limits) -> Result<Self, DecodeError> {
        // A second handle to the same memory, which parts are taken from while the payload is borrowed.
        let mut whole = bytes.clone_shared();
        let (envelope, payload) = envelope::open(&bytes, limits.max_image)?;
        let source = Source::Shared(&mut whole);
        schema::read(envelope.version, payload, source, limits)
    }

    /// Hardly less than the length of the encoded image: of most connections, the names and numbers of all fields take less
    /// than 1 KiB. More is seldom needed, and an allocation of more than that takes several times as long.
    fn size_estimate(&self) -> usize {
        let filter = |socket: &SocketOptions| socket.filter.as_ref().map_or(0, |all| all.len() * 8);
        let subject = match &self.subject {
            Subject::Connection(connection) => connection.tcp.as_ref().map_or(0, |tcp| {
                let (send, receive) = (tcp.send(), tcp.receive());
                let queues = send.sent.len() + send.unsent.len() + receive.queue.len();
                queues + filter(tcp.socket())
            }),
            Subject::Listener(listener) => filter(&listener.socket),
        };
        let layers = self.layers.iter().map(|layer| 320 + layer.payload.len());
        1024 + subject + layers.sum::<usize>()
    }
}
