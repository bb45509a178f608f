//! Response bodies that go on elsewhere.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame};
use hyper::{Response, StatusCode};
use pin_project_lite::pin_project;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::SessionError;
use super::cursor::{AnyCursor, Cursor, HasCursor, Named, Saved};
use super::session::decode;
use super::shared::{Handed, Middle, Obstacle};

struct Place<C>(Mutex<(C, u64)>);

impl<C: Serialize + Send> AnyCursor for Place<C> {
    fn save(&self) -> Result<Saved, Obstacle> {
        let payload = rmp_serde::to_vec_named(&self.lock().0);
        Ok(Saved {
            named: None,
            payload: payload.map_err(|_| Obstacle::Cursor)?,
        })
    }

    fn yielded(&self) -> u64 {
        self.lock().1
    }
}

impl<C> Place<C> {
    fn lock(&self) -> std::sync::MutexGuard<'_, (C, u64)> {
        // A panic elsewhere leaves whole values only.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pin_project! {
    /// A response body made from a cursor: an ordinary value (which file, how far; the number of the last
    /// event) that moves with the connection and says where the body goes on.
    ///
    /// `step` gets the cursor and answers with the next bytes and the cursor behind them, or with
    /// `None` at the end. If the connection moves meanwhile, the future that `step` returned is
    /// dropped and the bytes are asked for again, from the same cursor, on the target: give an
    /// empty frame with a new cursor before what must not be done twice.
    ///
    /// Answer with [`Resumable::response`], which tells the connection that it can move in the middle of this
    /// response. Layers that change the bytes of the body (compression) make it wait
    /// for its end, like a body of any other kind ([`Obstacle::Changed`](super::Obstacle::Changed)).
    pub struct Resumable<C, F, Fut> {
        place: Arc<Place<C>>,
        step: F,
        #[pin]
        future: Option<Fut>,
        ended: bool,
    }
}

impl<C, F, Fut, E> Resumable<C, F, Fut>
where
    C: Serialize + Clone + Send + 'static,
    F: FnMut(C) -> Fut,
    Fut: Future<Output = Result<Option<(Bytes, C)>, E>>,
{
    /// A body that goes on from `cursor`.
    pub fn new(cursor: C, step: F) -> Self {
        Self {
            place: Arc::new(Place(Mutex::new((cursor, 0)))),
            step,
            future: None,
            ended: false,
        }
    }

    /// A response with this body: 200 and no headers.
    ///
    /// Set its status, its type and, if it is known, `content-length` as for the first answer. When the body
    /// goes on elsewhere, the peer has that head already: it is dropped, and the length follows from
    /// what was sent.
    pub fn response(self) -> Response<Self> {
        let cursor = HasCursor(self.place.clone());
        let mut response = Response::new(self);
        response.extensions_mut().insert(cursor);
        response
    }
}

impl<C, F, Fut, E> Body for Resumable<C, F, Fut>
where
    C: Clone,
    F: FnMut(C) -> Fut,
    Fut: Future<Output = Result<Option<(Bytes, C)>, E>>,
{
    type Data = Bytes;
    type Error = E;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, E>>> {
        let mut this = self.project();
        if *this.ended {
            return Poll::Ready(None);
        }
        if this.future.is_none() {
            let cursor = this.place.lock().0.clone();
            this.future.set(Some((this.step)(cursor)));
        }
        let Some(future) = this.future.as_mut().as_pin_mut() else {
            return Poll::Ready(None);
        };
        let stepped = ready!(future.poll(cx));
        this.future.set(None);
        Poll::Ready(match stepped {
            Ok(Some((bytes, cursor))) => {
                let mut place = this.place.lock();
                place.0 = cursor;
                place.1 += bytes.len() as u64;
                Some(Ok(Frame::data(bytes)))
            }
            Ok(None) => {
                *this.ended = true;
                None
            }
            Err(error) => {
                *this.ended = true;
                Some(Err(error))
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}

/// In the extensions of a request whose response is in the middle: the service must answer with
/// the rest of it, as a [`Resumable`] from this cursor or made movable by [`Resume`](super::Resume), which reads it.
///
/// The request has its method, target, version and headers, those of its body excepted, and an empty body.
#[derive(Debug, Clone)]
pub struct Resumed {
    named: Option<Named>,
    payload: Arc<[u8]>,
}

impl Resumed {
    pub(super) fn of_socket(handed: &Handed) -> Self {
        Self {
            named: handed.named.clone(),
            payload: handed.cursor[..].into(),
        }
    }

    /// How far a handler had come with a body, if it has said so.
    #[cfg(feature = "http2")]
    pub(super) fn of_upload(uploaded: &super::upload::Uploaded) -> Option<Self> {
        Some(Self {
            named: Some(uploaded.named.clone()?),
            payload: uploaded.cursor[..].into(),
        })
    }

    pub(super) fn of(middle: &Middle) -> Self {
        Self {
            named: middle.named.clone(),
            payload: middle.cursor[..].into(),
        }
    }

    /// Where the body goes on.
    ///
    /// # Errors
    ///
    /// [`SessionError::Cursor`] if it is not a cursor of this type. The response cannot go on then:
    /// whatever the service answers, the connection is closed.
    pub fn cursor<C: DeserializeOwned>(&self) -> Result<C, SessionError> {
        decode(&self.payload).map_err(SessionError::Cursor)
    }

    /// The same, if it is of the right kind; `None` if the response had not come to a cursor.
    pub(super) fn named_cursor<C: Cursor>(&self) -> Result<Option<C>, SessionError> {
        let unknown = || SessionError::UnknownCursor {
            found: match &self.named {
                Some(Named { kind, version }) => format!("{kind} version {version}"),
                None => "of no kind".to_owned(),
            },
            known: format!("{} version {}", C::KIND, C::VERSION),
        };
        let named = self.named.as_ref().filter(|named| named.kind == C::KIND);
        let version = named.ok_or_else(unknown)?.version;
        let decoded = if self.payload.is_empty() {
            return Ok(None);
        } else if version == C::VERSION {
            decode(&self.payload)
        } else {
            C::upgrade(version, &self.payload).ok_or_else(unknown)?
        };
        decoded.map(Some).map_err(SessionError::Cursor)
    }
}

/// Why a response in the middle did not go on: the connection is closed, because its peer has the
/// beginning of the response and nothing else can follow it.
///
/// It is logged as a warning with the connection's flow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotResumed {
    /// The service answered the resumed request with something else than the rest of the
    /// response: it does not know the target here, an extractor refused the request, a limit was
    /// reached.
    #[error(
        "the service answered the request of a response in the middle with {status} and no rest of that response: {reason:?}"
    )]
    Answered {
        /// The answer's status.
        status: StatusCode,
        /// The beginning of the answer's body.
        reason: String,
    },
    /// The service, or the rest that it answered with, failed; the cause.
    #[error("the rest of a response in the middle failed: {0}")]
    Failed(String),
    /// The service answered the request of a WebSocket without a 101 (Switching Protocols) that is movable.
    #[error(
        "the service answered the request of a WebSocket with {status} and did not take it: {reason:?}"
    )]
    NotTaken {
        /// The answer's status.
        status: StatusCode,
        /// The beginning of the answer's body.
        reason: String,
    },
    /// The service takes the WebSocket, but not as its peer was told.
    #[error("the service takes the WebSocket with {here}, and its peer was told {there}")]
    OtherTerms {
        /// What the service says.
        here: String,
        /// What the peer was told.
        there: String,
    },
}

#[cfg(test)]
mod tests {
    use super::super::PayloadError;
    use super::*;

    fn resumed(kind: &str, version: u32, payload: &[u8]) -> Resumed {
        Resumed {
            named: Some(Named {
                kind: kind.to_owned(),
                version,
            }),
            payload: payload.into(),
        }
    }

    #[derive(Debug, Clone, PartialEq, Serialize, serde::Deserialize)]
    struct Page(u64);

    impl Cursor for Page {
        const KIND: &'static str = "page";
        const VERSION: u32 = 2;

        /// Version 1 counted from 0.
        fn upgrade(version: u32, payload: &[u8]) -> Option<Result<Self, PayloadError>> {
            (version == 1).then(|| Ok(Self(decode::<u64>(payload)? + 1)))
        }
    }

    #[test]
    fn a_cursor_has_a_kind_and_a_version() {
        let seven = rmp_serde::to_vec_named(&Page(7)).unwrap();
        let cursor = |resumed: Resumed| resumed.named_cursor::<Page>();
        assert_eq!(cursor(resumed("page", 2, &seven)).unwrap(), Some(Page(7)));
        assert_eq!(cursor(resumed("page", 1, &seven)).unwrap(), Some(Page(8)));
        assert_eq!(cursor(resumed("page", 2, b"")).unwrap(), None);
        let nameless = Resumed {
            named: None,
            payload: seven[..].into(),
        };
        for (bad, named) in [
            (resumed("page", 3, &seven), "page version 3"),
            (resumed("leaf", 2, &seven), "leaf version 2"),
            (nameless, "of no kind"),
        ] {
            let error = cursor(bad).unwrap_err().to_string();
            assert!(
                error.contains(named) && error.contains("page version 2"),
                "{error}"
            );
        }
        let error = cursor(resumed("page", 2, b"\xc1")).unwrap_err();
        assert!(matches!(error, SessionError::Cursor(_)), "{error}");
    }
}
