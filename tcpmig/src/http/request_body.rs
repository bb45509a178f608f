//! The bodies of requests.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::connection::HttpError;
use super::shared::{Incoming, Shared};
#[cfg(feature = "http2")]
use super::upload::Followed;

/// Follows a request's body: keeps as much of it as can be carried, and tells when it is over.
#[derive(Debug)]
pub(super) struct Reading(Arc<Shared>, usize);

impl Reading {
    /// Keeps so many bytes at most.
    pub(super) fn new(shared: Arc<Shared>, limit: usize) -> Self {
        Self(shared, limit)
    }

    fn read(&self, frame: &Frame<Bytes>) {
        let mut current = self.0.current();
        match frame.data_ref() {
            Some(data) => current.body.push(data, self.1),
            None => current.body.overflow(),
        }
    }

    fn is(&self, incoming: Incoming) {
        let mut current = self.0.current();
        current.incoming = incoming;
        current.changed();
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        let mut current = self.0.current();
        if current.incoming == Incoming::Arriving {
            current.incoming = Incoming::Dropped;
            current.changed();
        }
    }
}

/// The body of a request that came over a movable connection.
///
/// It is hyper's, or that of a request whose response is in the middle, which came with the connection.
#[derive(Debug)]
pub struct RequestBody(Source);

#[derive(Debug)]
enum Source {
    Hyper {
        body: hyper::body::Incoming,
        /// `None` if it was at its end from the beginning, or is now.
        watch: Option<Reading>,
    },
    Carried(Bytes),
    /// Somebody may say how far it was consumed.
    #[cfg(feature = "http2")]
    Followed(Followed),
}

impl RequestBody {
    pub(super) fn of_hyper(body: hyper::body::Incoming, watch: Option<Reading>) -> Self {
        Self(Source::Hyper { body, watch })
    }

    #[cfg(feature = "http2")]
    pub(super) fn followed(body: Followed) -> Self {
        Self(Source::Followed(body))
    }

    /// hyper's, if that is all there is to it.
    pub(super) fn into_hyper(self) -> Result<hyper::body::Incoming, Self> {
        match self.0 {
            Source::Hyper { body, watch: None } => Ok(body),
            source => Err(Self(source)),
        }
    }

    /// That of a request which was begun elsewhere.
    pub(super) fn carried(body: Bytes) -> Self {
        Self(Source::Carried(body))
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        let (body, watch) = match &mut self.0 {
            Source::Hyper { body, watch } => (body, watch),
            #[cfg(feature = "http2")]
            Source::Followed(body) => {
                return body.poll_frame(cx).map_err(HttpError::from);
            }
            Source::Carried(body) if body.is_empty() => return Poll::Ready(None),
            Source::Carried(body) => {
                return Poll::Ready(Some(Ok(Frame::data(std::mem::take(body)))));
            }
        };
        let frame = ready!(Pin::new(&mut *body).poll_frame(cx));
        if let (Some(watch), Some(Ok(frame))) = (&*watch, &frame) {
            watch.read(frame);
        }
        if (frame.is_none() || body.is_end_stream())
            && let Some(watch) = watch.take()
        {
            watch.is(Incoming::Done);
        }
        Poll::Ready(frame.map(|frame| frame.map_err(HttpError::from)))
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Source::Hyper { body, .. } => body.is_end_stream(),
            Source::Carried(body) => body.is_empty(),
            #[cfg(feature = "http2")]
            Source::Followed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Source::Hyper { body, .. } => body.size_hint(),
            Source::Carried(body) => SizeHint::with_exact(body.len() as u64),
            #[cfg(feature = "http2")]
            Source::Followed(body) => body.size_hint(),
        }
    }
}
