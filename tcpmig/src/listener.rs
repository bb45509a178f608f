//! Listeners: re-created on another host, not moved.
//!
//! [`capture()`] reads a listener into an image of its own kind ([`Image::listener`]) and [`restore()`] makes one like it.
//! Nothing of it is locked or frozen, and the one that was read goes on until its owner closes it. The connections that
//! wait in it are a matter of [`Waiting`].
//!
//! To take a service away from a host without losing a connection: [`capture()`] with [`Waiting::Leave`], [`restore()`] on the
//! target, steer what is new there, then [`capture()`] with [`Waiting::Accept`], move what was accepted, and close the
//! listener. Closing it resets what still waits in it, and a handshake that was under way.
//!
//! Not carried: the key of Fast Open's cookies (clients fall back to an ordinary handshake), BPF programs that spread
//! connections over a `SO_REUSEPORT` group, and MD5 and TCP-AO keys. Under `SO_REUSEPORT` the group shares the connections that wait
//! by no rule that could be carried.

use std::net::{SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use tcpmig_format::{Image, InvalidListen, ListenImage};
use tcpmig_sys::listener::{self, NewListener};
use tcpmig_sys::options::Told;
use tcpmig_sys::{netns, sockopt};

use crate::capture::{self, CaptureError};
use crate::options::{self, Setter, Unsupported};
use crate::restore::{INJECT_MARK, RestoreError};

/// What is done about connections that wait in a listener to be accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Waiting {
    /// If one waits, the listener is not captured: nothing is forgotten by mistake.
    #[default]
    Refuse,
    /// They are accepted and handed to the caller, to be moved as any other connection.
    Accept,
    /// They stay where they are, for the application that goes on with the listener.
    Leave,
}

/// A listener that was read.
#[derive(Debug)]
#[non_exhaustive]
pub struct Captured {
    /// Its image.
    pub image: Image,
    /// What waited in it, in the order of its coming: with [`Waiting::Accept`] alone.
    pub accepted: Vec<OwnedFd>,
}

/// Why a listener was not captured. It goes on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenerError {
    /// It is not a listener, or a call on it failed.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// Connections wait in it.
    #[error("{0} connections wait in the listener to be accepted")]
    Waits(u32),
    /// What waits could not be accepted.
    #[error("{error}, after {} connections were accepted", accepted.len())]
    Accept {
        /// What was accepted before.
        accepted: Vec<OwnedFd>,
        /// Why no more.
        #[source]
        error: tcpmig_sys::Error,
    },
    /// What was read contradicts itself.
    #[error("the listener: {0}")]
    Invalid(#[from] InvalidListen),
}

impl From<tcpmig_sys::Error> for ListenerError {
    fn from(error: tcpmig_sys::Error) -> Self {
        Self::Capture(error.into())
    }
}

/// Reads a listener, which goes on as before.
///
/// # Errors
///
/// [`ListenerError`]; with [`ListenerError::Accept`] some connections were accepted, otherwise nothing was done.
pub fn capture(fd: BorrowedFd<'_>, waiting: Waiting) -> Result<Captured, ListenerError> {
    listener::check(fd)?;
    let listen = read(fd)?;
    listen.check()?;
    let mut accepted = Vec::new();
    match waiting {
        Waiting::Refuse => {
            let now = listener::accept_queue(fd)?.waiting;
            if now > 0 {
                return Err(ListenerError::Waits(now));
            }
        }
        Waiting::Leave => {}
        Waiting::Accept => {
            let (got, done) = listener::accept_waiting(fd);
            if let Err(error) = done {
                return Err(ListenerError::Accept {
                    accepted: got,
                    error,
                });
            }
            accepted = got;
        }
    }
    let mut image = Image::new(listen);
    image.taken = capture::now();
    Ok(Captured { image, accepted })
}

fn read(fd: BorrowedFd<'_>) -> Result<ListenImage, ListenerError> {
    let bound = listener::local(fd)?;
    let local = SocketAddr::new(bound.ip(), bound.port());
    let mut listen = ListenImage::new(local, listener::accept_queue(fd)?.backlog);
    if let SocketAddr::V6(v6) = bound {
        listen.v6_only = Some(sockopt::v6_only(fd)?);
        listen.transparent = sockopt::transparent_v6(fd)?;
        listen.freebind = sockopt::freebind_v6(fd)?;
        if v6.scope_id() != 0 {
            listen.scope = Some(netns::device_name(v6.scope_id())?);
        }
    } else {
        listen.transparent = sockopt::transparent(fd)?;
        listen.freebind = sockopt::freebind(fd)?;
    }
    listen.bound_device = sockopt::bound_device(fd)?;
    listen.mark = Some(sockopt::mark(fd)?).filter(|&mark| mark != 0);
    if listen.mark == Some(INJECT_MARK) {
        // The connections that it accepts have its mark.
        return Err(CaptureError::InjectMark.into());
    }
    listen.priority = Some(sockopt::priority(fd)?).filter(|&priority| priority != 0);
    listen.defer_accept = listener::defer_accept(fd)?;
    listen.fast_open = listener::fast_open(fd)?;
    listen.socket = options::socket(fd, &Told::default(), sockopt::filter(fd)?.as_deref())?;
    Ok(listen)
}

/// Makes a listener like the one in the image, on the calling thread's host. It listens when this returns. Layers of the
/// image are the caller's to consume.
///
/// # Errors
///
/// [`RestoreError::Layer`] if the image has no listener, [`RestoreError::Option`] for an option that this host cannot
/// honour, [`RestoreError::Socket`] with the call that failed: EADDRINUSE of
/// `bind` or `listen` if the port is taken; [`NotAsAsked`](tcpmig_sys::Error::NotAsAsked) if the host allows fewer
/// connections to wait. Nothing is left behind.
pub fn restore(image: &Image) -> Result<OwnedFd, RestoreError> {
    let listen = image.listener().ok_or(RestoreError::Layer("listener"))?;
    if listen.mark == Some(INJECT_MARK) {
        return Err(RestoreError::InjectMark);
    }
    let new = NewListener::open(listen.local.is_ipv6())?;
    let fd = new.as_fd();
    if let Some(device) = &listen.bound_device {
        sockopt::set_bound_device(fd, device)?;
    }
    if let Some(mark) = listen.mark {
        sockopt::set_mark(fd, mark)?;
    }
    if let Some(priority) = listen.priority {
        sockopt::set_priority(fd, priority)?;
    }
    let mut local = listen.local;
    if let SocketAddr::V6(v6) = listen.local {
        if let Some(v6_only) = listen.v6_only {
            sockopt::set_v6_only(fd, v6_only)?;
        }
        sockopt::set_transparent_v6(fd, listen.transparent)?;
        sockopt::set_freebind_v6(fd, listen.freebind)?;
        if let Some(name) = &listen.scope {
            let scope = netns::device_index(name)?;
            local = SocketAddrV6::new(*v6.ip(), v6.port(), 0, scope).into();
        }
    } else {
        sockopt::set_transparent(fd, listen.transparent)?;
        sockopt::set_freebind(fd, listen.freebind)?;
    }
    if let Some(reuse) = listen.socket.reuse_addr {
        sockopt::set_reuse_addr(fd, i32::from(reuse))?;
    }
    let mut refused = Vec::new();
    let mut set = Setter::new(fd, Unsupported::Refuse, &mut refused);
    options::listener(&mut set, &listen.socket)?;
    if listen.defer_accept != 0 {
        listener::set_defer_accept(fd, listen.defer_accept)?;
    }
    if listen.fast_open != 0 {
        listener::set_fast_open(fd, listen.fast_open)?;
    }
    Ok(new.listen(local, listen.backlog)?)
}
