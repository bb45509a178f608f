//! What the client's thread has for the caller's.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::eventfd::{EfdFlags, EventFd};
use tcpmig::agent::Drain;
use tcpmig_format::{FourTuple, Layer, Octets};
use tokio::sync::oneshot;

use super::buffers::Buffers;
use crate::border::{Done, Failure};

/// What happened.
pub(super) enum Item {
    Drain {
        service: String,
        drain: Drain,
    },
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
    Withdrawn {
        id: u64,
    },
    Arrived {
        id: u64,
        about: About,
        socket: OwnedFd,
        unwritten: Octets,
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
}

/// A connection that comes, or wants to.
pub(super) struct About {
    pub(super) service: String,
    pub(super) flow: FourTuple,
    pub(super) from: String,
    pub(super) layers: Vec<Layer>,
}

/// Whether an offer is taken, or why not.
pub(super) type Answer = oneshot::Sender<Result<(), String>>;

/// Items, and a descriptor that is readable while there are some.
pub(super) struct Queue {
    items: Mutex<VecDeque<Item>>,
    ready: EventFd,
}

impl Queue {
    pub(super) fn new() -> Done<Arc<Self>> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let ready = EventFd::from_value_and_flags(0, flags);
        Ok(Arc::new(Self {
            items: Mutex::default(),
            ready: ready.map_err(|errno| Failure::call("eventfd")(errno.into()))?,
        }))
    }

    pub(super) fn descriptor(&self) -> i32 {
        self.ready.as_raw_fd()
    }

    /// Its steps are complete or not begun, also after a panic.
    fn items(&self) -> MutexGuard<'_, VecDeque<Item>> {
        self.items.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn push(&self, item: Item) {
        let mut items = self.items();
        items.push_back(item);
        // It can fail only where it is readable already.
        let _ = self.ready.write(1);
    }

    pub(super) fn pop(&self) -> Option<Item> {
        let mut items = self.items();
        let item = items.pop_front();
        if items.is_empty() {
            // Under the lock, so that nothing that is pushed meanwhile goes unnoticed.
            let _ = self.ready.read();
        }
        item
    }
}
