//! The next version of a server takes over on the same host: its listeners, and every session at its next safe point.
//!
//! The old process is a [`Predecessor`]: it waits at a Unix socket. The new one, a [`Successor`], connects there, gets the
//! listeners, says that it is ready, and then takes one session after another. Nothing is frozen, locked or
//! repaired, so it needs no privilege: the sockets themselves go from one process to the other.
//!
//! ```text
//!  new process                                   old process
//!  Successor::connect ── Hello ─────────────────▶
//!                     ◀──────────── Listener .. ─  what it listens on; both may accept from here on
//!                     ◀──────────────── Welcome ─
//!  .ready()           ── Ready ─────────────────▶  Predecessor::next: it stops accepting
//!                     ◀──── Session 1 (socket) ──  at its safe point
//!                     ── Taken 1 ───────────────▶
//!                     ◀────────────── Commit 1 ──  from here on it is the new process's
//!                     ◀─────────────── Finished ─  there are no more; the old process ends
//! ```
//!
//! # Who has a session
//!
//! The old process, until it has ordered the new one to go on with it (*Commit*). It does that when the new one has
//! answered that it can; then it has forgotten the session itself. Whatever happens to the new process before (it
//! crashes, refuses a session by its kind or version, or hangs), the session goes on in the old one; a new process that gets no
//! *Commit* never writes to a session nor reads from it. So there are never two owners.
//!
//! A connection that waits in the listen queue is accepted by either process: the queue belongs to the listener, which
//! both of them have.
//!
//! # systemd
//!
//! [`systemd`] has what a service says to systemd and gets from it. A unit for a server that replaces itself:
//!
//! ```ini
//! [Service]
//! Type=notify-reload
//! NotifyAccess=main
//! ExecStart=/usr/bin/app
//! RuntimeDirectory=app
//! FileDescriptorStoreMax=20000
//! ```
//!
//! - **`systemctl reload`** sends `SIGHUP` to the main process. That answers with [`Notify::reloading`](systemd::Notify::reloading) and starts the program
//!   anew, as its child; when [`Predecessor::next`] gives the new process, it says [`Notify::replaced_by`](systemd::Notify::replaced_by), which ends the
//!   reload, gives away what it has, and ends. If the new version fails instead, it says [`Notify::ready`](systemd::Notify::ready) and goes on.
//! - **Socket activation**: [`Passed::listener`](systemd::Passed::listener) is the listener of a socket unit. What waits in it outlives the service.
//! - **A crash**: the `Store` (with the feature `http`) has systemd keep sessions at rest, and says exactly which survive.
//!
//! Started by hand the same program does the same: it takes over from whoever waits at the path.
//!
//! # Who may take over
//!
//! A process of the same user (`SO_PEERCRED`), whichever of them is asked by the other. The socket is a file that only this user can
//! open (mode 0600).
//!
//! ```no_run
//! use tcpmig::upgrade::{Arrivals, Predecessor, Successor};
//! # use tcpmig::http::{Movable, Server, RequestBody};
//! # use std::convert::Infallible;
//! # async fn service(_: hyper::Request<RequestBody>) -> Result<hyper::Response<String>, Infallible> { Ok(Default::default()) }
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let server = Server::new(Movable::new(hyper::service::service_fn(service)));
//! let path = "/run/user/1000/app.sock";
//! let movable = Movable::new(hyper::service::service_fn(service));
//! let check = move |layers: &[_]| Ok(movable.check(layers)?);
//!
//! // What an older version of this server has, if there is one.
//! let (listener, mut arrivals) = match Successor::connect(path, check).await? {
//!     Some(mut successor) => {
//!         let listener = successor.listener("http").ok_or("the old version does not listen")?;
//!         (listener, successor.ready().await?)
//!     }
//!     None => (std::net::TcpListener::bind("0.0.0.0:8080")?, Arrivals::none()),
//! };
//! let arrived = |arrival| {
//!     let server = server.clone();
//!     tokio::spawn(async move { server.arrived(arrival).await.map(drop) });
//! };
//! let mut predecessor = Predecessor::bind(path)?.listener("http", &listener)?;
//! listener.set_nonblocking(true)?;
//! let listener = tokio::net::TcpListener::from_std(listener)?;
//! loop {
//!     tokio::select! {
//!         accepted = listener.accept() => {
//!             let (server, (stream, _)) = (server.clone(), accepted?);
//!             tokio::spawn(async move { server.serve(stream).await.map(drop) });
//!         }
//!         Some(arrival) = arrivals.next() => arrived(arrival),
//!         next = predecessor.next() => {
//!             // It accepts now; this version stops, and gives away what it has until nothing is left.
//!             if next.take_all(&server, &mut arrivals, arrived).await.is_ok() {
//!                 return Ok(());
//!             }
//!         }
//!     }
//! }
//! # }
//! ```

mod frame;
mod predecessor;
mod socket;
#[cfg(feature = "http")]
mod store;
mod successor;
pub mod systemd;
#[cfg(test)]
mod tests;

use std::io;

pub use predecessor::{Next, Predecessor};
#[cfg(feature = "http")]
pub use store::{NotNoted, Store};
pub use successor::{Arrivals, Successor};

/// Why a process cannot take over, or be taken over.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UpgradeError {
    /// The Unix socket, or something that went over it.
    #[error("{call}: {source}")]
    Call {
        /// What was tried.
        call: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// Passing a descriptor.
    #[error(transparent)]
    Passing(#[from] tcpmig_sys::Error),
    /// The process at the other end is another user's.
    #[error(
        "process {process} at the other end belongs to user {user}, this one to user {own}: only one user's processes take over from each other"
    )]
    OtherUser {
        /// The process.
        process: u32,
        /// Its user.
        user: u32,
        /// This process's user.
        own: u32,
    },
    /// The other process speaks another version of this protocol.
    #[error("the other process speaks version {0} of the protocol of upgrades, this one version {own}", own = frame::VERSION)]
    Version(u16),
    /// The other process said something that has no place there.
    #[error("the other process said something unexpected: {0}")]
    Unexpected(&'static str),
    /// The other process has ended, or has closed the socket.
    #[error("the other process is gone")]
    Gone,
    /// The other process does not answer.
    #[error("the other process has not answered for {0:?}")]
    Silent(std::time::Duration),
}

impl UpgradeError {
    fn call(call: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Call { call, source }
    }
}

/// Why a session stays in the old process, and goes on there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotTaken {
    /// The new process cannot go on with it, for this reason.
    #[error("the new process refuses it: {0}")]
    Refused(String),
    /// The new process is gone.
    #[error("the new process is gone")]
    Gone,
    /// The new process has not answered in time.
    #[error("the new process has not answered for {0:?}")]
    Silent(std::time::Duration),
    /// The session cannot be encoded.
    #[error("the session cannot be passed: {0}")]
    Encode(String),
}
