//! Runs handovers: locks, freezes, captures, sends; receives, rebuilds, activates.
//!
//! [`Mover::move_out`] gives one connection away, [`Mover::move_all`] many, [`serve`] takes connections in. Both do what
//! the state machines of [`handover`](crate::handover) answer, over
//! [`tcpmig_transport`].
//!
//! With a [`journal`] each side answers for its handovers also after its process has died: [`Mover::with_journal`],
//! [`Mover::resolve`], [`serve_with`].
//!
//! # Cancellation
//!
//! Every future and stream here can be dropped at any await.
//!
//! | dropped | then |
//! |---|---|
//! | [`Mover::move_out`], [`Moves`] | what was not committed goes on here, what was is in doubt; both are among [`Mover::unclaimed`] |
//! | [`Moves::next`] | nothing is lost: the next call has it |
//! | [`Doubt::ask`] | the doubt is among [`Mover::unclaimed`] |
//! | [`Mover::resolve`] | what was not settled is still in the journal |
//! | [`Arrivals::next`] | nothing is lost: the next call has it |
//! | [`Arrivals`] | what waits for COMMIT is discarded, its source keeps it |
//!
//! System calls on sockets and netlink run on the task that calls, because a network namespace
//! belongs to a thread: use a runtime whose threads are all in the namespace of the
//! connections.

mod batch;
mod doubt;
pub mod journal;
mod options;
mod report;
mod resolve;
mod run;
mod source;
mod target;
mod unclaimed;

pub use batch::Moves;
pub use doubt::Doubt;
pub use options::Options;
pub use report::Report;
pub use resolve::Resolved;
pub use source::{Connection, Destination, Ending, Mover, Outcome, Reason};
pub use target::{Arrivals, Arrived, serve, serve_if, serve_with};
