//! Captures what arrives for locked flows, for every locker whose rules can log to NFLOG.
//!
//! A group of NFLOG belongs to one socket, so each handle that captures has a group of its own. The locker's rules copy
//! what arrives for the flows of a handle to its group: `nftables::capture` and `iptables::rules` say how.
//!
//! All locks of a handle share its socket: whoever reads keeps for the others what is theirs.

mod flow;
mod log;
mod packets;

use std::collections::HashMap;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tcpmig_format::{FourTuple, SecretBytes};

use crate::LockError;
use log::Log;
pub use packets::{Captured, Packet};

/// The capture of one handle.
pub(crate) struct Capture {
    /// None unless the handle was told to capture.
    group: OnceLock<u16>,
    inbox: Mutex<Inbox>,
}

/// What was read from the socket and not yet handed over.
pub(crate) struct Inbox {
    log: Log,
    /// The newest lock of each flow.
    locks: HashMap<FourTuple, u64>,
    waiting: HashMap<u64, Waiting>,
    last_token: u64,
    /// How many bytes may wait for one lock.
    limit: usize,
}

#[derive(Default)]
struct Waiting {
    captured: Captured,
    bytes: usize,
}

impl Capture {
    /// For a handle in the network namespace of the calling thread.
    pub(crate) fn new() -> Result<Self, LockError> {
        Ok(Self {
            group: OnceLock::new(),
            inbox: Mutex::new(Inbox {
                log: Log::open()?,
                locks: HashMap::new(),
                waiting: HashMap::new(),
                last_token: 0,
                limit: 0,
            }),
        })
    }

    /// From now on the handle captures.
    pub(crate) fn start(&self, buffer_bytes: usize) -> Result<(), LockError> {
        let inbox = &mut *self.inbox();
        if self.group.get().is_none() {
            let _ = self.group.set(inbox.log.bind_free(buffer_bytes)?);
            inbox.limit = buffer_bytes;
        }
        Ok(())
    }

    /// The group of a handle that captures.
    pub(crate) fn group(&self) -> Option<u16> {
        self.group.get().copied()
    }

    /// Has `remove` done to a group if nobody has it, in which nobody can begin to have it; or else does nothing and
    /// gives none.
    pub(crate) fn if_free<T>(
        &self,
        group: u16,
        remove: impl FnOnce() -> T,
    ) -> Result<Option<T>, LockError> {
        let log = &mut self.inbox().log;
        if !log.bind_if_free(group)? {
            return Ok(None);
        }
        let removed = remove();
        log.unbind(group)?;
        Ok(Some(removed))
    }

    /// Notes that packets may have passed without being captured.
    pub(crate) fn lost(&self) {
        for waiting in self.inbox().waiting.values_mut() {
            waiting.captured.overflowed = true;
        }
    }

    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        // It is whole between any two of its operations.
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// In a handle that captures, keeps others from reading until [`Inbox::register`] has said whose the packets of
    /// new locks are; what arrived for older locks of the same flows is not among them.
    pub(crate) fn begin(&self) -> Result<Option<MutexGuard<'_, Inbox>>, LockError> {
        if self.group().is_none() {
            return Ok(None);
        }
        let mut inbox = self.inbox();
        inbox.read()?;
        Ok(Some(inbox))
    }
}

impl Inbox {
    /// Notes that packets of these flows belong to one new lock, from the last read on.
    pub(crate) fn register(&mut self, flows: &[FourTuple]) -> u64 {
        self.last_token += 1;
        let token = self.last_token;
        self.locks.extend(flows.iter().map(|flow| (*flow, token)));
        self.waiting.insert(token, Waiting::default());
        token
    }

    /// Makes one lock of each flow, with what waits for it.
    fn split(&mut self, flows: &[FourTuple], token: u64) -> Vec<u64> {
        let all = self.waiting.remove(&token).unwrap_or_default().captured;
        let mut packets: HashMap<FourTuple, Vec<Packet>> = HashMap::new();
        for packet in all.packets {
            packets.entry(packet.flow).or_default().push(packet);
        }
        let mut part = |flow: &FourTuple| {
            self.last_token += 1;
            let part = self.last_token;
            // A newer lock of the flow has its own.
            if self.locks.get(flow) == Some(&token) {
                self.locks.insert(*flow, part);
            }
            let mut waiting = Waiting::default();
            waiting.captured.overflowed = all.overflowed;
            waiting.captured.packets = packets.remove(flow).unwrap_or_default();
            let bytes = waiting.captured.packets.iter();
            waiting.bytes = bytes.map(|packet| packet.bytes.len()).sum();
            self.waiting.insert(part, waiting);
            part
        };
        flows.iter().map(&mut part).collect()
    }

    fn forget(&mut self, flows: &[FourTuple], token: u64) {
        self.waiting.remove(&token);
        if self.waiting.is_empty() {
            self.locks.clear();
            return;
        }
        for flow in flows {
            if self.locks.get(flow) == Some(&token) {
                self.locks.remove(flow);
            }
        }
    }

    fn read(&mut self) -> Result<(), LockError> {
        let Self {
            log,
            locks,
            waiting,
            limit,
            ..
        } = self;
        let lost = log.read(|bytes| {
            let Some(flow) = flow::flow_of(bytes) else {
                return;
            };
            let token = locks.get(&flow);
            if let Some(waiting) = token.and_then(|token| waiting.get_mut(token)) {
                waiting.push(flow, bytes, *limit);
            }
        })?;
        if lost {
            for waiting in waiting.values_mut() {
                waiting.captured.overflowed = true;
            }
        }
        Ok(())
    }
}

impl Waiting {
    fn push(&mut self, flow: FourTuple, bytes: &[u8], limit: usize) {
        if self.bytes + bytes.len() > limit {
            self.captured.overflowed = true;
            return;
        }
        self.bytes += bytes.len();
        let packet = Packet::new(flow, SecretBytes::from(bytes));
        self.captured.packets.push(packet);
    }
}

/// The right of one lock to its packets, which goes when this does. Empty in a handle that does not capture.
#[derive(Default)]
pub(crate) struct CaptureHandle(Option<Share>);

/// What of a capture one lock has.
pub(crate) struct Share {
    capture: Arc<Capture>,
    flows: Vec<FourTuple>,
    token: u64,
}

impl CaptureHandle {
    /// For the flows that were [registered](Inbox::register) with this token, if they were.
    pub(crate) fn new(capture: &Arc<Capture>, flows: &[FourTuple], token: Option<u64>) -> Self {
        Self(token.map(|token| Share {
            capture: Arc::clone(capture),
            flows: flows.to_vec(),
            token,
        }))
    }

    /// None in a handle that does not capture.
    pub(crate) fn share(&self) -> Option<&Share> {
        self.0.as_ref()
    }

    /// What has arrived since the last time; nothing in a handle that does not capture.
    pub(crate) fn left_over(&self) -> Result<Captured, LockError> {
        self.share().map_or(Ok(Captured::new()), Share::captured)
    }

    /// One for each of the flows, in their order, which have to be those that it was made for. Leaves this one empty.
    pub(crate) fn split(&mut self, flows: &[FourTuple]) -> Vec<Self> {
        let Some(share) = self.0.take() else {
            return flows.iter().map(|_| Self::default()).collect();
        };
        let tokens = share.capture.inbox().split(flows, share.token);
        let part = |(flow, token)| Self::new(&share.capture, &[flow], Some(token));
        flows.iter().copied().zip(tokens).map(part).collect()
    }
}

impl Share {
    /// What has arrived since the last time.
    pub(crate) fn captured(&self) -> Result<Captured, LockError> {
        let mut inbox = self.capture.inbox();
        inbox.read()?;
        let waiting = inbox.waiting.get_mut(&self.token);
        Ok(waiting.map(mem::take).unwrap_or_default().captured)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut inbox = self.capture.inbox();
        inbox.forget(&self.flows, self.token);
    }
}
