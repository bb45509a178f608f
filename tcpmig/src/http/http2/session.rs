//! What moves with an HTTP/2 connection.

use serde::{Deserialize, Serialize};

use super::super::session::{SessionError, Stored};
use super::super::shared::Middle;
use super::super::{head, session};
use crate::http2::{Connection, Image, put_header};

/// The kind of a session's [`Layer`](tcpmig_format::Layer), if that is HTTP/2.
pub const HTTP2_KIND: &str = "tcpmig-http2";
/// Its version: 2 if the body of a request is in its middle, else 1.
pub const HTTP2_VERSION: u32 = 2;

/// How many bytes peers may send on a connection, and on a stream, before they are told that they may send more: hyper's.
const WINDOW: i64 = 1 << 20;

/// The connection, and the responses that are in the middle.
#[derive(Clone, Serialize, Deserialize)]
pub(in super::super) struct Multiplex {
    pub(in super::super) connection: Image,
    /// By their streams, in ascending order.
    pub(in super::super) responses: Vec<(u32, Middle)>,
}

/// The layer's payload.
#[derive(Serialize)]
struct Encoded<'a> {
    #[serde(with = "serde_bytes")]
    unwritten: &'a [u8],
    multiplex: &'a Multiplex,
    state: &'a Option<Stored>,
}

/// The same, decoded.
#[derive(Deserialize)]
struct Payload {
    #[serde(with = "serde_bytes")]
    unwritten: Vec<u8>,
    multiplex: Multiplex,
    state: Option<Stored>,
}

pub(in super::super) fn encode(
    session: &session::Session,
    multiplex: &Multiplex,
) -> Result<Vec<u8>, SessionError> {
    let payload = Encoded {
        unwritten: &session.unwritten,
        multiplex,
        state: &session.state,
    };
    session::encode(&payload)
}

pub(in super::super) fn decode(payload: &[u8]) -> Result<session::Session, SessionError> {
    let payload: Payload = session::decode(payload).map_err(SessionError::Malformed)?;
    let multiplex = payload.multiplex;
    let responses = multiplex.responses.iter().map(|(id, _)| *id);
    if !responses.eq(multiplex.connection.streams()) {
        let reason = "its responses are not those of its streams";
        return Err(SessionError::Request(reason.to_owned()));
    }
    Ok(session::Session {
        unwritten: payload.unwritten,
        state: payload.state,
        http2: Some(Box::new(multiplex)),
        ..session::Session::at_rest(Vec::new())
    })
}

/// Why a connection cannot go on where HTTP/2 is not spoken.
pub(in super::super) fn not_spoken() -> SessionError {
    SessionError::Unknown {
        kind: HTTP2_KIND.to_owned(),
        version: HTTP2_VERSION,
    }
}

impl Multiplex {
    /// Whether it could go on here.
    pub(in super::super) fn check(&self, is_spoken: bool) -> Result<(), SessionError> {
        if !is_spoken {
            return Err(not_spoken());
        }
        let requests = self.requests()?;
        let mut requests: std::collections::HashMap<_, _> = requests.into_iter().collect();
        let resumed = Connection::resume(&self.connection, |id| requests.remove(&id));
        let resumed = resumed.map_err(|error| SessionError::Request(error.to_string()))?;
        if !resumed.suits(WINDOW) {
            let reason = "its peer may send more than is taken here at a time";
            return Err(SessionError::Request(reason.to_owned()));
        }
        Ok(())
    }

    /// Who knows version 1 only would take a request's body for ended.
    pub(in super::super) fn version(&self) -> u32 {
        let uploads = |(_, middle): &(u32, Middle)| middle.upload.is_some();
        if self.responses.iter().any(uploads) {
            HTTP2_VERSION
        } else {
            1
        }
    }

    /// The header blocks of the requests whose responses are in the middle.
    pub(super) fn requests(&self) -> Result<Vec<(u32, Vec<u8>)>, SessionError> {
        let requests = self.responses.iter();
        let requests = requests.map(|(id, middle)| Ok((*id, block(&middle.request)?)));
        requests.collect()
    }
}

/// The header block of a request with this head.
fn block(head: &[u8]) -> Result<Vec<u8>, SessionError> {
    let (parts, ()) = head::parse(head)?.into_parts();
    let mut block = Vec::new();
    put_header(&mut block, b":method", parts.method.as_str().as_bytes());
    let uri = &parts.uri;
    if let Some(scheme) = uri.scheme_str() {
        put_header(&mut block, b":scheme", scheme.as_bytes());
    }
    if let Some(authority) = uri.authority() {
        put_header(&mut block, b":authority", authority.as_str().as_bytes());
    }
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    put_header(&mut block, b":path", path.as_bytes());
    for (name, value) in &parts.headers {
        put_header(&mut block, name.as_str().as_bytes(), value.as_bytes());
    }
    Ok(block)
}
