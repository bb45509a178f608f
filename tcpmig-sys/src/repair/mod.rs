//! A connection in repair mode: frozen and read on one host, rebuilt and activated on another.
//!
//! [`FrozenSocket`] goes on here when it is dropped, [`RestoringSocket`] vanishes without a packet. Both are
//! [mute] while they stand still. Between the two lies the [`Snapshot`].

mod arrive;
mod check;
mod closing;
mod deliver;
mod ended;
mod ending;
mod freeze;
pub(crate) mod local_address;
pub mod mute;
mod numbers;
mod open_again;
mod opening;
mod probes;
mod queue;
mod rebuild;
mod snapshot;
mod timers;
mod waiting;

pub(crate) use rebuild::set_clock;

pub use crate::error::NotUsable;
pub use check::{check, is_in_repair_mode};
pub use deliver::Delivery;
pub use freeze::{FreezeError, FrozenSocket};
pub use numbers::{Numbers, Progress};
pub use rebuild::{ActivateError, BoundSocket, ClosedSocket, RestoringSocket, write_unsent};
pub use snapshot::{Clock, Ended, QueueStart, Snapshot};

pub use crate::uapi::RepairWindow;
