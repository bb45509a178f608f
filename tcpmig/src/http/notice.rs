//! What a server is told of connections that move.

use std::net::SocketAddr;
use std::sync::Arc;

use super::doing::request_of;
use super::session::Session;

/// A connection moved, or did not: [`Movable::on_move`](super::Movable::on_move).
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Notice {
    /// What became of it.
    pub what: Noticed,
    /// Its peer.
    pub peer: SocketAddr,
    /// The method and target of the request that it is in the middle of, if it is: as in `GET /events`.
    pub request: Option<String>,
}

/// What became of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Noticed {
    /// It left, and lives elsewhere.
    Left,
    /// It was to leave, and goes on here.
    Kept,
    /// It came from elsewhere, and goes on here.
    Resumed,
}

/// Who is told.
pub(super) type Tell = Arc<dyn Fn(&Notice) + Send + Sync>;

/// The request that a connection with this session is in the middle of.
pub(super) fn request(session: &Session) -> Option<String> {
    let middle = session.responses().next().map(|middle| &middle.request);
    let handed = session.handed.as_ref().map(|handed| &handed.request);
    let head = middle.or(handed).or(session.websocket.as_ref());
    head.and_then(|head| request_of(head))
}
