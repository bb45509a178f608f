//! A connection of which it is not known whether it is HTTP/2.

use std::future::poll_fn;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Poll, ready};

use http_body::Body;
use hyper::Request;
use hyper::header::HeaderName;
use hyper::server::conn::http1;
use hyper::service::Service;
use tokio::io::ReadBuf;

use super::begin::Maker;
use super::connection::{About, Asked, Drained, Ends, Stage};
use super::gate::Gate;
use super::http1::Ending;
use super::http2::{Begin, Http2, Recipe, is_preface};
use super::request_body::RequestBody;
use super::service::BoxError;
use super::session::Session;
use super::shared::Shared;
use super::stages::Next;
use crate::session::Carrier;

/// Waits for enough of the client's first bytes.
pub(super) struct Opening<S, C> {
    stream: C,
    /// What was read, and what waits to be written before anything else.
    session: Session,
    begin: Begin<S>,
    builder: (http1::Builder, HeaderName),
}

/// What came of the first bytes.
enum First {
    Http1,
    Http2,
    /// It is to be drained.
    Asked,
    /// It is to end.
    Ends,
    Failed,
}

/// Whether a connection at rest may become HTTP/2: it has read nothing else.
pub(super) fn may_be_http2(session: &Session) -> bool {
    !session.is_in_response()
        && session.unwritten.is_empty()
        && is_preface(&session.unread) != Some(false)
}

impl<S, C: Carrier> Opening<S, C> {
    pub(super) fn new(
        stream: C,
        session: Session,
        begin: Begin<S>,
        builder: (http1::Builder, HeaderName),
    ) -> Self {
        Self {
            stream,
            session,
            begin,
            builder,
        }
    }

    async fn first(
        &mut self,
        asked: &mut Asked<'_, impl Future<Output = ()>>,
        ends: &mut Ends,
    ) -> First {
        poll_fn(|cx| {
            loop {
                match is_preface(&self.session.unread) {
                    Some(true) => return Poll::Ready(First::Http2),
                    Some(false) => return Poll::Ready(First::Http1),
                    None => {}
                }
                let mut space = [const { MaybeUninit::uninit() }; 1024];
                let mut read = ReadBuf::uninit(&mut space);
                match Pin::new(&mut self.stream).poll_read(cx, &mut read) {
                    // hyper says what the end of it means.
                    Poll::Ready(Ok(())) if read.filled().is_empty() => {
                        return Poll::Ready(First::Http1);
                    }
                    Poll::Ready(Ok(())) => self.session.unread.extend_from_slice(read.filled()),
                    Poll::Ready(Err(_)) => return Poll::Ready(First::Failed),
                    Poll::Pending => break,
                }
            }
            if ends.poll(cx).is_ready() {
                return Poll::Ready(First::Ends);
            }
            ready!(asked.poll(cx));
            Poll::Ready(First::Asked)
        })
        .await
    }

    pub(super) async fn run<B>(
        mut self: Box<Self>,
        asked: &mut Asked<'_, impl Future<Output = ()>>,
        ends: &mut Ends,
        about: &About,
        service: &Arc<S>,
    ) -> Next<S, C>
    where
        S: Service<Request<RequestBody>, Response = hyper::Response<B>>,
        S::Error: Into<BoxError>,
        B: Body + 'static,
        B::Error: Into<BoxError>,
    {
        let first = self.first(asked, ends).await;
        let Self {
            stream,
            mut session,
            begin,
            builder: (builder, request_id),
        } = *self;
        match first {
            First::Http1 => {
                let maker = Maker {
                    builder: &builder,
                    service,
                    request_id: &request_id,
                };
                let http = maker.resume(stream, session, about, None);
                Next::Stage(Stage::Http(Box::new(http)))
            }
            First::Http2 => {
                let recipe = Recipe {
                    begin: &begin,
                    service,
                    request_id: &request_id,
                    about,
                };
                let http = Http2::new(&recipe, stream, &session.unread, &session.unwritten);
                Next::Stage(Stage::Http2(Box::new(http)))
            }
            First::Asked => {
                let state = about.known.state.as_ref().map(|state| state.store());
                session.state = match state.transpose() {
                    Ok(state) => state,
                    Err(error) => {
                        tracing::warn!(flow = %about.flow, %error, "a drained connection is closed");
                        return Next::Closed;
                    }
                };
                Next::Drained(Drained { stream, session })
            }
            First::Ends => {
                let gate = Gate::resume(stream, Shared::new(), None, &[], &session.unwritten);
                Next::Stage(Stage::Ending(Ending::new(gate)))
            }
            First::Failed => Next::Closed,
        }
    }
}
