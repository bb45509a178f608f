//! Where the body of a request goes on: what a handler has consumed of it.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming as Hyper;
use hyper::http::Extensions;
use serde::{Deserialize, Serialize};

use super::SessionError;
use super::cursor::{Cursor, Named};
use super::resumable::Resumed;
use super::shared::{Incoming, Obstacle, Shared};

/// How much of what is carried is given at a time, in bytes.
const PIECE: usize = 1 << 14;

/// How far a handler has come with the body of its request: with it a connection of HTTP/2 moves in the middle of that body.
///
/// The handler says with [`Upload::set`] what it has done with what the body gave; where the connection goes on, the service is asked again with the
/// same head, [`Upload::cursor`] is what was set last, and the body goes on behind it. What the body gave later is given again: up to
/// [`Movable::carry_bodies`](super::Movable::carry_bodies) bytes, and what the handler did with it meanwhile is to be undone, or done again without harm
/// (a file is cut to the length that the cursor says).
///
/// A drain waits until the handler wants more of the body. Then its future is dropped, as it is when a peer resets a stream, and nobody but the handler may
/// have the body. Without an `Upload` in the handler's hands it waits for the end of the request.
///
/// A response that has begun goes on from a cursor of its own, a [`Resume`](super::Resume): calls of gRPC that stream both ways have both.
/// Over HTTP/1 it sets nothing, and has no cursor: a drain waits for the end of the body.
pub struct Upload<C> {
    shared: Option<Arc<Shared>>,
    came: Option<C>,
}

impl<C: Clone> Clone for Upload<C> {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
            came: self.came.clone(),
        }
    }
}

impl<C> std::fmt::Debug for Upload<C> {
    // The cursor is the users' data.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upload").finish_non_exhaustive()
    }
}

/// In the extensions of a request whose body can move in its middle.
#[derive(Clone)]
pub(super) struct HasUpload {
    pub(super) shared: Arc<Shared>,
    /// What was set last where it was begun.
    pub(super) came: Option<Resumed>,
}

/// The body of a request in its middle.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Uploaded {
    /// What the cursor is, if one was set.
    pub(super) named: Option<Named>,
    #[serde(with = "serde_bytes")]
    pub(super) cursor: Vec<u8>,
    /// What has come behind it.
    #[serde(with = "serde_bytes")]
    pub(super) behind: Vec<u8>,
    /// All has come.
    pub(super) has_ended: bool,
    /// The response has begun.
    pub(super) has_response: bool,
    /// What its head said of the whole.
    pub(super) length: Option<u64>,
}

impl<C: Cursor> Upload<C> {
    /// That of the request with these extensions.
    ///
    /// # Errors
    ///
    /// [`SessionError::UnknownCursor`], [`SessionError::Cursor`]: the request was begun elsewhere, and what was set there is not of this type.
    pub fn of(extensions: &Extensions) -> Result<Self, SessionError> {
        let Some(HasUpload { shared, came }) = extensions.get() else {
            return Ok(Self {
                shared: None,
                came: None,
            });
        };
        let came = match came {
            Some(came) => came.named_cursor()?,
            None => None,
        };
        shared.current().upload.is_followed = true;
        Ok(Self {
            shared: Some(shared.clone()),
            came,
        })
    }

    /// Where the handler goes on; `None` if it begins.
    pub fn cursor(&self) -> Option<C> {
        self.came.clone()
    }

    /// All that the body has given is consumed, and here the handler goes on.
    pub fn set(&self, cursor: &C) {
        self.consumed(cursor, |upload| upload.given_len);
    }

    /// Of what the body has given since the last time, so many bytes are consumed: for who reads ahead.
    pub fn set_behind(&self, cursor: &C, bytes: usize) {
        self.consumed(cursor, |_| bytes);
    }

    /// Of what the body has given since the last time, so many messages of gRPC are consumed: their decoder reads ahead.
    pub fn set_behind_messages(&self, cursor: &C, count: usize) {
        self.consumed(cursor, |upload| messages(&upload.given, count));
    }

    fn consumed(&self, cursor: &C, count: impl FnOnce(&Progress) -> usize) {
        let Some(shared) = &self.shared else {
            return;
        };
        let payload = rmp_serde::to_vec_named(cursor);
        let mut current = shared.current();
        let upload = &mut current.upload;
        let count = count(upload);
        upload.consume(count);
        upload.is_broken = payload.is_err();
        let named = Named {
            kind: C::KIND.to_owned(),
            version: C::VERSION,
        };
        upload.cursor = payload.ok().map(|payload| (named, payload));
    }
}

/// The length of so many messages of gRPC: a byte, a length, and what is so long.
fn messages(given: &VecDeque<Bytes>, count: usize) -> usize {
    let all = given.iter().map(Bytes::len).sum();
    let mut at: usize = 0;
    for _ in 0..count {
        let Some([_, length @ ..]) = five_at(given, at) else {
            break;
        };
        at = at.saturating_add(5 + u32::from_be_bytes(length) as usize);
    }
    at.min(all)
}

fn five_at(given: &VecDeque<Bytes>, mut at: usize) -> Option<[u8; 5]> {
    let mut five = [0; 5];
    let mut count = 0;
    for piece in given {
        let rest = piece.get(at..).unwrap_or_default();
        at = at.saturating_sub(piece.len());
        let some = rest.len().min(five.len() - count);
        five[count..count + some].copy_from_slice(&rest[..some]);
        count += some;
    }
    (count == five.len()).then_some(five)
}

/// A request's body, and how far its handler has come with it.
#[derive(Default)]
pub(super) struct Progress {
    /// Somebody says how far.
    pub(super) is_followed: bool,
    /// hyper's, unless it is being polled.
    body: Option<Hyper>,
    cursor: Option<(Named, Vec<u8>)>,
    /// The cursor could not be encoded.
    is_broken: bool,
    /// What the body has given behind the cursor.
    given: VecDeque<Bytes>,
    given_len: usize,
    /// More than can be carried was given: nothing of it is kept until it is consumed.
    is_over: bool,
    limit: usize,
    /// What is there and was not given.
    ahead: VecDeque<Bytes>,
    /// Bytes that hyper has given.
    taken: u64,
    /// What ended it, if it is no data: to be given when all else is.
    last: Option<Result<Frame<Bytes>, hyper::Error>>,
    has_ended: bool,
    /// Whoever reads it waits for more.
    stands: bool,
    reader: Option<Waker>,
    length: Option<u64>,
}

impl Progress {
    /// Of a request that is given to the service now, and has come this far.
    pub(super) fn begin(
        body: Hyper,
        uploaded: Option<&Uploaded>,
        length: Option<u64>,
        limit: usize,
    ) -> Self {
        // In pieces, so that their reader can say how far it is before it has all of them.
        let behind = uploaded.map_or(&[][..], |uploaded| &uploaded.behind);
        let ahead = behind.chunks(PIECE).map(Bytes::copy_from_slice);
        let cursor = uploaded.and_then(|uploaded| {
            let named = uploaded.named.clone()?;
            Some((named, uploaded.cursor.clone()))
        });
        Self {
            has_ended: body.is_end_stream(),
            body: Some(body),
            cursor,
            ahead: ahead.collect(),
            limit,
            length,
            ..Self::default()
        }
    }

    fn consume(&mut self, count: usize) {
        let mut count = count.min(self.given_len);
        self.given_len -= count;
        if self.given_len == 0 {
            self.is_over = false;
        }
        while count > 0
            && let Some(first) = self.given.front_mut()
        {
            let some = count.min(first.len());
            first.advance(some);
            count -= some;
            if first.is_empty() {
                self.given.pop_front();
            }
        }
    }

    fn give(&mut self, data: &Bytes) {
        self.stands = false;
        if !self.is_followed {
            return;
        }
        self.given_len += data.len();
        if self.given_len > self.limit {
            self.is_over = true;
            self.given = VecDeque::new();
        }
        if !self.is_over {
            self.given.push_back(data.clone());
        }
    }

    /// The next frame of hyper's, if there is one.
    fn poll_hyper(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.has_ended || self.last.is_some() {
            return Poll::Ready(());
        }
        let Some(body) = &mut self.body else {
            self.has_ended = true;
            return Poll::Ready(());
        };
        match std::task::ready!(Pin::new(&mut *body).poll_frame(cx)) {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
                    self.taken += data.len() as u64;
                    self.ahead.push_back(data);
                    self.has_ended = body.is_end_stream();
                }
                Err(trailers) => self.last = Some(Ok(trailers)),
            },
            Some(Err(error)) => self.last = Some(Err(error)),
            None => self.has_ended = true,
        }
        Poll::Ready(())
    }

    /// Takes what hyper has, so that it can be carried; how many bytes it has given so far.
    pub(super) fn pull(&mut self, cx: &mut Context<'_>) -> u64 {
        while !self.has_ended && self.last.is_none() && self.poll_hyper(cx).is_ready() {}
        self.taken
    }

    /// The body as it is carried.
    pub(super) fn save(&self, has_response: bool) -> Result<Uploaded, Obstacle> {
        if self.is_broken {
            return Err(Obstacle::Cursor);
        }
        if self.is_over || self.last.is_some() {
            return Err(Obstacle::RequestBody);
        }
        if !has_response && !self.stands {
            return Err(Obstacle::Request);
        }
        let (named, cursor) = match &self.cursor {
            Some((named, cursor)) => (Some(named.clone()), cursor.clone()),
            None => (None, Vec::new()),
        };
        let pieces = self.given.iter().chain(&self.ahead);
        Ok(Uploaded {
            named,
            cursor,
            behind: pieces.fold(Vec::new(), |mut behind, piece| {
                behind.extend_from_slice(piece);
                behind
            }),
            has_ended: self.has_ended,
            has_response,
            length: self.length,
        })
    }

    /// Who reads it goes on.
    pub(super) fn take_reader(&mut self) -> Option<Waker> {
        self.reader.take()
    }
}

/// A [`Progress`], for its reader.
#[derive(Debug)]
pub(super) struct Followed(pub(super) Arc<Shared>);

impl Followed {
    pub(super) fn poll_frame(
        &self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let is_draining = self.0.is_draining();
        let mut current = self.0.current();
        let bodies = current.upload.limit;
        loop {
            let upload = &mut current.upload;
            let stands = is_draining && upload.is_followed;
            if !stands && let Some(data) = upload.ahead.pop_front() {
                upload.give(&data);
                let is_last = upload.has_ended && upload.ahead.is_empty();
                if !upload.is_followed {
                    current.body.push(&data, bodies);
                }
                if is_last {
                    current.incoming = Incoming::Done;
                    current.changed();
                }
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
            if !stands && let Some(last) = upload.last.take() {
                upload.has_ended = true;
                current.body.overflow();
                current.incoming = Incoming::Done;
                current.changed();
                return Poll::Ready(Some(last));
            }
            if !stands && upload.has_ended {
                current.incoming = Incoming::Done;
                current.changed();
                return Poll::Ready(None);
            }
            let is_over = upload.has_ended || upload.last.is_some();
            if is_over || upload.poll_hyper(cx).is_pending() {
                upload.stands = true;
                upload.reader = Some(cx.waker().clone());
                current.changed();
                return Poll::Pending;
            }
        }
    }

    pub(super) fn is_end_stream(&self) -> bool {
        let current = self.0.current();
        let upload = &current.upload;
        upload.has_ended && upload.ahead.is_empty() && upload.last.is_none()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        let current = self.0.current();
        let upload = &current.upload;
        let ahead: usize = upload.ahead.iter().map(Bytes::len).sum();
        let hint = upload
            .body
            .as_ref()
            .map(Body::size_hint)
            .unwrap_or_default();
        match hint.exact() {
            Some(exact) => SizeHint::with_exact(exact + ahead as u64),
            None if upload.has_ended => SizeHint::with_exact(ahead as u64),
            None => SizeHint::default(),
        }
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        let mut current = self.0.current();
        let body = current.upload.body.take();
        if current.incoming == Incoming::Arriving {
            current.incoming = Incoming::Dropped;
            current.changed();
        }
        drop(current);
        // It tells hyper, outside of the lock.
        drop(body);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_as_grpc_frames_them() {
        let given: VecDeque<_> = [
            &b"\0\0\0"[..],
            b"\0\x03abc\0\0\0\0\0",
            b"\x01\0\0\0\x01d\0\0",
        ]
        .map(Bytes::from_static)
        .into();
        let lengths = [0, 8, 13, 19, 19];
        for (count, length) in lengths.into_iter().enumerate() {
            assert_eq!(messages(&given, count), length);
        }
    }
}
