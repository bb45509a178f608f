//! Sessions of hyper servers: they stop at a safe point, even in the middle of a response, and go on elsewhere.

mod connection;
mod gate;
mod resumable;
mod server;
mod service;
mod session;
mod shared;

pub use connection::{Connection, Drained, Ended, Movable, Upgraded};
pub use resumable::{Resumable, Resumed};
pub use server::{Handle, NotMoved, Server};
pub use service::RequestBody;
pub use session::{ConnectionState, KIND, Session, SessionError, State, VERSION};
pub use shared::Obstacle;
