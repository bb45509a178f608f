//! How a server gives its connections away, and ends those that stay.

use std::future::{Future, IntoFuture};
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::{Draining, MakeServices, Serve, ServeError, run};
use crate::driver::{Destination, Mover, Reason};
use crate::http::moves::move_connections;
use crate::http::server::{Live, NotMoved};
use crate::session::Carriers;

/// How many move at a time.
const AT_ONCE: usize = 32;

/// How long it takes until connections that were refused are offered again.
const PAUSE: Duration = Duration::from_millis(500);

/// What became of the connections of a server that was drained.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Served {
    /// How many moved.
    pub moved: usize,
    /// Those that did not, as far as they had not ended by themselves.
    pub stayed: Vec<Stayed>,
}

/// A connection that did not move and was ended.
#[derive(Debug)]
#[non_exhaustive]
pub struct Stayed {
    /// Its peer.
    pub peer: SocketAddr,
    /// Why it did not move when it was last tried.
    pub why: NotMoved<Reason>,
}

pub(super) type Signal = Pin<Box<dyn Future<Output = ()> + Send>>;

pub(super) struct Drain {
    pub(super) signal: Signal,
    pub(super) plan: Plan,
}

pub(super) struct Plan {
    to: Destination,
    within: Duration,
    end_within: Duration,
}

impl Plan {
    /// Until no connection is left.
    pub(super) async fn run(self, way: &Mover, live: &Live) -> Served {
        let deadline = Instant::now() + self.within;
        let mut served = Served::default();
        loop {
            let connections = live.handles();
            if connections.is_empty() {
                return served;
            }
            let moving = move_connections(connections, way, &self.to, AT_ONCE);
            // Who is told to move when the deadline passes moves nevertheless, if it reaches a safe point.
            served.stayed.clear();
            for (peer, moved) in moving.await {
                match moved {
                    Ok(_) => served.moved += 1,
                    // The connection asks again by itself, and stays on the list meanwhile.
                    Err(NotMoved::Closed) => {}
                    Err(why) => {
                        tracing::info!(%peer, %why, "a connection does not leave yet");
                        served.stayed.push(Stayed { peer, why });
                    }
                }
            }
            if Instant::now() >= deadline {
                break;
            }
            tokio::select! {
                () = live.emptied() => {}
                () = sleep(PAUSE) => {}
            }
        }
        live.end();
        if timeout(self.end_within, live.emptied()).await.is_err() {
            tracing::warn!(
                left = live.count(),
                "connections that do not end are closed"
            );
        }
        served
    }
}

impl<M: MakeServices, K: Carriers> IntoFuture for Serve<M, K> {
    type Output = Result<Served, ServeError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move { Ok(run(self, None).await) })
    }
}

impl<M, F, K> IntoFuture for Draining<M, F, K>
where
    M: MakeServices,
    F: Future<Output = ()> + Send + 'static,
    K: Carriers,
{
    type Output = Result<Served, ServeError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let to = self.serve.site.destination(&self.to);
            let to = to.ok_or(ServeError::UnknownHost(self.to))?;
            let plan = Plan {
                to,
                within: self.within,
                end_within: self.end_within,
            };
            let signal = Box::pin(self.signal);
            Ok(run(self.serve, Some(Drain { signal, plan })).await)
        })
    }
}
