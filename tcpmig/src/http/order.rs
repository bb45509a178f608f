//! Orders to move a connection, whatever the way.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::{Semaphore, oneshot};

use super::server::{Moved, NotMoved};
use super::session::SessionError;
use super::shared::Obstacle;
use crate::session::{Departed, Parts, Way};

/// An order to move a connection. Whoever gave it is answered through it, and learns from its end that the connection is over.
pub(super) struct Order {
    /// Who else moves at the same time.
    turns: Option<Arc<Semaphore>>,
    bound: Box<dyn Bound>,
}

/// Why an order was not carried out.
pub(super) enum Stays {
    Busy(Obstacle),
    Session(SessionError),
    Lost(String),
}

/// A way and a destination, without their types.
trait Bound: Send {
    fn stays(self: Box<Self>, why: Stays);
    fn go(self: Box<Self>, parts: Parts) -> Going;
}

/// What became of a connection that was moved.
pub(super) enum Gone {
    Moved,
    Lost,
    /// It goes on here.
    Kept(Parts),
}

type Going = Pin<Box<dyn Future<Output = Gone> + Send>>;

struct By<W: Way> {
    way: W,
    to: W::Destination,
    answer: oneshot::Sender<Moved<W>>,
}

impl Order {
    pub(super) fn new<W: Way>(
        way: W,
        to: W::Destination,
        turns: Option<Arc<Semaphore>>,
    ) -> (Self, oneshot::Receiver<Moved<W>>) {
        let (answer, answered) = oneshot::channel();
        let bound = Box::new(By { way, to, answer });
        (Self { turns, bound }, answered)
    }

    pub(super) fn turns(&self) -> Option<&Arc<Semaphore>> {
        self.turns.as_ref()
    }

    /// Answers that the connection does not move.
    pub(super) fn stays(self, why: Stays) {
        self.bound.stays(why);
    }

    /// Moves a connection; gives it back if it goes on here.
    pub(super) fn go(self, parts: Parts) -> Going {
        self.bound.go(parts)
    }
}

impl<W: Way> Bound for By<W> {
    fn stays(self: Box<Self>, why: Stays) {
        let why = match why {
            Stays::Busy(obstacle) => NotMoved::Busy(obstacle),
            Stays::Session(error) => NotMoved::Session(error),
            Stays::Lost(reason) => NotMoved::Lost(reason),
        };
        // Who ordered it may not wait for the answer.
        let _ = self.answer.send(Err(why));
    }

    fn go(self: Box<Self>, parts: Parts) -> Going {
        let Self { way, to, answer } = *self;
        Box::pin(async move {
            let mut waiting = Some(answer);
            let mut tell = |result: Moved<W>| {
                if let Some(waiting) = waiting.take() {
                    // Who ordered it may not wait for the answer.
                    let _ = waiting.send(result);
                }
            };
            let mut departed = way.depart(parts, &to).await;
            loop {
                match departed {
                    Departed::Moved(report) => {
                        tell(Ok(report));
                        return Gone::Moved;
                    }
                    Departed::Kept { parts, cause } => {
                        tell(Err(NotMoved::Kept(cause)));
                        return Gone::Kept(parts);
                    }
                    Departed::Lost(reason) => {
                        tell(Err(NotMoved::Lost(reason)));
                        return Gone::Lost;
                    }
                    Departed::InDoubt(doubt) => {
                        tell(Err(NotMoved::InDoubt));
                        departed = doubt.await;
                    }
                }
            }
        })
    }
}

impl fmt::Debug for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Order").finish_non_exhaustive()
    }
}
