//! Runs handovers: locks, freezes, captures, sends; receives, rebuilds, activates.
//!
//! [`Mover::move_out`] gives one connection away, [`Mover::move_all`] many, [`Acceptor`] takes connections in. Both do what
//! the state machines of [`handover`](crate::handover) answer, over
//! [`tcpmig_transport`].
//!
//! With a [`journal`] each side answers for its handovers also after its process has died: [`Mover::with_journal`],
//! [`Mover::resolve`], [`Acceptor::journal`].
//!
//! # What is logged
//!
//! All that is logged for a handover, on both hosts, is inside of a `tracing` span `handover` with its `id`, which is the same on both, and
//! the `role` of the host. A handover that becomes in doubt is a warning with what to do about it.
//!
//! # Cancellation
//!
//! Every future and stream here can be dropped at any await.
//!
//! | dropped | then |
//! |---|---|
//! | [`Move`], [`Moves`] | the moves go on, and their outcomes are among [`Mover::unclaimed`]; only [`Move::cancel`] and [`Moves::cancel`] end them |
//! | [`Moves::next`] | nothing is lost: the next call has it |
//! | [`InDoubt::ask`], [`InDoubt::settle`] | the doubt is among [`Mover::unclaimed`] |
//! | [`Mover::resolve`] | what was not settled is still in the journal |
//! | [`Arrivals::next`] | nothing is lost: the next call has it |
//! | [`Arrivals`] | what waits for COMMIT is discarded, its source keeps it |
//!
//! What a dropped future had begun on another thread (see below) is done to its end first, and [`Mover::unclaimed`] waits for that. If
//! a runtime ends while connections move on it, what was not committed goes on here, and what was is in doubt: among [`Mover::unclaimed`].
//!
//! # Threads
//!
//! Nothing here waits on a thread of the runtime, which may have only one. What can wait runs on threads of the [`Mover`] or the
//! [`Acceptor`]: each call of a locker, a journal or a way of steering that says that it waits ([`Features::waits`],
//! [`Journal::waits`], [`Steer::waits`]), building a connection that one end has closed or that is being opened, and bringing one
//! back to life whose peer has to be listened for. A panic of such a call goes on in the task that waits for it.
//!
//! The rest are system calls on sockets and netlink that wait for nobody; they run on the task that calls, because to change
//! threads takes longer than most of them, and the connection stands still meanwhile. What several handovers need at the same time of a
//! locker that does not wait, one of their tasks does for all. A network namespace belongs to a thread:
//! use a runtime whose threads are all in the namespace of the connections. A mover's own threads are in the namespace of
//! the thread that polls its first move, an acceptor's in that of the thread that calls [`Acceptor::serve`]. A process can have some
//! of each in several namespaces.
//!
//! [`Features::waits`]: tcpmig_lock::Features::waits
//! [`Journal::waits`]: journal::Journal::waits
//! [`Steer::waits`]: crate::steer::Steer::waits

mod acceptor;
mod arrival;
mod batch;
mod descriptors;
mod doubt;
mod exchange;
pub mod journal;
mod keeper;
mod moving;
mod mutex;
mod options;
mod outbox;
mod outcome;
mod outgoing;
mod permits;
pub mod policy;
mod report;
mod resolve;
mod slot;
mod source;
mod spans;
mod target;
mod together;
mod unclaimed;
mod worker;

pub use acceptor::{Acceptor, Arrivals};
pub use arrival::{Arrived, Offer, Offered, Ready};
pub use batch::Moves;
pub use doubt::InDoubt;
pub use journal::Decision;
pub use moving::Move;
pub use options::Options;
pub use outcome::{Ending, Outcome, Reason};
pub use report::Report;
pub use resolve::Resolved;
pub use source::{Connection, Destination, Mover};
