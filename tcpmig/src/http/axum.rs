//! [`Resume`] for axum's handlers.

use axum_core::body::Body;
use axum_core::extract::FromRequestParts;
use axum_core::response::{IntoResponse, Response};
use hyper::StatusCode;
use hyper::http::request::Parts;

use super::cursor::{Cursor, Resume};
use super::session::SessionError;
#[cfg(feature = "http2")]
use super::upload::Upload;

/// Refuses the request of a response in the middle whose cursor is not known here: the connection stays where it is.
impl<C: Cursor, S: Sync> FromRequestParts<S> for Resume<C> {
    type Rejection = SessionError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, SessionError> {
        Self::of(&parts.extensions)
    }
}

/// Refuses a request whose body is in its middle and whose cursor is not known here.
#[cfg(feature = "http2")]
impl<C: Cursor, S: Sync> FromRequestParts<S> for Upload<C> {
    type Rejection = SessionError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, SessionError> {
        Self::of(&parts.extensions)
    }
}

/// 409 (Conflict), with the reason.
impl IntoResponse for SessionError {
    fn into_response(self) -> Response {
        (StatusCode::CONFLICT, self.to_string()).into_response()
    }
}

/// Makes axum's responses movable: `Sse` with its events and comments, a body from a channel or any other stream.
pub trait IntoMovable: IntoResponse + Sized {
    /// A response that goes on from this cursor, which the handler sets as it goes: [`Resume`].
    fn movable<C: Cursor>(self, at: Resume<C>) -> Response {
        at.response(self.into_response()).map(Body::new)
    }
}

impl<T: IntoResponse> IntoMovable for T {}
