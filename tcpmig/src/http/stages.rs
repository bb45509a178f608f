//! What a connection does, stage by stage.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::{Poll, ready};

use http_body::Body;
use hyper::Request;
use hyper::service::Service;
use tokio::time::sleep;

use super::connection::{About, Asked, ConnectionError, Drained, Ends, Stage, Times, Upgraded};
use super::http1::{Ending, Http, Left, Taken, Upgrade};
use super::lent::Use;
use super::replay::Replaying;
use super::request_body::RequestBody;
use super::resumable::NotResumed;
use super::service::{BoxError, Watched};
use super::session::{Session, SessionError};
use super::shared::Obstacle;
use super::websocket::{At, Served};
use crate::session::Carrier;

/// What follows a stage.
pub(super) enum Next<S, C>
where
    S: Service<Request<RequestBody>>,
    Watched<S>: hyper::service::HttpService<hyper::body::Incoming>,
{
    Stage(Stage<S, C>),
    Busy(Stage<S, C>, Obstacle),
    Closed,
    Drained(Drained<C>),
    Upgraded(Upgraded<C>),
}

impl<S, C> Next<S, C>
where
    S: Service<Request<RequestBody>>,
    Watched<S>: hyper::service::HttpService<hyper::body::Incoming>,
{
    /// A WebSocket, if its handler could begin.
    fn served(begun: Result<Served<C>, SessionError>, about: &About) -> Self {
        match begun {
            Ok(served) => Self::Stage(Stage::WebSocket(served)),
            Err(error) => {
                tracing::warn!(flow = %about.flow, %error, "a WebSocket is closed");
                Self::Closed
            }
        }
    }
}

pub(super) async fn http<S, B, C>(
    http: Http<S, C>,
    asked: &mut Asked<'_, impl Future<Output = ()>>,
    ends: &mut Ends,
    about: &About,
) -> Next<S, C>
where
    S: Service<Request<RequestBody>, Response = hyper::Response<B>>,
    S::Error: Into<BoxError>,
    B: Body + 'static,
    B::Error: Into<BoxError>,
    C: Carrier,
{
    match Box::new(http).run(asked, ends, about).await {
        Left::Over(ending) => {
            if let Some(ConnectionError::NotResumed(cause)) = ending.error() {
                tracing::warn!(
                    flow = %about.flow, %cause,
                    "a connection that moved here is closed in the middle of a response"
                );
            }
            Next::Stage(Stage::Ending(ending))
        }
        Left::Drained(stream, session) => Next::Drained(Drained { stream, session }),
        Left::Spoiled(error) => {
            tracing::warn!(flow = %about.flow, %error, "a drained connection is closed");
            Next::Closed
        }
        Left::Busy(http, obstacle) => Next::Busy(Stage::Http(http), obstacle),
        Left::Upgraded(upgrade) => {
            if upgrade.is_claimed() && !upgrade.moves() {
                tracing::info!(
                    flow = %about.flow,
                    "a handler has upgraded a connection by hyper::upgrade: it stays on this host"
                );
            }
            Next::Stage(Stage::Upgraded(upgrade))
        }
    }
}

#[cfg(feature = "http2")]
pub(super) async fn http2<S, C>(
    http: Box<super::http2::Http2<C>>,
    asked: &mut Asked<'_, impl Future<Output = ()>>,
    ends: &mut Ends,
    about: &About,
) -> Next<S, C>
where
    S: Service<Request<RequestBody>>,
    Watched<S>: hyper::service::HttpService<hyper::body::Incoming>,
    C: Carrier,
{
    use super::http2::Left;
    match http.run(asked, ends, about).await {
        Left::Over(ending) => Next::Stage(Stage::Ending(ending)),
        Left::Gone => Next::Closed,
        Left::Drained(stream, session) => Next::Drained(Drained { stream, session }),
        Left::Spoiled(error) => {
            tracing::warn!(flow = %about.flow, %error, "a drained connection is closed");
            Next::Closed
        }
        Left::Busy(http, obstacle) => Next::Busy(Stage::Http2(http), obstacle),
    }
}

/// Waits until nobody has an upgraded connection. If nobody had, it goes to the handler of WebSockets, or out; if it is a
/// WebSocket whose handler was told to return, it is drained.
pub(super) async fn upgraded<S, B, C>(
    mut upgrade: Upgrade<C>,
    asked: &mut Asked<'_, impl Future<Output = ()>>,
    about: &About,
    service: &S,
) -> Next<S, C>
where
    S: Service<Request<RequestBody>, Response = hyper::Response<B>>,
    S::Error: Into<BoxError>,
    B: Body + 'static,
    B::Error: Into<BoxError>,
    C: Carrier,
{
    let mut late = None;
    let dropped = poll_fn(|cx| {
        upgrade.flush(cx);
        if let Poll::Ready(used) = upgrade.poll_use(cx) {
            return Poll::Ready(Some(used));
        }
        ready!(asked.poll(cx));
        if !upgrade.moves() {
            return Poll::Ready(None);
        }
        upgrade.drain(about.times.absorb);
        let late = late.get_or_insert_with(|| Box::pin(sleep(about.times.drain_within)));
        late.as_mut().poll(cx).map(|()| None)
    });
    let dropped = dropped.await;
    let in_time = late.is_some();
    let mut gate = match dropped {
        None => {
            let obstacle = upgrade.undrain();
            return Next::Busy(Stage::Upgraded(upgrade), obstacle);
        }
        Some(Use::Over) => return Next::Closed,
        Some(Use::Unclaimed(gate)) => gate,
        Some(Use::Returned(link)) => {
            return match upgrade.take(&link, about) {
                Taken::Safe(stream, session) if in_time => {
                    Next::Drained(Drained { stream, session })
                }
                // The handler was told to return, and did when nobody waited for it any longer.
                Taken::Safe(stream, session) => Next::replayed(service, about, stream, session),
                Taken::Ends(ending) => Next::Stage(Stage::Ending(ending)),
                Taken::Spoiled(error) => {
                    tracing::warn!(flow = %about.flow, %error, "a drained connection is closed");
                    Next::Closed
                }
                Taken::Nothing => Next::Closed,
            };
        }
    };
    let Some(switched) = upgrade.switched.take() else {
        return Next::Stage(Stage::Ending(Ending::new(gate)));
    };
    if gate.flush().await.is_err() {
        return Next::Closed;
    }
    let (stream, ahead, _) = gate.into_parts();
    let unread = [&upgrade.unread[..], &ahead].concat();
    let (Some(agreed), Some(handler)) = (switched.websocket, &about.websockets) else {
        tracing::info!(
            flow = %about.flow,
            "a connection has changed its protocol, and leaves the server of HTTP"
        );
        return Next::Upgraded(Upgraded {
            stream,
            unread: unread.into(),
            extensions: switched.extensions,
        });
    };
    let at = At {
        stream,
        unread: &unread,
        unwritten: &[],
        extended: agreed.extended,
        resumed: false,
    };
    let head = std::mem::take(&mut upgrade.head);
    Next::served(Served::begin(handler.clone(), at, head, about), about)
}

/// Waits until the service has taken a WebSocket again that goes on.
pub(super) async fn replaying<S, B, C>(
    mut replaying: Box<Replaying<S, C>>,
    asked: &mut Asked<'_, impl Future<Output = ()>>,
    about: &About,
) -> Result<Next<S, C>, ConnectionError>
where
    S: Service<Request<RequestBody>, Response = hyper::Response<B>>,
    S::Error: Into<BoxError>,
    B: Body + 'static,
    B::Error: Into<BoxError>,
    C: Carrier,
{
    let within = about.times.answer_within;
    let mut late = pin!(sleep(within));
    let answered = poll_fn(|cx| {
        if let Poll::Ready(answered) = replaying.replay.poll(cx) {
            return Poll::Ready(Some(answered));
        }
        if asked.poll(cx).is_ready() {
            return Poll::Ready(None);
        }
        let no_answer = |()| {
            Some(Err(NotResumed::Failed(format!(
                "no answer within {within:?}"
            ))))
        };
        late.as_mut().poll(cx).map(no_answer)
    })
    .await;
    let Replaying {
        stream, session, ..
    } = *replaying;
    match answered {
        // As it came: its handler has not begun.
        None => Ok(Next::Drained(Drained { stream, session })),
        Some(Ok(begun)) => {
            let upgrade = begun.go(stream, &session.unread, &session.unwritten);
            Ok(upgrade.map_or(Next::Closed, |upgrade| {
                Next::Stage(Stage::Upgraded(upgrade))
            }))
        }
        Some(Err(cause)) => {
            tracing::warn!(
                flow = %about.flow, %cause,
                "a WebSocket that moved is closed: its service did not take it again"
            );
            Err(ConnectionError::NotResumed(cause))
        }
    }
}

pub(super) async fn websocket<S, C>(
    served: Served<C>,
    asked: &mut Asked<'_, impl Future<Output = ()>>,
    about: &About,
) -> Next<S, C>
where
    S: Service<Request<RequestBody>>,
    Watched<S>: hyper::service::HttpService<hyper::body::Incoming>,
    C: Carrier,
{
    let (served, in_time) = match serve(served, asked, about.times).await {
        WebSocketEnded::Busy(served, obstacle) => {
            return Next::Busy(Stage::WebSocket(served), obstacle);
        }
        WebSocketEnded::Returned(served, in_time) => (served, in_time),
    };
    let handler = served.handler();
    match served.end().await {
        Ok(None) => Next::Closed,
        Ok(Some(drained)) if in_time => Next::Drained(drained),
        // The handler was told to return, and did when nobody waited for it any longer.
        Ok(Some(Drained { stream, session })) => {
            let at = At {
                stream,
                unread: &session.unread,
                unwritten: &session.unwritten,
                extended: false,
                resumed: true,
            };
            let head = session.websocket.unwrap_or_default();
            Next::served(Served::begin(handler, at, head, about), about)
        }
        Err(error) => Next::served(Err(error), about),
    }
}

impl<S, B, C> Next<S, C>
where
    S: Service<Request<RequestBody>, Response = hyper::Response<B>>,
    S::Error: Into<BoxError>,
    B: Body + 'static,
    B::Error: Into<BoxError>,
    C: Carrier,
{
    /// A WebSocket that a handler of the service had, and is to have again.
    fn replayed(service: &S, about: &About, stream: C, session: Session) -> Self {
        match Replaying::begin(service, &about.known, stream, session) {
            Ok(replaying) => Self::Stage(Stage::Replaying(Box::new(replaying))),
            Err(error) => {
                tracing::warn!(flow = %about.flow, %error, "a WebSocket is closed");
                Self::Closed
            }
        }
    }
}

/// Waits for a peer that has not read all that was written to it.
pub(super) async fn ending<S, C>(
    mut ending: Ending<C>,
    asked: &mut Asked<'_, impl Future<Output = ()>>,
    times: Times,
) -> Result<Next<S, C>, ConnectionError>
where
    S: Service<Request<RequestBody>>,
    Watched<S>: hyper::service::HttpService<hyper::body::Incoming>,
    C: Carrier,
{
    let ended = {
        let mut run = pin!(ending.run());
        let mut late = None;
        poll_fn(|cx| {
            if let Poll::Ready(error) = run.as_mut().poll(cx) {
                return Poll::Ready(Some(error));
            }
            ready!(asked.poll(cx));
            let late = late.get_or_insert_with(|| Box::pin(sleep(times.drain_within)));
            late.as_mut().poll(cx).map(|()| None)
        })
        .await
    };
    match ended {
        Some(None) => Ok(Next::Closed),
        Some(Some(error)) => Err(error),
        None => Ok(Next::Busy(Stage::Ending(ending), Obstacle::Ending)),
    }
}

enum WebSocketEnded<C> {
    Busy(Served<C>, Obstacle),
    /// Its handler has returned: since it was told to, if this is set.
    Returned(Served<C>, bool),
}

/// Runs a WebSocket's handler until it returns, or is asked to and does not.
async fn serve<C: Carrier>(
    mut served: Served<C>,
    asked: &mut Asked<'_, impl Future<Output = ()>>,
    times: Times,
) -> WebSocketEnded<C> {
    let returned = poll_fn(|cx| match served.poll(cx) {
        Poll::Ready(()) => Poll::Ready(true),
        Poll::Pending => asked.poll(cx).map(|()| false),
    });
    if returned.await {
        return WebSocketEnded::Returned(served, false);
    }
    if let Err(obstacle) = served.drain(times.absorb) {
        return WebSocketEnded::Busy(served, obstacle);
    }
    let mut late = pin!(sleep(times.drain_within));
    let returned = poll_fn(|cx| match served.poll(cx) {
        Poll::Ready(()) => Poll::Ready(true),
        Poll::Pending => late.as_mut().poll(cx).map(|()| false),
    });
    if returned.await {
        return WebSocketEnded::Returned(served, true);
    }
    let obstacle = served.undrain();
    WebSocketEnded::Busy(served, obstacle)
}
