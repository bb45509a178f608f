//! Connections that move when they are told to.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::{Future, pending};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http_body::Body;
use hyper::Request;
use hyper::service::Service;
use tokio::net::TcpStream;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::sleep;

use super::asking::chain;
use super::connection::{Connection, ConnectionError, Drained, Ended, Upgraded};
use super::doing::{Doing, Seen};
use super::movable::Movable;
use super::moves::move_connections;
use super::notice::{self, Noticed};
use super::order::{Gone, Order, Stays};
use super::request_body::RequestBody;
use super::resumable::NotResumed;
use super::seldom::Seldom;
use super::service::BoxError;
use super::session::SessionError;
use super::shared::Obstacle;
use crate::session::{Arrival, Carrier, Carriers, Tcp, Way};

/// Serves connections and keeps a [`Handle`] of each, by which it is moved: to whatever place, by whatever [`Way`].
///
/// A connection that a handler of the service has upgraded (`hyper::upgrade`, axum's
/// `WebSocketUpgrade`) stays on the list until that handler drops it, and says
/// [`Obstacle::Upgraded`] when it is to move.
///
/// It runs no tasks of its own: spawn [`Server::serve`] for each connection that is accepted and
/// [`Server::arrived`] for each that arrives.
pub struct Server<S, K = Tcp> {
    movable: Movable<S, K>,
    live: Live,
}

impl<S, K> Clone for Server<S, K> {
    fn clone(&self) -> Self {
        Self {
            movable: self.movable.clone(),
            live: self.live.clone(),
        }
    }
}

/// Why a connection did not move; `E` says it for its way.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NotMoved<E> {
    /// It was over before.
    #[error("the connection is over")]
    Closed,
    /// It reached no safe point in time, and goes on here.
    #[error("the connection goes on here: {0}")]
    Busy(#[from] Obstacle),
    /// It goes on here.
    #[error("the connection goes on here: {0}")]
    Kept(#[source] E),
    /// Its session cannot be encoded; it goes on here.
    #[error("the connection goes on here: {0}")]
    Session(#[from] SessionError),
    /// Nobody can say where it lives; the target is asked again and again.
    #[error("the target does not answer for the connection: it lives there or nowhere")]
    InDoubt,
    /// The connection is gone: it ended with the target's process, or its socket could not be used.
    #[error("the connection was lost: {0}")]
    Lost(String),
}

/// What became of an order to move.
pub(super) type Moved<W> = Result<<W as Way>::Report, NotMoved<<W as Way>::Cause>>;

/// How long a connection keeps the permit that others wait for before it stands at a safe point. Then it goes
/// on waiting, which costs nothing, and asks for another.
const HELD_FOR: Duration = Duration::from_millis(100);

/// The permit to move that a connection has.
#[derive(Default)]
struct Permit {
    permit: Mutex<Option<OwnedSemaphorePermit>>,
    given: Notify,
}

impl Permit {
    fn permit(&self) -> MutexGuard<'_, Option<OwnedSemaphorePermit>> {
        // A panic elsewhere leaves whole values only.
        self.permit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn get(&self, turns: Option<&Arc<Semaphore>>) {
        let Some(turns) = turns else { return };
        // INVARIANT: nobody closes the semaphore.
        let permit = turns.clone().acquire_owned().await.ok();
        *self.permit() = permit;
        self.given.notify_one();
    }

    /// Gives it back if it is not used in time.
    async fn give_back(&self) -> Infallible {
        self.given.notified().await;
        sleep(HELD_FOR).await;
        self.permit().take();
        pending().await
    }
}

/// A connection of a [`Server`].
#[derive(Debug, Clone)]
pub struct Handle {
    peer: SocketAddr,
    seen: Seen,
    orders: mpsc::UnboundedSender<Order>,
}

impl Handle {
    /// The peer's address.
    #[must_use]
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// What the connection is doing now.
    #[must_use]
    pub fn doing(&self) -> Doing {
        self.seen.doing()
    }

    /// Ready when the connection does not live here any longer: it is over, or it has moved.
    pub async fn gone(&self) {
        self.orders.closed().await;
    }

    /// Moves the connection at its next safe point, and waits for the end of that.
    ///
    /// Dropping the future does not take the order back.
    ///
    /// # Errors
    ///
    /// [`NotMoved`].
    pub async fn move_to<W: Way>(
        &self,
        way: &W,
        to: &W::Destination,
    ) -> Result<W::Report, NotMoved<W::Cause>> {
        let answered = self.order(way, to, None).await;
        answered.unwrap_or(Err(NotMoved::Closed))
    }

    /// Orders a move. The answer does not come if the connection is over.
    pub(super) fn order<W: Way>(
        &self,
        way: &W,
        to: &W::Destination,
        turns: Option<Arc<Semaphore>>,
    ) -> oneshot::Receiver<Moved<W>> {
        let (order, answered) = Order::new(way.clone(), to.clone(), turns);
        // Whose connection is over drops the order, and the sender in it.
        let _ = self.orders.send(order);
        answered
    }
}

/// The connections that live here.
#[derive(Clone, Default)]
pub(super) struct Live(Arc<Connections>);

#[derive(Default)]
struct Connections {
    handles: Mutex<(u64, HashMap<u64, Handle>)>,
    /// How many there are.
    count: watch::Sender<usize>,
    /// They have to end.
    ends: watch::Sender<bool>,
}

impl Live {
    fn lock(&self) -> MutexGuard<'_, (u64, HashMap<u64, Handle>)> {
        // A panic elsewhere leaves whole values only.
        self.0
            .handles
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, handle: Handle) -> Entry {
        let mut live = self.lock();
        live.0 += 1;
        let id = live.0;
        live.1.insert(id, handle);
        self.0.count.send_replace(live.1.len());
        Entry(self.clone(), id)
    }

    pub(super) fn handles(&self) -> Vec<Handle> {
        self.lock().1.values().cloned().collect()
    }

    pub(super) fn count(&self) -> usize {
        *self.0.count.borrow()
    }

    /// Ready when there is none.
    pub(super) async fn emptied(&self) {
        // It holds the sender.
        let _ = self.0.count.subscribe().wait_for(|&count| count == 0).await;
    }

    /// They end when they can.
    pub(super) fn end(&self) {
        self.0.ends.send_replace(true);
    }

    fn ends(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut ends = self.0.ends.subscribe();
        async move {
            if ends.wait_for(|&ends| ends).await.is_err() {
                // Nobody is left who could say so.
                pending::<()>().await;
            }
        }
    }
}

/// Dropping it takes the connection off the list.
struct Entry(Live, u64);

impl Drop for Entry {
    fn drop(&mut self) {
        let mut live = self.0.lock();
        live.1.remove(&self.1);
        self.0.0.count.send_replace(live.1.len());
    }
}

impl<S, K> Server<S, K> {
    /// Serves connections that `movable` makes movable.
    pub fn new(movable: Movable<S, K>) -> Self {
        Self {
            movable,
            live: Live::default(),
        }
    }

    /// Serves connections that are on a list with others.
    #[cfg(feature = "serve")]
    pub(super) fn among(movable: Movable<S, K>, live: Live) -> Self {
        Self { movable, live }
    }

    /// Ends all connections as graceful shutdown does, those that live here now and those that come: at once if they are
    /// idle, or behind the response that they are in. A WebSocket, and what a handler has upgraded, ends when its
    /// handler is done.
    pub fn shut_down(&self) {
        self.live.end();
    }

    /// Ready when no connection lives here.
    pub async fn emptied(&self) {
        self.live.emptied().await;
    }

    /// The connections that live here now.
    #[must_use]
    pub fn connections(&self) -> Vec<Handle> {
        self.live.handles()
    }

    /// Moves all connections that live here now: [`move_connections`]. What comes later is not
    /// among them, so stop accepting before; what stays goes on here and can be moved again.
    pub async fn move_all<W: Way>(
        &self,
        way: &W,
        to: &W::Destination,
        at_once: usize,
    ) -> Vec<(SocketAddr, Result<W::Report, NotMoved<W::Cause>>)> {
        move_connections(self.connections(), way, to, at_once).await
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.live.count()
    }
}

impl<S, B, K> Server<S, K>
where
    S: Service<Request<RequestBody>, Response = hyper::Response<B>>,
    S::Error: Into<BoxError>,
    B: Body + 'static,
    B::Error: Into<BoxError>,
    K: Carriers,
{
    /// Serves a connection that was accepted until it is over or lives elsewhere; if it changed
    /// its protocol, it comes back. If its carrier has a handshake, that comes first, and a move that is ordered meanwhile waits for it.
    ///
    /// # Errors
    ///
    /// [`SessionError::Socket`], [`SessionError::Handshake`].
    pub async fn serve(
        &self,
        stream: TcpStream,
    ) -> Result<Option<Upgraded<K::Carrier>>, SessionError> {
        let listed = self.enter(stream.peer_addr()?);
        let carrier = self.movable.accept(stream).await?;
        Ok(self.run(listed, self.movable.connection(carrier)?).await?)
    }

    /// Serves a connection that moved to this host, as [`Server::serve`].
    ///
    /// # Errors
    ///
    /// [`SessionError`] if it cannot go on here: it is closed. [`Movable::check`] prevents that, but for
    /// [`SessionError::Cut`]: what the service answers to the request of a response in the middle is known when it is asked.
    pub async fn arrived(
        &self,
        arrived: impl Into<Arrival>,
    ) -> Result<Option<Upgraded<K::Carrier>>, SessionError> {
        let arrived = arrived.into();
        let peer = arrived.flow.remote();
        let listed = self.enter(peer);
        let connection = self.movable.resume_arrived(arrived)?;
        self.movable
            .tell(Noticed::Resumed, peer, connection.came_with());
        Ok(self.run(listed, connection).await?)
    }

    fn enter(&self, peer: SocketAddr) -> Listed {
        let (orders, ordered) = mpsc::unbounded_channel();
        let seen = Seen::new();
        let handle = Handle {
            peer,
            seen: seen.clone(),
            orders,
        };
        Listed {
            _entry: self.live.enter(handle),
            peer,
            seen,
            ordered,
        }
    }

    async fn run(
        &self,
        mut listed: Listed,
        first: Connection<S, K::Carrier>,
    ) -> Result<Option<Upgraded<K::Carrier>>, NotResumed> {
        let peer = listed.peer;
        let mut connection = first;
        loop {
            connection = connection
                .ending_when(self.live.ends())
                .seen_by(&listed.seen);
            let mut order = None;
            let permit = Permit::default();
            let asked = async {
                // The list holds a sender, so that there is no end.
                let next = listed.ordered.recv().await;
                if let Some(next) = &next {
                    permit.get(next.turns()).await;
                }
                order = next;
            };
            let giving_back = pin!(permit.give_back());
            let giving_back = Seldom::new(giving_back);
            let ended = tokio::select! {
                biased;
                ended = connection.run(asked) => ended,
                never = giving_back => match never {},
            };
            connection = match (ended, order) {
                (Ok(Ended::Drained(drained)), Some(order)) => {
                    if permit.permit().is_none() {
                        permit.get(order.turns()).await;
                    }
                    match self.depart(drained, order, peer).await {
                        None => return Ok(None),
                        Some(Ok(connection)) => connection,
                        Some(Err(error)) => {
                            tracing::error!(%peer, %error, "a connection that was kept is closed");
                            return Ok(None);
                        }
                    }
                }
                (Ok(Ended::Busy(connection, obstacle)), order) => {
                    if let Some(order) = order {
                        order.stays(Stays::Busy(obstacle));
                    }
                    connection
                }
                (Ok(Ended::Upgraded(upgraded)), _) => return Ok(Some(upgraded)),
                (Ok(Ended::Closed | Ended::Drained(_)), _) => return Ok(None),
                (Err(ConnectionError::NotResumed(cause)), _) => return Err(cause),
                (Err(ConnectionError::Http(error)), _) => {
                    tracing::debug!(%peer, error = chain(&error), "a connection ended");
                    return Ok(None);
                }
            };
        }
    }

    /// Moves a connection; gives it back if it goes on here.
    async fn depart(
        &self,
        drained: Drained<K::Carrier>,
        order: Order,
        peer: SocketAddr,
    ) -> Option<Result<Connection<S, K::Carrier>, SessionError>> {
        let Drained { stream, session } = drained;
        let request = notice::request(&session);
        let layer = stream.check().map_err(SessionError::Unmovable);
        let layer = match layer.and_then(|()| session.to_layer()) {
            Ok(layer) => layer,
            Err(error) => {
                order.stays(Stays::Session(error));
                return Some(self.movable.resume(stream, session));
            }
        };
        let mut parts = match stream.into_parts() {
            Ok(parts) => parts,
            Err(error) => {
                tracing::error!(%error, "a drained connection is lost");
                order.stays(Stays::Lost(error.to_string()));
                return None;
            }
        };
        parts.layers.push(layer);
        match order.go(parts).await {
            Gone::Moved => {
                self.movable.tell(Noticed::Left, peer, request);
                None
            }
            Gone::Lost => None,
            Gone::Kept(parts) => {
                self.movable.tell(Noticed::Kept, peer, request);
                Some(self.movable.resume_parts(parts))
            }
        }
    }
}

/// A connection's place on the list, and the orders that come by it.
struct Listed {
    _entry: Entry,
    peer: SocketAddr,
    seen: Seen,
    ordered: mpsc::UnboundedReceiver<Order>,
}
