//! Running a connection until it is drained.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1::Connection;
use hyper::service::HttpService;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::sleep;

use super::Gate;

/// A connection that stands at a safe point.
#[derive(Debug)]
pub struct Drained {
    /// The socket.
    pub stream: TcpStream,
    /// Octets that were read from it and not used.
    pub unread: Bytes,
    /// Octets that wait to be written to it.
    pub unwritten: BytesMut,
}

/// How a run of a connection ended.
#[derive(Debug)]
pub enum Driven {
    /// The connection is over.
    Closed,
    /// It was drained.
    Drained(Drained),
}

/// Runs a connection until it is over or `asked` is ready, and then drains it.
///
/// From then on nothing is read. What hyper holds still goes to the socket for as long as `settle`;
/// what a slow peer has not made room for by then is kept and comes back in
/// [`Drained::unwritten`].
///
/// Bodies in the middle of a response have to stop while [`Drain::is_on`](super::Drain::is_on).
///
/// # Errors
///
/// hyper's; the connection is then closed.
pub async fn drive<S, B>(
    mut connection: Connection<TokioIo<Gate>, S>,
    drain: &super::Drain,
    asked: impl Future<Output = ()>,
    settle: Duration,
) -> hyper::Result<Driven>
where
    S: HttpService<Incoming, ResBody = B> + Unpin,
    S::Future: Unpin,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    B: Body + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let mut asked = pin!(asked);
    let closed = poll_fn(|cx| {
        if let Poll::Ready(ended) = connection.poll_without_shutdown(cx) {
            return Poll::Ready(ended.map(|()| true));
        }
        asked.as_mut().poll(cx).map(|()| Ok(false))
    })
    .await?;
    if !closed {
        drain.stop();
        let mut late = pin!(sleep(settle));
        poll_fn(|cx| {
            if let Poll::Ready(ended) = connection.poll_without_shutdown(cx) {
                return Poll::Ready(ended);
            }
            if !drain.waits() {
                return Poll::Ready(Ok(()));
            }
            late.as_mut().poll(cx).map(Ok)
        })
        .await?;
        // With every write taken at once, one more poll brings out the rest.
        drain.absorb();
        let rest = poll_fn(|cx| Poll::Ready(connection.poll_without_shutdown(cx))).await;
        if let Poll::Ready(Err(error)) = rest {
            return Err(error);
        }
    }
    let parts = connection.into_parts();
    let (stream, unread, unwritten) = parts.io.into_inner().into_parts();
    if closed {
        close(stream).await;
        return Ok(Driven::Closed);
    }
    let unread = if unread.is_empty() {
        parts.read_buf
    } else {
        [parts.read_buf, unread].concat().into()
    };
    Ok(Driven::Drained(Drained {
        stream,
        unread,
        unwritten,
    }))
}

/// Ends the stream as hyper would have.
async fn close(mut stream: TcpStream) {
    // The peer may have closed it first.
    let _ = tokio::io::AsyncWriteExt::shutdown(&mut stream).await;
}
