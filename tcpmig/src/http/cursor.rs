//! Where a response goes on: the cursor that a handler sets beside any body.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Buf;
use futures_core::Stream;
use http_body::{Body, Frame, SizeHint};
use hyper::header::CONTENT_TYPE;
use hyper::http::Extensions;
use hyper::{Response, StatusCode};
use pin_project_lite::pin_project;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::resumable::Resumed;
use super::shared::Obstacle;
use super::{PayloadError, SessionError};

/// Where a response goes on: the number of the next event, a file and a position in it.
///
/// A target that does not know the kind and version refuses a connection in the middle of such a response, which
/// then goes on at the source. `()`, `u64` and `String` are cursors, for handlers that need no more.
pub trait Cursor: Serialize + DeserializeOwned + Clone + Send + 'static {
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

/// That of a handler which has nothing to remember, like the echo of a WebSocket.
impl Cursor for () {
    const KIND: &'static str = "nothing";
    const VERSION: u32 = 1;
}

impl Cursor for u64 {
    const KIND: &'static str = "u64";
    const VERSION: u32 = 1;
}

impl Cursor for String {
    const KIND: &'static str = "string";
    const VERSION: u32 = 1;
}

/// The kind and version of a [`Cursor`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Named {
    pub(super) kind: String,
    pub(super) version: u32,
}

/// A cursor at a safe point.
pub(super) struct Saved {
    /// `None` if it is not a [`Cursor`].
    pub(super) named: Option<Named>,
    /// Empty if the response has not begun to need one.
    pub(super) payload: Vec<u8>,
}

/// The cursor of a body, without its type.
pub(super) trait AnyCursor: Send + Sync {
    fn save(&self) -> Result<Saved, Obstacle>;

    /// Bytes that the body gave so far.
    fn yielded(&self) -> u64;

    /// The handler that has it is told to return.
    fn leaves(&self) {}

    /// Whether it says where the body goes on behind its last frame, or where a WebSocket's handler goes on.
    fn is_set(&self) -> bool {
        true
    }
}

/// How a response's extensions tell of its cursor.
#[derive(Clone)]
pub(super) struct HasCursor(pub(super) Arc<dyn AnyCursor>);

/// Where a response goes on: with it a handler makes any response movable, whatever its body is.
///
/// The handler begins where [`Resume::cursor`] says, [sets](Resume::set) the cursor with each piece that it
/// gives out, and ties the two together with [`Resume::response`] (axum: `IntoMovable::movable`).
///
/// The cursor counts from the moment at which the piece leaves the body. So it has to be set where the body is polled: by
/// [`Resume::unfold`] or the last adapter of a stream, like `map`, and not by the task at the other end of a channel, which is ahead of it.
/// A cursor that another task sets is noticed: the response cannot move then ([`Obstacle::CursorElsewhere`]), and
/// neither can one whose last piece came without a cursor ([`Obstacle::CursorNotSet`]), until a piece comes with one.
/// Comments of `text/event-stream`, like those of axum's `KeepAlive`, need none.
///
/// # WebSockets
///
/// A response that says 101 becomes movable in the same way: axum's `upgrade.on_upgrade(handler).movable(resume)`. There the cursor is
/// what the handler has to remember, and its task sets it whenever that changes. See [`websocket`](super::websocket).
#[derive(Debug)]
pub struct Resume<C>(Arc<Place<C>>);

impl<C> Clone for Resume<C> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

#[derive(Debug)]
struct Place<C>(Mutex<Now<C>>);

#[derive(Debug)]
struct Now<C> {
    /// What the request came with.
    came: Option<C>,
    /// Set, and the piece that it belongs to is still to come.
    next: Option<C>,
    /// Behind the last piece; `None` if that is the beginning.
    behind: Option<C>,
    /// The last piece came without one.
    is_missing: bool,
    /// It was set by somebody who does not know which piece comes next.
    is_elsewhere: bool,
    /// A response was made movable by it.
    is_used: bool,
    /// That response said 101: what goes on is a WebSocket's handler.
    is_socket: bool,
    /// That handler was told to return.
    is_leaving: bool,
    yielded: u64,
}

thread_local! {
    /// Whose cursor can be set on this thread: the address of its place, or [`ANY`].
    static POLLED: Cell<usize> = const { Cell::new(0) };
}

/// A service is being polled: its response is still to come.
const ANY: usize = 1;

/// While it lives a cursor may be set on this thread.
pub(super) struct Polling(usize);

impl Polling {
    /// Those of responses that are still to come.
    pub(super) fn service() -> Self {
        Self(POLLED.replace(ANY))
    }

    fn body<C>(place: &Arc<Place<C>>) -> Self {
        Self(POLLED.replace(Arc::as_ptr(place) as usize))
    }
}

impl Drop for Polling {
    fn drop(&mut self) {
        POLLED.set(self.0);
    }
}

impl<C: Cursor> Resume<C> {
    /// That of the request with these extensions.
    ///
    /// # Errors
    ///
    /// [`SessionError::UnknownCursor`], [`SessionError::Cursor`]: the request is that of a response in the middle, and its cursor
    /// is not one of this type. Whatever is not the rest of that response refuses it.
    pub fn of(extensions: &Extensions) -> Result<Self, SessionError> {
        Self::of_resumed(extensions.get())
    }

    /// That of a request with this in its extensions, or not.
    ///
    /// # Errors
    ///
    /// Those of [`Resume::of`].
    pub fn of_resumed(resumed: Option<&Resumed>) -> Result<Self, SessionError> {
        let came = match resumed {
            Some(resumed) => resumed.named_cursor()?,
            None => None,
        };
        let now = Now {
            next: None,
            behind: came.clone(),
            came,
            is_missing: false,
            is_elsewhere: false,
            is_used: false,
            is_socket: false,
            is_leaving: false,
            yielded: 0,
        };
        Ok(Self(Arc::new(Place(Mutex::new(now)))))
    }

    /// Where the response goes on; `None` if it begins.
    #[must_use]
    pub fn cursor(&self) -> Option<C> {
        self.0.lock().came.clone()
    }

    /// The response goes on here, behind the next piece that the body gives out; before there is a body, here it begins.
    pub fn set(&self, cursor: C) {
        let mut now = self.0.lock();
        if now.is_socket {
            now.behind = Some(cursor);
            return;
        }
        let polled = POLLED.get();
        let is_here = polled == Arc::as_ptr(&self.0) as usize || polled == ANY && !now.is_used;
        now.is_elsewhere |= !is_here;
        now.next = Some(cursor);
    }

    /// Whether the handler of a WebSocket has to return because the connection goes on elsewhere: then nobody is gone, and
    /// nobody need be told so. It is known when a read has failed.
    #[must_use]
    pub fn is_leaving(&self) -> bool {
        self.0.lock().is_leaving
    }

    /// A stream made from the cursor, which begins at `begin` if the response does, and sets the cursor with each item: like
    /// `futures::stream::unfold`, whose state it is.
    ///
    /// `step` gets the cursor and answers with the next item and the cursor behind it, or with `None` at the end. If the
    /// connection moves meanwhile, the future that `step` returned is dropped and the item is asked for again, from the same
    /// cursor, on the target.
    pub fn unfold<T, F, Fut>(&self, begin: C, step: F) -> Unfold<C, F, Fut>
    where
        F: FnMut(C) -> Fut,
        Fut: Future<Output = Option<(T, C)>>,
    {
        Unfold {
            next: Some(self.cursor().unwrap_or(begin)),
            at: self.clone(),
            step,
            future: None,
        }
    }

    /// Like [`Resume::response`] for a response whose body has to stay what it is, as frameworks with one type of bodies want
    /// (warp). No layer between the handler and the connection may change its bytes: that would not be noticed, but for a
    /// `content-encoding`, with which it does not move.
    pub fn mark<B>(self, response: &mut Response<B>) {
        let is_events = self.used_for(response);
        self.mark_for(response.extensions_mut(), is_events);
    }

    /// The same where the framework makes the response of what the handler answers and keeps its extensions, as tonic does of a `tonic::Response`: its
    /// status is to be 200, and its body not events.
    pub fn mark_extensions(self, extensions: &mut Extensions) {
        self.used(StatusCode::OK);
        self.mark_for(extensions, false);
    }

    fn mark_for(self, extensions: &mut Extensions, is_events: bool) {
        extensions.insert(HasCursor(self.0.clone()));
        extensions.insert(Marked {
            place: self.0,
            is_events,
        });
    }

    /// Whether the response's body is events.
    fn used_for<B>(&self, response: &Response<B>) -> bool {
        let kind = response.headers().get(CONTENT_TYPE);
        let is_events = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
        self.used(response.status());
        is_events
    }

    fn used(&self, status: StatusCode) {
        let mut now = self.0.lock();
        now.is_used = true;
        now.is_socket = status == StatusCode::SWITCHING_PROTOCOLS;
        if let Some(begin) = now.next.take() {
            now.behind = Some(begin);
        }
    }

    /// Makes a response movable: its connection can move in the middle of it, and it goes on from the cursor.
    ///
    /// When it goes on elsewhere, the service is asked again with the request; the head of that answer is dropped, because
    /// the peer has it already.
    pub fn response<B>(self, response: Response<B>) -> Response<Followed<B>> {
        let is_events = self.used_for(&response);
        let (mut parts, body) = response.into_parts();
        parts.extensions.insert(HasCursor(self.0.clone()));
        let body = Followed {
            body,
            place: self.0,
            is_events,
        };
        Response::from_parts(parts, body)
    }
}

impl<C> Place<C> {
    fn lock(&self) -> MutexGuard<'_, Now<C>> {
        // A panic elsewhere leaves whole values only.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<C: Cursor> AnyCursor for Place<C> {
    fn save(&self) -> Result<Saved, Obstacle> {
        let now = self.lock();
        if now.is_elsewhere {
            return Err(Obstacle::CursorElsewhere);
        }
        if now.is_missing {
            return Err(Obstacle::CursorNotSet);
        }
        let payload = now.behind.as_ref().map(rmp_serde::to_vec_named);
        let payload = payload.transpose().map_err(|_| Obstacle::Cursor)?;
        Ok(Saved {
            named: Some(Named {
                kind: C::KIND.to_owned(),
                version: C::VERSION,
            }),
            payload: payload.unwrap_or_default(),
        })
    }

    fn yielded(&self) -> u64 {
        self.lock().yielded
    }

    fn leaves(&self) {
        self.lock().is_leaving = true;
    }

    fn is_set(&self) -> bool {
        let now = self.lock();
        if now.is_socket {
            now.behind.is_some()
        } else {
            !now.is_missing && !now.is_elsewhere
        }
    }
}

/// A [`Place`] that a body moves on.
pub(super) trait Follow: Send + Sync {
    fn polling(self: Arc<Self>) -> Polling;
    fn gave(&self, bytes: u64, needs_cursor: bool);
}

impl<C: Cursor> Follow for Place<C> {
    fn polling(self: Arc<Self>) -> Polling {
        Polling::body(&self)
    }

    fn gave(&self, bytes: u64, needs_cursor: bool) {
        let mut now = self.lock();
        now.yielded += bytes;
        if needs_cursor {
            let next = now.next.take();
            now.is_missing = next.is_none();
            if next.is_some() {
                now.behind = next;
            }
        }
    }
}

pin_project! {
    /// The body of a response that was made movable by a [`Resume`].
    pub struct Followed<B> {
        #[pin]
        body: B,
        place: Arc<dyn Follow>,
        is_events: bool,
    }
}

/// What a body gave.
type Polled<B> = Poll<Option<Result<Frame<<B as Body>::Data>, <B as Body>::Error>>>;

/// In the extensions of a response whose body is followed on its way to hyper.
#[derive(Clone)]
pub(super) struct Marked {
    place: Arc<dyn Follow>,
    is_events: bool,
}

impl Marked {
    /// Polls the body.
    pub(super) fn poll<B: Body>(&self, body: Pin<&mut B>, cx: &mut Context<'_>) -> Polled<B> {
        follow(&self.place, self.is_events, body, cx)
    }
}

fn follow<B: Body>(
    place: &Arc<dyn Follow>,
    is_events: bool,
    body: Pin<&mut B>,
    cx: &mut Context<'_>,
) -> Polled<B> {
    let polling = place.clone().polling();
    let frame = ready!(body.poll_frame(cx));
    drop(polling);
    if let Some(Ok(frame)) = &frame
        && let Some(data) = frame.data_ref()
        && data.has_remaining()
    {
        let needs_cursor = !(is_events && is_comment(data.chunk()));
        place.gave(data.remaining() as u64, needs_cursor);
    }
    Poll::Ready(frame)
}

impl<B: Body> Body for Followed<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        follow(this.place, *this.is_events, this.body, cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

pin_project! {
    /// The stream of [`Resume::unfold`].
    #[must_use = "streams do nothing unless they are polled"]
    pub struct Unfold<C, F, Fut> {
        at: Resume<C>,
        // `None` while the step has it, and at the end.
        next: Option<C>,
        step: F,
        #[pin]
        future: Option<Fut>,
    }
}

impl<C, F, Fut, T> Stream for Unfold<C, F, Fut>
where
    C: Cursor,
    F: FnMut(C) -> Fut,
    Fut: Future<Output = Option<(T, C)>>,
{
    type Item = T;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let mut this = self.project();
        if let Some(cursor) = this.next.take() {
            this.future.set(Some((this.step)(cursor)));
        }
        let Some(future) = this.future.as_mut().as_pin_mut() else {
            return Poll::Ready(None);
        };
        let stepped = ready!(future.poll(cx));
        this.future.set(None);
        Poll::Ready(stepped.map(|(item, cursor)| {
            this.at.set(cursor.clone());
            *this.next = Some(cursor);
            item
        }))
    }
}

/// Whether a piece of an event stream tells its reader nothing.
fn is_comment(piece: &[u8]) -> bool {
    let mut lines = piece.split(|&byte| byte == b'\n');
    lines.all(|line| matches!(line, [] | [b'\r'] | [b':', ..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_of_event_streams() {
        for piece in [&b":\n\n"[..], b": still here\r\n\r\n", b":a\n:b\n\n"] {
            assert!(is_comment(piece), "{piece:?}");
        }
        for piece in [&b"data: x\n\n"[..], b":a\ndata: x\n\n", b"id: 7\n\n"] {
            assert!(!is_comment(piece), "{piece:?}");
        }
    }
}
