//! What moves with a connection.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tcpmig_format::{Layer, LayerReader, UnconsumedLayer};

#[cfg(feature = "http2")]
use super::http2::{HTTP2_KIND, HTTP2_VERSION};
use super::resumable::NotResumed;
use super::shared::{Handed, Middle};
use crate::handover::{Code, Refusal};

/// The kind of a session's [`Layer`].
pub const KIND: &str = "tcpmig-http";
/// Its newest version. A session that has nothing of it is of version 1.
pub const VERSION: u32 = 2;

/// What an HTTP connection is beside its socket, at a safe point.
///
/// It travels as a layer of an image: [`Session::to_layer`], [`Session::from_layers`].
#[derive(Clone, Serialize, Deserialize)]
pub struct Session {
    /// Bytes that were read and not used.
    #[serde(with = "serde_bytes")]
    pub(super) unread: Vec<u8>,
    /// Bytes that wait to be written.
    #[serde(with = "serde_bytes")]
    pub(super) unwritten: Vec<u8>,
    pub(super) response: Option<Box<Middle>>,
    /// The head of the request that made it a WebSocket.
    #[serde(default, with = "serde_bytes")]
    pub(super) websocket: Option<Vec<u8>>,
    /// A WebSocket that a handler of the service has; since version 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) handed: Option<Box<Handed>>,
    pub(super) state: Option<Stored>,
    /// An HTTP/2 connection, which is of another kind.
    #[cfg(feature = "http2")]
    #[serde(skip)]
    pub(super) http2: Option<Box<super::http2::Multiplex>>,
}

/// The application's own state of a connection.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Stored {
    pub(super) kind: String,
    pub(super) version: u32,
    #[serde(with = "serde_bytes")]
    pub(super) payload: Vec<u8>,
}

/// Why a session cannot go on here, or has no image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The connection came without a session.
    #[error("the connection carries no session")]
    Missing,
    /// The session is not one of this module, or of a version that is not known here.
    #[error(
        "a session of kind {kind:?} version {version} is not known here, which takes {KIND:?} version {VERSION}"
    )]
    Unknown {
        /// Its kind.
        kind: String,
        /// Its version.
        version: u32,
    },
    /// What the session runs over cannot go on here.
    #[error("what the session runs over cannot go on here: {0}")]
    Carrier(Refusal),
    /// What the session runs over cannot be taken apart; it goes on where it is.
    #[error("what the session runs over cannot move: {0}")]
    Unmovable(std::io::Error),
    /// Something runs above the session that this module does not know.
    #[error(transparent)]
    Unconsumed(#[from] UnconsumedLayer),
    /// The session's bytes are none.
    #[error("the session cannot be decoded: {0}")]
    Malformed(PayloadError),
    /// The application's state is of another kind or version than it is here.
    #[error("session state {kind:?} version {version} is not known here, which takes {known}")]
    UnknownState {
        /// Its kind.
        kind: String,
        /// Its version.
        version: u32,
        /// What is known.
        known: String,
    },
    /// The application's state is of the right kind and version, and cannot be decoded.
    #[error("session state {kind:?} version {version} cannot be decoded: {source}")]
    MalformedState {
        /// Its kind.
        kind: String,
        /// Its version.
        version: u32,
        /// What the decoder said.
        source: PayloadError,
    },
    /// The cursor of a response is not of the type that the service asked for.
    #[error("the cursor of the response in the middle cannot be decoded: {0}")]
    Cursor(PayloadError),
    /// The cursor of a response is of another kind or version than that of the service.
    #[error("the cursor of the response in the middle is {found}, and here it is {known}")]
    UnknownCursor {
        /// The kind and version that it has.
        found: String,
        /// Those that are known.
        known: String,
    },
    /// The connection is a WebSocket, and this server has no handler for them.
    #[error("the connection is a WebSocket, and this server has no handler for them")]
    NoWebSockets,
    /// The head of the request that made the connection a WebSocket is none.
    #[error("the request of the WebSocket cannot be read: {0}")]
    Request(String),
    /// The application does not go on with the response in the middle.
    #[error("the response in the middle cannot go on here: {0}")]
    NotResumed(String),
    /// The service did not answer in time when it was asked whether it goes on with the response in the middle, or the WebSocket.
    #[error("the service did not answer within {0:?} how it goes on")]
    NoAnswer(std::time::Duration),
    /// The connection moved here in the middle of a response, and was closed because the service did not go on with it.
    #[error(transparent)]
    Cut(#[from] NotResumed),
    /// Something cannot be encoded.
    #[error("the session cannot be encoded: {0}")]
    Encode(PayloadError),
    /// A connection that was accepted did not begin: its handshake failed.
    #[error("the connection did not begin: {0}")]
    Handshake(std::io::Error),
    /// The socket cannot be used.
    #[error("the socket: {0}")]
    Socket(#[from] std::io::Error),
}

/// Why a payload (`MessagePack`) cannot be encoded or decoded.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct PayloadError(Box<dyn std::error::Error + Send + Sync>);

impl PayloadError {
    /// What the encoder or decoder said.
    pub fn new(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self(cause.into())
    }
}

/// The payload of a value.
pub(super) fn encode(value: &impl Serialize) -> Result<Vec<u8>, SessionError> {
    let payload = rmp_serde::to_vec_named(value);
    payload.map_err(|error| SessionError::Encode(PayloadError::new(error)))
}

/// The value of a payload.
pub(super) fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, PayloadError> {
    rmp_serde::from_slice(payload).map_err(PayloadError::new)
}

/// What a source is told whose session is not taken.
impl From<SessionError> for Refusal {
    fn from(error: SessionError) -> Self {
        let code = match &error {
            SessionError::Carrier(refusal) => refusal.code,
            SessionError::Missing
            | SessionError::Unknown { .. }
            | SessionError::UnknownState { .. }
            | SessionError::UnknownCursor { .. }
            | SessionError::Unconsumed(_)
            | SessionError::NoWebSockets => Code::Session,
            SessionError::Malformed(_)
            | SessionError::MalformedState { .. }
            | SessionError::Cursor(_)
            | SessionError::Request(_) => Code::Image,
            _ => Code::Other,
        };
        Self::new(code, error.to_string())
    }
}

impl Session {
    /// The session as a layer of an image.
    ///
    /// # Errors
    ///
    /// [`SessionError::Encode`].
    pub fn to_layer(&self) -> Result<Layer, SessionError> {
        #[cfg(feature = "http2")]
        if let Some(http2) = &self.http2 {
            let payload = super::http2::encode(self, http2)?;
            return Ok(Layer::new(HTTP2_KIND, http2.version(), payload));
        }
        // Who knows version 1 only would take the WebSocket for a connection at rest.
        let version = if self.handed.is_some() { 2 } else { 1 };
        Ok(Layer::new(KIND, version, encode(self)?))
    }

    /// The session of a connection with these layers, which are to be no others.
    ///
    /// # Errors
    ///
    /// [`SessionError::Missing`], [`SessionError::Unknown`], [`SessionError::Malformed`];
    /// [`SessionError::Unconsumed`] if the session is not alone.
    pub fn from_layers(layers: &[Layer]) -> Result<Self, SessionError> {
        Self::read(LayerReader::new(layers))
    }

    /// The session of a connection of whose layers these are left: they are to be no others.
    ///
    /// # Errors
    ///
    /// Those of [`Session::from_layers`].
    pub fn read(mut layers: LayerReader<'_>) -> Result<Self, SessionError> {
        let unknown = match layers.clone().finish() {
            Ok(()) => return Err(SessionError::Missing),
            Err(UnconsumedLayer { kind, version, .. }) => SessionError::Unknown { kind, version },
        };
        #[cfg(feature = "http2")]
        if let Some(layer) = layers.next_of(HTTP2_KIND) {
            if !(1..=HTTP2_VERSION).contains(&layer.version) {
                return Err(unknown);
            }
            layers.finish()?;
            return super::http2::decode(&layer.payload);
        }
        let session = layers.next_of(KIND);
        let session = session.filter(|session| (1..=VERSION).contains(&session.version));
        let session = session.ok_or(unknown)?;
        layers.finish()?;
        decode(&session.payload).map_err(SessionError::Malformed)
    }

    /// That of a connection that has read this and used nothing of it.
    pub(super) fn at_rest(unread: Vec<u8>) -> Self {
        Self {
            unread,
            unwritten: Vec::new(),
            response: None,
            websocket: None,
            handed: None,
            state: None,
            #[cfg(feature = "http2")]
            http2: None,
        }
    }

    /// The responses in the middle; of HTTP/1 there is one at most.
    pub(super) fn responses(&self) -> impl Iterator<Item = &Middle> {
        #[cfg(feature = "http2")]
        let more = self.http2.iter().flat_map(|http2| &http2.responses);
        #[cfg(not(feature = "http2"))]
        let more: std::iter::Empty<&(u32, Middle)> = std::iter::empty();
        self.response
            .as_deref()
            .into_iter()
            .chain(more.map(|(_, middle)| middle))
    }

    /// Whether a response is in the middle.
    #[must_use]
    pub fn is_in_response(&self) -> bool {
        self.responses().next().is_some()
    }

    /// Whether it is a WebSocket.
    #[must_use]
    pub fn is_websocket(&self) -> bool {
        self.websocket.is_some() || self.handed.is_some()
    }

    /// How many bytes it carries that were read and not used, and that wait to be written.
    #[must_use]
    pub fn carried(&self) -> (usize, usize) {
        #[cfg(feature = "http2")]
        if let Some(http2) = &self.http2 {
            let (unread, queued) = http2.connection.carried();
            return (unread, queued + self.unwritten.len());
        }
        (self.unread.len(), self.unwritten.len())
    }
}

impl std::fmt::Debug for Session {
    // The bytes are the users' data: lengths only.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("unread", &self.unread.len())
            .field("unwritten", &self.unwritten.len())
            .field("in_response", &self.is_in_response())
            .field("is_websocket", &self.is_websocket())
            .field("state", &self.state.as_ref().map(|s| (&s.kind, s.version)))
            .finish()
    }
}

/// The application's own state of one connection: who logged in on it, what it counted.
///
/// [`Movable::with_state`](super::Movable::with_state) gives every connection one, requests
/// carry it as [`State`], and it moves with the connection. A target that does not know the kind and version refuses
/// the connection, which then goes on at the source.
pub trait ConnectionState: Serialize + DeserializeOwned + Default + Send + 'static {
    /// What it is.
    const KIND: &'static str;
    /// Its version; raise it when its fields change their meaning.
    const VERSION: u32;

    /// Makes it from the `MessagePack` of another version, if that one is known as well.
    ///
    /// # Errors
    ///
    /// The decoder's.
    fn upgrade(version: u32, payload: &[u8]) -> Option<Result<Self, PayloadError>> {
        let _ = (version, payload);
        None
    }
}

/// The [`ConnectionState`] of the connection that a request came over, in its extensions.
#[derive(Debug)]
pub struct State<T>(Arc<Mutex<T>>);

impl<T> Clone for State<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> State<T> {
    /// The state. Holds a lock: use it briefly, and not over an `await`.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A [`State`] without its type.
pub(super) trait AnyState: Send + Sync {
    fn store(&self) -> Result<Stored, SessionError>;
    fn extend(&self, extensions: &mut hyper::http::Extensions);
}

impl<T: ConnectionState> AnyState for State<T> {
    fn store(&self) -> Result<Stored, SessionError> {
        Ok(Stored {
            kind: T::KIND.to_owned(),
            version: T::VERSION,
            payload: encode(&*self.lock())?,
        })
    }

    fn extend(&self, extensions: &mut hyper::http::Extensions) {
        extensions.insert(self.clone());
    }
}

/// How a connection comes to its state.
pub(super) type MakeState = fn(Option<&Stored>) -> Result<Option<Arc<dyn AnyState>>, SessionError>;

pub(super) fn no_state(stored: Option<&Stored>) -> Result<Option<Arc<dyn AnyState>>, SessionError> {
    match stored {
        None => Ok(None),
        Some(stored) => Err(unknown(stored, "none".to_owned())),
    }
}

/// The state of a new connection, of one that moved.
pub(super) fn typed_state<T: ConnectionState>(
    stored: Option<&Stored>,
) -> Result<Option<Arc<dyn AnyState>>, SessionError> {
    let known = || format!("{:?} version {}", T::KIND, T::VERSION);
    let decoded = match stored {
        None => return Ok(Some(Arc::new(State(Arc::new(Mutex::new(T::default())))))),
        Some(stored) if stored.kind != T::KIND => return Err(unknown(stored, known())),
        Some(stored) if stored.version == T::VERSION => decode(&stored.payload),
        Some(stored) => {
            T::upgrade(stored.version, &stored.payload).ok_or_else(|| unknown(stored, known()))?
        }
    };
    let malformed = |source| SessionError::MalformedState {
        kind: T::KIND.to_owned(),
        version: stored.map_or(0, |stored| stored.version),
        source,
    };
    let state: T = decoded.map_err(malformed)?;
    Ok(Some(Arc::new(State(Arc::new(Mutex::new(state))))))
}

fn unknown(stored: &Stored, known: String) -> SessionError {
    SessionError::UnknownState {
        kind: stored.kind.clone(),
        version: stored.version,
        known,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session() -> Session {
        Session::at_rest(b"GET".to_vec())
    }

    #[test]
    fn only_who_knows_version_2_gets_a_handlers_websocket() {
        let mut session = session();
        assert_eq!(session.to_layer().unwrap().version, 1);
        session.handed = Some(Box::new(Handed {
            request: b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            protocol: None,
            named: None,
            cursor: Vec::new(),
        }));
        let layer = session.to_layer().unwrap();
        assert_eq!(layer.version, 2);
        let read = Session::from_layers(&[layer]).unwrap();
        assert!(read.is_websocket() && read.handed.is_some());
    }

    #[test]
    fn a_session_is_the_only_layer() {
        let layer = session().to_layer().unwrap();
        let read = |layers: &[Layer]| Session::from_layers(layers).map(|session| session.unread);
        assert_eq!(read(std::slice::from_ref(&layer)).unwrap(), b"GET");
        assert!(matches!(read(&[]), Err(SessionError::Missing)));

        let other = Layer::new("org.example.other", 7, Vec::new());
        let newer = Layer::new(KIND, VERSION + 1, Vec::new());
        for (layers, named) in [
            // Above it, below it, in its place.
            (
                [layer.clone(), other.clone()],
                "\"org.example.other\" version 7",
            ),
            (
                [other.clone(), layer.clone()],
                "\"org.example.other\" version 7",
            ),
            ([newer, layer.clone()], "\"tcpmig-http\" version 3"),
            ([layer.clone(), layer], "\"tcpmig-http\" version 1"),
        ] {
            let error = read(&layers).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
