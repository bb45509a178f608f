//! What the client's thread has for the caller's.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::eventfd::{EfdFlags, EventFd};
#[cfg(feature = "agent")]
use tcpmig::agent::Drain;
use tcpmig_format::{FourTuple, Layer, SecretBytes};
use tokio::sync::oneshot;

use super::buffers::Buffers;
use crate::border::{Done, Failure};

/// What happened.
pub(crate) enum Item {
    #[cfg(feature = "agent")]
    Drain {
        service: String,
        drain: Drain,
    },
    #[cfg(feature = "agent")]
    Wanted {
        service: String,
        flow: FourTuple,
        host: String,
    },
    Offer {
        id: u64,
        about: About,
        answer: Answer,
    },
    #[cfg(feature = "agent")]
    Withdrawn {
        id: u64,
    },
    Arrived {
        id: u64,
        about: About,
        socket: OwnedFd,
        unwritten: SecretBytes,
        buffers: Buffers,
    },
    Moved {
        id: u64,
    },
    Kept {
        id: u64,
        socket: OwnedFd,
        code: String,
        reason: String,
    },
    Lost {
        id: u64,
        reason: String,
    },
    Doubt {
        id: u64,
    },
    /// The next version of this server is ready.
    #[cfg(feature = "upgrade")]
    Successor {
        process: u32,
    },
    /// It is gone.
    #[cfg(feature = "upgrade")]
    SuccessorGone,
    /// The old version has nothing more.
    #[cfg(feature = "upgrade")]
    Complete,
}

/// A connection that comes, or wants to.
pub(crate) struct About {
    pub(crate) service: String,
    pub(crate) flow: Option<FourTuple>,
    pub(crate) from: String,
    pub(crate) layers: Vec<Layer>,
}

/// Whether an offer is taken, or why not.
pub(crate) type Answer = oneshot::Sender<Result<(), String>>;

/// Items, and a descriptor that is readable while there are some.
pub(crate) struct Queue {
    /// `None` once nobody takes them any more.
    items: Mutex<Option<VecDeque<Item>>>,
    ready: EventFd,
}

impl Queue {
    pub(crate) fn new() -> Done<Arc<Self>> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let ready = EventFd::from_value_and_flags(0, flags);
        Ok(Arc::new(Self {
            items: Mutex::new(Some(VecDeque::new())),
            ready: ready.map_err(|errno| Failure::call("eventfd")(errno.into()))?,
        }))
    }

    pub(crate) fn descriptor(&self) -> i32 {
        self.ready.as_raw_fd()
    }

    /// Its steps are complete or not begun, also after a panic.
    fn items(&self) -> MutexGuard<'_, Option<VecDeque<Item>>> {
        self.items.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An item that nobody takes any more is dropped: a connection is closed, an offer refused.
    pub(crate) fn push(&self, item: Item) {
        let mut items = self.items();
        let Some(items) = &mut *items else {
            return;
        };
        items.push_back(item);
        // It can fail only where it is readable already.
        let _ = self.ready.write(1);
    }

    pub(crate) fn pop(&self) -> Option<Item> {
        let mut items = self.items();
        let items = items.as_mut()?;
        let item = items.pop_front();
        if items.is_empty() {
            // Under the lock, so that nothing that is pushed meanwhile goes unnoticed.
            let _ = self.ready.read();
        }
        item
    }

    /// Nobody takes anything any more.
    pub(crate) fn close(&self) {
        let left = self.items().take();
        // Not under the lock: what they end may push something.
        drop(left);
    }
}
