//! Connections to the model server that move, with what was kept of their streams.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tcpmig::driver::{Destination, Mover};
use tcpmig::session::{Arrival, Departed, Parts, Way};
use tcpmig_format::Layer;
use tokio::sync::oneshot;

use super::kept::{self, Buffer, Id, Kept, Stream};
use super::model::{Error, Events};

/// The kind of the layer on such a connection.
pub(crate) const KIND: &str = "gateway-stream";
pub(crate) const VERSION: u32 = 1;

/// An order to give a stream to another gateway.
pub(crate) struct Order {
    way: Mover,
    to: Destination,
    /// Dropped when that is done.
    _done: oneshot::Sender<()>,
}

/// What moves with the connection.
#[derive(Serialize, Deserialize)]
struct State {
    id: Id,
    buffer: Buffer,
    /// Bytes of the stream that are not a whole event yet.
    read: Vec<u8>,
}

/// Gives every stream that this gateway reads to another one; those that stay are still read here.
pub(crate) async fn give_all(kept: &Kept, way: &Mover, to: &Destination) {
    let given = kept.all().into_iter().map(|stream| {
        let (_done, done) = oneshot::channel();
        stream.order(Order {
            way: way.clone(),
            to: to.clone(),
            _done,
        });
        done
    });
    let given: Vec<_> = given.collect();
    for done in given {
        // It is dropped when that is done.
        let _ = done.await;
    }
}

/// Gives a stream away; gives it back if it stays.
pub(crate) async fn give(
    order: Order,
    id: &Id,
    stream: &Arc<Stream>,
    events: Events,
) -> Option<Events> {
    let given = try_to_give(&order, id, stream, events).await;
    given.unwrap_or_else(|error| {
        stream.push(kept::failed(&error));
        None
    })
}

async fn try_to_give(
    order: &Order,
    id: &Id,
    stream: &Arc<Stream>,
    events: Events,
) -> Result<Option<Events>, Error> {
    let (socket, read) = events.into_parts()?;
    let state = State {
        id: id.clone(),
        buffer: stream.buffer(),
        read,
    };
    let layer = Layer::new(KIND, VERSION, serde_json::to_vec(&state)?);
    let layers = vec![layer];
    let mut departed = order.way.depart(Parts { socket, layers }, &order.to).await;
    loop {
        match departed {
            Departed::Moved(_) => {
                stream.is_moved();
                return Ok(None);
            }
            Departed::Kept { parts, cause } => {
                eprintln!("a stream of the model server stays: {cause}");
                return Ok(Some(Events::from_parts(parts.socket, &state.read)?));
            }
            Departed::Lost(_) => return Err(Error::Broken),
            Departed::InDoubt(doubt) => departed = doubt.await,
        }
    }
}

/// Goes on with a stream of another gateway.
pub(crate) fn take(kept: &Arc<Kept>, arrival: Arrival) -> Result<(), Error> {
    let layer = arrival.layers.first().ok_or(Error::Broken)?;
    let state: State = serde_json::from_slice(&layer.payload)?;
    // The request was written long ago: nothing of it is left to be written.
    let events = Events::from_parts(arrival.socket, &state.read)?;
    kept.go_on(state.id, state.buffer, events);
    Ok(())
}
