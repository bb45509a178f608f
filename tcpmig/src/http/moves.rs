//! Many connections move.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::doing::Activity;
use super::server::{Handle, Moved, NotMoved};
use crate::session::Way;

/// For so long a connection at rest may take until the next one is told: it may not come to its safe point for a while.
const TOLD_WITHIN: Duration = Duration::from_millis(100);

/// Moves connections side by side, and says what became of each, in their order.
///
/// Those that are at work wait for their safe points at the same time, and so long at most as
/// [`Movable::drain_within`](super::Movable::drain_within). Those at rest are told a few at a time, because they stand still from then on. Of those that have come
/// to their safe points, `at_once` move at the same time, and the others stand still until it is their turn.
///
/// Dropping the future does not take back the orders that were given.
pub async fn move_connections<W: Way>(
    connections: impl IntoIterator<Item = Handle>,
    way: &W,
    to: &W::Destination,
    at_once: usize,
) -> Vec<(SocketAddr, Result<W::Report, NotMoved<W::Cause>>)> {
    let turns = Arc::new(Semaphore::new(at_once.clamp(1, Semaphore::MAX_PERMITS)));
    let mut results: Vec<(SocketAddr, Moved<W>)> = Vec::new();
    let (mut told, mut at_rest) = (Vec::new(), Vec::new());
    for (at, handle) in connections.into_iter().enumerate() {
        results.push((handle.peer(), Err(NotMoved::Closed)));
        match handle.doing().what {
            Activity::Idle | Activity::Upgraded => at_rest.push((at, handle)),
            _ => told.push((at, handle.order(way, to, Some(turns.clone())))),
        }
    }
    // While some move the next ones come to their safe points.
    let ahead = at_once.saturating_mul(2);
    let mut resting = VecDeque::new();
    for (at, handle) in at_rest {
        resting.push_back((at, handle.order(way, to, Some(turns.clone()))));
        if resting.len() > ahead
            && let Some((first, mut answered)) = resting.pop_front()
        {
            match timeout(TOLD_WITHIN, &mut answered).await {
                Ok(Ok(moved)) => results[first].1 = moved,
                Ok(Err(_)) => {}
                Err(_) => told.push((first, answered)),
            }
        }
    }
    // Who does not answer is over.
    for (at, answered) in told.into_iter().chain(resting) {
        if let Ok(moved) = answered.await {
            results[at].1 = moved;
        }
    }
    results
}
