//! Events, as the caller takes them.

use std::collections::HashMap;
use std::ffi::{CString, c_char, c_void};
use std::os::fd::IntoRawFd;
use std::ptr;
use std::sync::Arc;

use tcpmig_format::{FourTuple, Layer, SecretBytes};

use super::queue::{About, Answer, Item, Queue};
use super::structs::{EventKind, EventStruct};
use crate::border::{Done, Failure};
use crate::flow::Flow;
use crate::layer::LayerStruct;
use crate::sized;

/// The caller's end of a queue of events.
pub(crate) struct Inbox {
    pub(crate) queue: Arc<Queue>,
    /// Offers that wait for the caller's answer.
    asked: HashMap<u64, Answer>,
    /// Drains that are not said to be over.
    #[cfg(feature = "agent")]
    pub(crate) drains: HashMap<u64, tcpmig::agent::Drain>,
    #[cfg(feature = "agent")]
    last_drain: u64,
    current: Current,
}

impl Drop for Inbox {
    fn drop(&mut self) {
        self.queue.close();
    }
}

/// What the event that was taken last points to.
#[derive(Default)]
struct Current {
    service: CString,
    host: CString,
    code: CString,
    reason: CString,
    hosts: Vec<CString>,
    /// To the hosts.
    pointers: Vec<*const c_char>,
    kinds: Vec<CString>,
    layers: Vec<Layer>,
    unwritten: SecretBytes,
    unprocessed: SecretBytes,
}

/// Names and reasons have no NUL; one that had would be empty.
fn text(text: String) -> CString {
    CString::new(text).unwrap_or_default()
}

/// The flow of an event that is not about one.
const NOBODY: Flow = Flow {
    local: [0; 16],
    remote: [0; 16],
    local_port: 0,
    remote_port: 0,
    family: 0,
    reserved: 0,
};

/// An event of this kind that has nothing else.
fn plain(kind: EventKind, id: u64) -> EventStruct {
    EventStruct {
        size: size_of::<EventStruct>(),
        id,
        kind: kind as u32,
        fd: -1,
        flow: NOBODY,
        service: ptr::null(),
        host: ptr::null(),
        hosts: ptr::null(),
        host_count: 0,
        code: ptr::null(),
        reason: ptr::null(),
        layer_count: 0,
        unwritten: ptr::null(),
        unwritten_length: 0,
        unprocessed: ptr::null(),
        unprocessed_length: 0,
    }
}

fn pointer(bytes: &SecretBytes) -> (*const c_void, usize) {
    (bytes.as_ptr().cast(), bytes.len())
}

impl Current {
    fn of(
        &mut self,
        event: &mut EventStruct,
        service: String,
        host: String,
        flow: Option<FourTuple>,
    ) {
        self.service = text(service);
        self.host = text(host);
        event.service = self.service.as_ptr();
        event.host = self.host.as_ptr();
        event.flow = flow.map_or(NOBODY, Flow::from);
    }

    fn about(&mut self, event: &mut EventStruct, about: About) {
        let About {
            service,
            flow,
            from,
            layers,
        } = about;
        self.of(event, service, from, flow);
        self.kinds = layers
            .iter()
            .map(|layer| text(layer.kind.clone()))
            .collect();
        self.layers = layers;
        event.layer_count = self.layers.len();
    }

    fn because(&mut self, event: &mut EventStruct, code: String, reason: String) {
        self.code = text(code);
        self.reason = text(reason);
        event.code = self.code.as_ptr();
        event.reason = self.reason.as_ptr();
    }
}

impl Inbox {
    pub(crate) fn new() -> Done<Self> {
        Ok(Self {
            queue: Queue::new()?,
            asked: HashMap::new(),
            #[cfg(feature = "agent")]
            drains: HashMap::new(),
            #[cfg(feature = "agent")]
            last_drain: 0,
            current: Current::default(),
        })
    }

    /// Takes the next event.
    ///
    /// # Safety
    ///
    /// The pointer is null, or that of a struct that is as long as it says.
    pub(crate) unsafe fn next(&mut self, event: *mut EventStruct) -> Done {
        // Before anything is taken that would be lost.
        // SAFETY: as the caller's.
        unsafe { sized::size_of_given(event, "event") }?;
        let item = self.queue.pop();
        let taken = self.show(item);
        // SAFETY: as the caller's.
        unsafe { sized::write(event, &taken, "event") }
    }

    /// A layer of the event that was taken last.
    ///
    /// # Safety
    ///
    /// The pointer is null, or that of a struct that is as long as it says.
    pub(crate) unsafe fn layer(&self, index: usize, layer: *mut LayerStruct) -> Done {
        let current = &self.current;
        let (Some(found), Some(kind)) = (current.layers.get(index), current.kinds.get(index))
        else {
            return Err(Failure::invalid(format_args!(
                "there is no layer {index}: the event has {}",
                current.layers.len()
            )));
        };
        // SAFETY: as the caller's.
        unsafe { sized::write(layer, &LayerStruct::borrowed(found, kind), "layer") }
    }

    fn show(&mut self, item: Option<Item>) -> EventStruct {
        self.current = Current::default();
        let current = &mut self.current;
        match item {
            None => plain(EventKind::None, 0),
            #[cfg(feature = "agent")]
            Some(Item::Drain { service, drain }) => {
                self.last_drain += 1;
                let mut event = plain(EventKind::Drain, self.last_drain);
                current.service = text(service);
                current.hosts = drain.hosts().iter().cloned().map(text).collect();
                current.pointers = current.hosts.iter().map(|host| host.as_ptr()).collect();
                event.service = current.service.as_ptr();
                event.hosts = current.pointers.as_ptr();
                event.host_count = current.pointers.len();
                self.drains.insert(self.last_drain, drain);
                event
            }
            #[cfg(feature = "agent")]
            Some(Item::Wanted {
                service,
                flow,
                host,
            }) => {
                let mut event = plain(EventKind::Wanted, 0);
                current.of(&mut event, service, host, Some(flow));
                event
            }
            Some(Item::Offer { id, about, answer }) => {
                let mut event = plain(EventKind::Offer, id);
                current.about(&mut event, about);
                // Those that the agent does not wait for any more.
                self.asked.retain(|_, answer| !answer.is_closed());
                self.asked.insert(id, answer);
                event
            }
            #[cfg(feature = "agent")]
            Some(Item::Withdrawn { id }) => plain(EventKind::Withdrawn, id),
            Some(Item::Arrived {
                id,
                about,
                socket,
                unwritten,
                buffers,
            }) => {
                let mut event = plain(EventKind::Arrived, id);
                current.about(&mut event, about);
                current.unwritten = unwritten;
                current.unprocessed = buffers.unprocessed;
                (event.unwritten, event.unwritten_length) = pointer(&current.unwritten);
                (event.unprocessed, event.unprocessed_length) = pointer(&current.unprocessed);
                event.fd = socket.into_raw_fd();
                event
            }
            Some(Item::Moved { id }) => plain(EventKind::Moved, id),
            Some(Item::Kept {
                id,
                socket,
                code,
                reason,
            }) => {
                let mut event = plain(EventKind::Kept, id);
                current.because(&mut event, code, reason);
                event.fd = socket.into_raw_fd();
                event
            }
            Some(Item::Lost { id, reason }) => {
                let mut event = plain(EventKind::Lost, id);
                current.because(&mut event, String::new(), reason);
                event
            }
            Some(Item::Doubt { id }) => plain(EventKind::Doubt, id),
            #[cfg(feature = "upgrade")]
            Some(Item::Successor { process }) => plain(EventKind::Successor, process.into()),
            #[cfg(feature = "upgrade")]
            Some(Item::SuccessorGone) => plain(EventKind::SuccessorGone, 0),
            #[cfg(feature = "upgrade")]
            Some(Item::Complete) => plain(EventKind::Complete, 0),
        }
    }

    /// Answers an offer.
    pub(crate) fn answer(&mut self, offer: u64, decision: Result<(), String>) -> Done {
        let asked = self.asked.remove(&offer);
        let over = || Failure::invalid(format_args!("there is no offer {offer} that waits"));
        // Whoever asked may have gone meanwhile; then nothing comes.
        asked.ok_or_else(over)?.send(decision).map_err(|_| over())
    }
}
