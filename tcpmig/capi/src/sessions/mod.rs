//! What sessions through the agent and upgrades share: events, and the thread on which they are made.

mod buffers;
mod inbox;
mod live;
mod queue;
mod session;
mod structs;

pub(crate) use buffers::take_out;
pub(crate) use inbox::Inbox;
pub(crate) use live::Live;
pub(crate) use queue::{About, Item, Queue};
pub(crate) use session::layers_of;
pub use structs::{EventKind, EventStruct, SessionStruct};
