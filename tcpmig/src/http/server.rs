//! Connections that move when they are told to.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::pending;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http_body::Body;
use hyper::Request;
use hyper::service::Service;
use tokio::net::TcpStream;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::sleep;

use super::connection::{Connection, ConnectionError, Ended, Upgraded};
use super::movable::Movable;
use super::resumable::NotResumed;
use super::service::{BoxError, RequestBody, chain};
use super::session::{Session, SessionError};
use super::shared::Obstacle;
use crate::driver::{Arrived, Destination, Ending, Mover, Reason, Report};

/// Serves connections and keeps a [`Handle`] of each, by which it is moved.
///
/// A connection that a handler of the service has upgraded (`hyper::upgrade`, axum's
/// `WebSocketUpgrade`) stays on the list until that handler drops it, and says
/// [`Obstacle::Upgraded`] when it is to move.
///
/// It runs no tasks of its own: spawn [`Server::serve`] for each connection that is accepted and
/// [`Server::arrived`] for each that arrives.
pub struct Server<S> {
    movable: Movable<S>,
    mover: Mover,
    live: Live,
}

impl<S> Clone for Server<S> {
    fn clone(&self) -> Self {
        Self {
            movable: self.movable.clone(),
            mover: self.mover.clone(),
            live: self.live.clone(),
        }
    }
}

/// Why a connection did not move.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NotMoved {
    /// It was over before.
    #[error("the connection is over")]
    Closed,
    /// It reached no safe point in time, and goes on here.
    #[error("the connection goes on here: {0}")]
    Busy(#[from] Obstacle),
    /// It goes on here.
    #[error("the connection goes on here: {0}")]
    Kept(#[from] Reason),
    /// Its session has no image; it goes on here.
    #[error("the connection goes on here: {0}")]
    Session(#[from] SessionError),
    /// Nobody can say where it lives; the target is asked again and again.
    #[error("the target does not answer for the connection: it lives there or nowhere")]
    InDoubt,
    /// The connection is gone: it ended with the target's process.
    #[error("the connection was lost: {0}")]
    Lost(String),
}

struct Order {
    to: Destination,
    /// Who else moves at the same time.
    turns: Option<Arc<Semaphore>>,
    answer: Answer,
}

/// How long a connection keeps the turn of others before it stands at a safe point. Then it goes
/// on waiting, which costs nothing, and asks for another.
const TURN: Duration = Duration::from_millis(100);

/// The turn that a connection has.
#[derive(Default)]
struct Turn {
    permit: Mutex<Option<OwnedSemaphorePermit>>,
    given: Notify,
}

impl Turn {
    fn permit(&self) -> MutexGuard<'_, Option<OwnedSemaphorePermit>> {
        // A panic elsewhere leaves whole values only.
        self.permit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn get(&self, order: &Order) {
        let Some(turns) = &order.turns else { return };
        // INVARIANT: nobody closes the semaphore.
        let permit = turns.clone().acquire_owned().await.ok();
        *self.permit() = permit;
        self.given.notify_one();
    }

    /// Gives it back if it is not used in time.
    async fn give_back(&self) -> Infallible {
        self.given.notified().await;
        sleep(TURN).await;
        self.permit().take();
        pending().await
    }
}

/// A connection of a [`Server`].
#[derive(Debug, Clone)]
pub struct Handle {
    peer: SocketAddr,
    orders: mpsc::UnboundedSender<Order>,
}

impl std::fmt::Debug for Order {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Order").field("to", &self.to.name).finish()
    }
}

impl Handle {
    /// The peer's address.
    #[must_use]
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Moves the connection at its next safe point, and waits for the end of that.
    ///
    /// Dropping the future does not take the order back.
    ///
    /// # Errors
    ///
    /// [`NotMoved`].
    pub async fn move_to(&self, to: &Destination) -> Result<Report, NotMoved> {
        let answered = self.order(to, None).await;
        answered.unwrap_or(Err(NotMoved::Closed))
    }

    /// Orders a move. The answer does not come if the connection is over.
    fn order(
        &self,
        to: &Destination,
        turns: Option<Arc<Semaphore>>,
    ) -> oneshot::Receiver<Result<Report, NotMoved>> {
        let (answer, answered) = oneshot::channel();
        let to = to.clone();
        // Whose connection is over drops the order, and the sender in it.
        let _ = self.orders.send(Order { to, turns, answer });
        answered
    }
}

/// Moves connections side by side, and says what became of each, in their order.
///
/// All of them wait for their safe points at the same time; of those that have come to it,
/// `at_once` move at the same time, and the others stand still until it is their turn. So it
/// takes [`Movable::drain_within`](super::Movable::drain_within) at most, and the time of the
/// moves.
///
/// Dropping the future does not take the orders back.
pub async fn move_connections(
    connections: impl IntoIterator<Item = Handle>,
    to: &Destination,
    at_once: usize,
) -> Vec<(SocketAddr, Result<Report, NotMoved>)> {
    let turns = Arc::new(Semaphore::new(at_once.clamp(1, Semaphore::MAX_PERMITS)));
    let ordered: Vec<_> = connections
        .into_iter()
        .map(|handle| (handle.peer, handle.order(to, Some(turns.clone()))))
        .collect();
    let mut results = Vec::with_capacity(ordered.len());
    for (peer, answered) in ordered {
        let result = answered.await.unwrap_or(Err(NotMoved::Closed));
        results.push((peer, result));
    }
    results
}

/// The connections that live here.
#[derive(Clone, Default)]
struct Live(Arc<Mutex<(u64, HashMap<u64, Handle>)>>);

impl Live {
    fn lock(&self) -> MutexGuard<'_, (u64, HashMap<u64, Handle>)> {
        // A panic elsewhere leaves whole values only.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, handle: Handle) -> Entry {
        let mut live = self.lock();
        live.0 += 1;
        let id = live.0;
        live.1.insert(id, handle);
        Entry(self.clone(), id)
    }
}

/// Dropping it takes the connection off the list.
struct Entry(Live, u64);

impl Drop for Entry {
    fn drop(&mut self) {
        self.0.lock().1.remove(&self.1);
    }
}

impl<S> Server<S> {
    /// Serves with `movable`, moves with `mover`.
    pub fn new(movable: Movable<S>, mover: Mover) -> Self {
        Self {
            movable,
            mover,
            live: Live::default(),
        }
    }

    /// The connections that live here now.
    #[must_use]
    pub fn connections(&self) -> Vec<Handle> {
        self.live.lock().1.values().cloned().collect()
    }

    /// Moves all connections that live here now: [`move_connections`]. What comes later is not
    /// among them, so stop accepting before; what stays goes on here and can be moved again.
    pub async fn move_all(
        &self,
        to: &Destination,
        at_once: usize,
    ) -> Vec<(SocketAddr, Result<Report, NotMoved>)> {
        move_connections(self.connections(), to, at_once).await
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.live.lock().1.len()
    }
}

impl<S, B> Server<S>
where
    S: Service<Request<RequestBody>, Response = hyper::Response<B>>,
    S::Error: Into<BoxError>,
    B: Body + 'static,
    B::Error: Into<BoxError>,
{
    /// Serves a connection that was accepted until it is over or lives elsewhere; if it changed
    /// its protocol, it comes back.
    ///
    /// # Errors
    ///
    /// [`SessionError::Socket`].
    pub async fn serve(&self, stream: TcpStream) -> Result<Option<Upgraded>, SessionError> {
        let peer = stream.peer_addr()?;
        Ok(self.run(peer, self.movable.connection(stream)?).await?)
    }

    /// Serves a connection that moved to this host, as [`Server::serve`].
    ///
    /// # Errors
    ///
    /// [`SessionError`] if it cannot go on here: it is closed. [`Movable::check`] prevents that, but for
    /// [`SessionError::Cut`]: what the service answers to the request of a response in the middle is known when it is asked.
    pub async fn arrived(&self, arrived: Arrived) -> Result<Option<Upgraded>, SessionError> {
        let peer = arrived.flow.remote();
        let connection = self.movable.resume_arrived(arrived)?;
        Ok(self.run(peer, connection).await?)
    }

    async fn run(
        &self,
        peer: SocketAddr,
        first: Connection<S>,
    ) -> Result<Option<Upgraded>, NotResumed> {
        let (orders, mut ordered) = mpsc::unbounded_channel();
        let _entry = self.live.enter(Handle { peer, orders });
        let mut connection = first;
        loop {
            let mut order = None;
            let turn = Turn::default();
            let asked = async {
                // The list holds a sender, so that there is no end.
                let next = ordered.recv().await;
                if let Some(next) = &next {
                    turn.get(next).await;
                }
                order = next;
            };
            let ended = tokio::select! {
                biased;
                ended = connection.run(asked) => ended,
                never = turn.give_back() => match never {},
            };
            connection = match (ended, order) {
                (Ok(Ended::Drained(drained)), Some(order)) => {
                    if turn.permit().is_none() {
                        turn.get(&order).await;
                    }
                    let departed = self.depart(&drained.session, drained.stream, order);
                    let Some(stream) = departed.await else {
                        return Ok(None);
                    };
                    match self.movable.resume(stream, drained.session) {
                        Ok(connection) => connection,
                        Err(error) => {
                            tracing::error!(%peer, %error, "a connection that was kept is closed");
                            return Ok(None);
                        }
                    }
                }
                (Ok(Ended::Busy(connection, obstacle)), order) => {
                    answer(order.map(|order| order.answer), Err(obstacle.into()));
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

    /// Moves a connection; gives its socket back if it goes on here.
    async fn depart(
        &self,
        session: &Session,
        stream: TcpStream,
        order: Order,
    ) -> Option<TcpStream> {
        let layer = match session.to_layer() {
            Ok(layer) => layer,
            Err(error) => {
                answer(Some(order.answer), Err(error.into()));
                return Some(stream);
            }
        };
        let stream = stream.into_std();
        let socket: OwnedFd = stream.inspect_err(cannot_be_used).ok()?.into();
        let outcome = self.mover.move_out(socket, Some(layer), &order.to).await;
        let mut waiting = Some(order.answer);
        let mut ending = outcome.ending;
        loop {
            match ending {
                Ending::Moved => {
                    answer(waiting, Ok(outcome.report));
                    return None;
                }
                Ending::Kept { socket, reason, .. } => {
                    answer(waiting, Err(reason.into()));
                    let stream = std::net::TcpStream::from(socket);
                    let stream = stream.set_nonblocking(true).map(|()| stream);
                    let stream = stream.and_then(TcpStream::from_std);
                    return stream.inspect_err(cannot_be_used).ok();
                }
                Ending::Lost(reason) => {
                    answer(waiting, Err(NotMoved::Lost(reason)));
                    return None;
                }
                Ending::InDoubt(doubt) => {
                    answer(waiting.take(), Err(NotMoved::InDoubt));
                    ending = doubt.ask().await;
                }
            }
        }
    }
}

fn cannot_be_used(error: &std::io::Error) {
    tracing::error!(%error, "the socket of a drained connection is lost");
}

type Answer = oneshot::Sender<Result<Report, NotMoved>>;

fn answer(waiting: Option<Answer>, result: Result<Report, NotMoved>) {
    if let Some(waiting) = waiting {
        // Who ordered it may not wait for the answer.
        let _ = waiting.send(result);
    }
}
