//! The client and its thread.

use std::collections::HashMap;
use std::ffi::{CString, c_char, c_int};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use libc::iovec;
use tcpmig::agent::{AgentError, Client, Event, Events, Offer, Service};
use tcpmig::handover::{Code as RefusalCode, Refusal};
use tcpmig::session::{Arrival, Departed, Parts, Way};
use tcpmig_format::Octets;
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

use super::buffers::{self, Buffers};
use super::event::Current;
use super::queue::{About, Answer, Item, Queue};
use super::structs::{SERVICE_TAKES, ServiceStruct, SessionStruct};
use crate::border::{Code, Done, Failure, answer, enter, without_signals};
use crate::flow::flow_of;
use crate::layer;
use crate::sized::{self, descriptor, given};

/// `struct tcpmig_agent`.
pub struct AgentHandle {
    client: Client,
    host: CString,
    pub(super) queue: Arc<Queue>,
    /// Counts offers.
    offers: Arc<AtomicU64>,
    /// Those that wait for the caller's answer.
    pub(super) asked: HashMap<u64, Answer>,
    /// Those that are not said to be over.
    pub(super) drains: HashMap<u64, tcpmig::agent::Drain>,
    pub(super) last_drain: u64,
    pub(super) current: Current,
    runtime: Handle,
    /// Its end is that of the thread.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl From<AgentError> for Failure {
    fn from(error: AgentError) -> Self {
        let code = match &error {
            AgentError::Refused { .. } => Code::Refused,
            _ => Code::Unreachable,
        };
        Self::of(code, &error)
    }
}

/// What the thread says when it is there.
type Begun = Result<(Client, Handle), Failure>;

/// What the thread does, until nobody listens to it.
fn live(path: &std::path::Path, begun: &mpsc::Sender<Begun>, stop: oneshot::Receiver<()>) {
    let runtime = match Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = begun.send(Err(Failure::call("epoll_create")(error)));
            return;
        }
    };
    runtime.block_on(async {
        match Client::connect(path).await {
            Ok(client) => {
                let _ = begun.send(Ok((client, Handle::current())));
                // Also if the other end was dropped.
                let _ = stop.await;
            }
            Err(error) => {
                let _ = begun.send(Err(error.into()));
            }
        }
    });
}

impl AgentHandle {
    fn connect(path: PathBuf) -> Done<Self> {
        let queue = Queue::new()?;
        let (begun, is_begun) = mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("tcpmig-agent".to_owned());
        let thread = without_signals(|| thread.spawn(move || live(&path, &begun, stopped)));
        let thread = thread.map_err(Failure::call("pthread_create"))?;
        let begun = is_begun.recv();
        let (client, runtime) = match begun {
            Ok(Ok(begun)) => begun,
            Ok(Err(failure)) => {
                let _ = thread.join();
                return Err(failure);
            }
            Err(_) => {
                let _ = thread.join();
                return Err(Failure::new(
                    Code::Internal,
                    "the thread of the client has ended",
                ));
            }
        };
        // It comes from a certificate, where a NUL is no part of a name.
        let host = CString::new(client.host()).unwrap_or_default();
        Ok(Self {
            client,
            host,
            queue,
            offers: Arc::default(),
            asked: HashMap::new(),
            drains: HashMap::new(),
            last_drain: 0,
            current: Current::default(),
            runtime,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    fn register(&self, service: Service, name: &str, takes: bool) -> Done {
        let service = if takes {
            let (queue, offers) = (Arc::clone(&self.queue), Arc::clone(&self.offers));
            let name = name.to_owned();
            service.takes(move |offer| {
                let id = offers.fetch_add(1, Ordering::Relaxed) + 1;
                ask(offer, id, Arc::clone(&queue), name.clone())
            })
        } else {
            service
        };
        let (answer, answered) = mpsc::channel();
        let (client, queue) = (self.client.clone(), Arc::clone(&self.queue));
        let name = name.to_owned();
        self.runtime.spawn(async move {
            match client.register(service).await {
                Ok(events) => {
                    let _ = answer.send(Ok(()));
                    // Only the handle keeps the client.
                    drop(client);
                    hear(events, &queue, &name).await;
                }
                Err(error) => {
                    let _ = answer.send(Err(error.into()));
                }
            }
        });
        let gone = |_| Failure::new(Code::Internal, "the thread of the client has ended");
        answered.recv().map_err(gone)?
    }

    fn give(&self, parts: Parts, service: &str, host: String, id: u64) {
        let (way, queue) = (self.client.way(service), Arc::clone(&self.queue));
        self.runtime.spawn(async move {
            let mut departed = way.depart(parts, &host).await;
            loop {
                let item = match departed {
                    Departed::Moved(_) => Item::Moved { id },
                    Departed::Kept { parts, cause } => Item::Kept {
                        id,
                        socket: parts.socket,
                        code: cause.code,
                        reason: cause.reason,
                    },
                    Departed::Lost(reason) => Item::Lost { id, reason },
                    Departed::InDoubt(doubt) => {
                        queue.push(Item::Doubt { id });
                        departed = doubt.await;
                        continue;
                    }
                };
                return queue.push(item);
            }
        });
    }
}

impl Drop for AgentHandle {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // What it ended with is of no use any more.
            let _ = thread.join();
        }
    }
}

/// A connection that was taken; it is withdrawn when this is dropped.
struct Taken {
    id: u64,
    service: String,
    from: String,
    queue: Option<Arc<Queue>>,
}

impl Drop for Taken {
    fn drop(&mut self) {
        if let Some(queue) = self.queue.take() {
            queue.push(Item::Withdrawn { id: self.id });
        }
    }
}

/// Has the caller asked whether a connection may come.
async fn ask(offer: Offer, id: u64, queue: Arc<Queue>, service: String) -> Result<Taken, Refusal> {
    let layers = buffers::split(offer.layers);
    let (layers, _) = layers.map_err(|why| Refusal::new(RefusalCode::Session, why))?;
    let (answer, answered) = oneshot::channel();
    let from = offer.from.to_string();
    let about = About {
        service: service.clone(),
        flow: offer.flow,
        from: from.clone(),
        layers,
    };
    queue.push(Item::Offer { id, about, answer });
    match answered.await {
        Ok(Ok(())) => Ok(Taken {
            id,
            service,
            from,
            queue: Some(queue),
        }),
        Ok(Err(why)) => Err(Refusal::new(RefusalCode::Session, why)),
        Err(_) => Err(Refusal::other("the server ends")),
    }
}

/// Queues what the agent has for a service.
async fn hear(mut events: Events, queue: &Arc<Queue>, service: &str) {
    while let Some(event) = events.next().await {
        let service = service.to_owned();
        match event {
            Event::Drain(drain) => queue.push(Item::Drain { service, drain }),
            Event::Wanted { flow, to } => queue.push(Item::Wanted {
                service,
                flow,
                host: to,
            }),
            Event::Arrived(arrival) => arrived(arrival, queue),
            _ => {}
        }
    }
}

fn arrived(arrival: Arrival, queue: &Queue) {
    let Arrival {
        socket,
        flow,
        mut unwritten,
        layers,
        ready,
        ..
    } = arrival;
    let taken = ready.and_then(|ready| ready.downcast::<Taken>().ok());
    // INVARIANT: only [`ask`] takes connections, and refuses layers that cannot be split.
    let (Some(mut taken), Ok((layers, buffers))) = (taken, buffers::split(layers)) else {
        return;
    };
    taken.queue = None;
    // What the kernel had been given goes before what it had not.
    unwritten.extend_from_slice(&buffers.unsent);
    let about = About {
        service: std::mem::take(&mut taken.service),
        flow,
        from: std::mem::take(&mut taken.from),
        layers,
    };
    queue.push(Item::Arrived {
        id: taken.id,
        about,
        socket,
        unwritten,
        buffers,
    });
}

/// All bytes of these vectors, in order.
///
/// # Safety
///
/// As the header says of them.
unsafe fn gather(first: *const iovec, count: usize, what: &str) -> Done<Octets> {
    // SAFETY: as the caller's.
    let vectors = unsafe { sized::slice(first, count, what) }?;
    let length: usize = vectors.iter().map(|vector| vector.iov_len).sum();
    // In one piece: memory that grows leaves what it had behind where it was.
    let mut bytes = Vec::with_capacity(length.min(isize::MAX as usize));
    for vector in vectors {
        // SAFETY: as the caller's.
        let more = unsafe { sized::slice::<u8>(vector.iov_base.cast(), vector.iov_len, what) }?;
        bytes.extend_from_slice(more);
    }
    Ok(bytes.into())
}

/// # Safety
///
/// As the header says of it.
unsafe fn layers_of(session: *const SessionStruct) -> Done<Vec<tcpmig_format::Layer>> {
    if session.is_null() {
        return Ok(Vec::new());
    }
    // SAFETY: it is as long as it says.
    let session = unsafe { sized::read(session, "session") }?;
    // SAFETY: as the header says.
    let layers = unsafe { layer::read(session.layers, session.layer_count) }?;
    // SAFETY: as the header says.
    let unprocessed = unsafe {
        gather(
            session.unprocessed,
            session.unprocessed_count,
            "unprocessed",
        )
    }?;
    // SAFETY: as the header says.
    let unsent = unsafe { gather(session.unsent, session.unsent_count, "unsent") }?;
    let buffers = Buffers {
        unprocessed,
        unsent,
    };
    Ok(buffers::join(layers, &buffers))
}

exported! {
    /// `tcpmig_agent_connect`.
    fn tcpmig_agent_connect(
        path: *const c_char,
        agent: Option<&mut MaybeUninit<Option<Box<AgentHandle>>>>,
    ) -> c_int {
        enter(|| {
            let agent = given(agent, "agent")?;
            // SAFETY: a string, as the header says.
            let path = unsafe { sized::text(path, "path") }?;
            let handle = AgentHandle::connect(PathBuf::from(path))?;
            agent.write(Some(Box::new(handle)));
            Ok(())
        })
    }
}

exported! {
    /// `tcpmig_agent_free`.
    fn tcpmig_agent_free(agent: Option<&mut Option<Box<AgentHandle>>>) {
        answer((), || drop(agent.and_then(Option::take)));
    }
}

exported! {
    /// `tcpmig_agent_fd`.
    fn tcpmig_agent_fd(agent: Option<&AgentHandle>) -> c_int {
        answer(-1, || agent.map_or(-1, |agent| agent.queue.descriptor()))
    }
}

exported! {
    /// `tcpmig_agent_host`.
    fn tcpmig_agent_host(agent: Option<&AgentHandle>) -> *const c_char {
        agent.map_or(c"", |agent| agent.host.as_c_str()).as_ptr()
    }
}

exported! {
    /// `tcpmig_agent_register`.
    fn tcpmig_agent_register(
        agent: Option<&mut AgentHandle>,
        service: *const ServiceStruct,
    ) -> c_int {
        enter(|| {
            let agent = given(agent, "agent")?;
            // SAFETY: it is as long as it says.
            let service = unsafe { sized::read(service, "service") }?;
            // SAFETY: a string, as the header says.
            let name = unsafe { sized::text(service.name, "service.name") }?;
            if service.flags & !SERVICE_TAKES != 0 {
                return Err(Failure::invalid("service has flags that do not exist"));
            }
            let (first, count) = (service.addresses, service.address_count);
            // SAFETY: so many strings, as the header says.
            let addresses = unsafe { sized::slice(first, count, "service.addresses") }?;
            let mut registered = Service::new(name);
            for address in addresses {
                // SAFETY: a string, as the header says.
                let text = unsafe { sized::text(*address, "an address of the service") }?;
                let wrong = |_| Failure::invalid(format_args!("{text:?} is not ADDRESS:PORT"));
                registered = registered.address(text.parse::<SocketAddr>().map_err(wrong)?);
            }
            agent.register(registered, name, service.flags & SERVICE_TAKES != 0)
        })
    }
}

exported! {
    /// `tcpmig_agent_give`.
    fn tcpmig_agent_give(
        agent: Option<&mut AgentHandle>,
        fd: c_int,
        service: *const c_char,
        host: *const c_char,
        session: *const SessionStruct,
        id: u64,
    ) -> c_int {
        enter(|| {
            let agent = given(agent, "agent")?;
            // SAFETY: a string, as the header says.
            let service = unsafe { sized::text(service, "service") }?;
            // SAFETY: a string, as the header says.
            let host = unsafe { sized::text(host, "host") }?;
            // SAFETY: it is as long as it says.
            let layers = unsafe { layers_of(session) }?;
            // SAFETY: it is the caller's until it is given below.
            let fd = unsafe { descriptor(fd) }?;
            flow_of(fd)?;
            // SAFETY: the caller gives it.
            let socket = unsafe { OwnedFd::from_raw_fd(fd.as_raw_fd()) };
            agent.give(Parts { socket, layers }, service, host.to_owned(), id);
            Ok(())
        })
    }
}
