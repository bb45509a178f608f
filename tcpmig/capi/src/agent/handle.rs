//! The client and its thread.

use std::ffi::{CString, c_char, c_int};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tcpmig::agent::{AgentError, Client, Event, Events, Offer, Service};
use tcpmig::handover::{Code as RefusalCode, Refusal};
use tcpmig::session::{Arrival, Departed, Parts, Way};
use tokio::sync::oneshot;

use super::service::{SERVICE_TAKES, ServiceStruct};
use crate::border::{Code, Done, Failure, answer, enter};
use crate::flow::flow_of;
use crate::sessions::{About, Inbox, Item, Live, Queue, SessionStruct, layers_of, take_out};
use crate::sized::{self, descriptor, given};

/// `struct tcpmig_agent`.
pub struct AgentHandle {
    client: Client,
    host: CString,
    pub(super) inbox: Inbox,
    /// Counts offers.
    offers: Arc<AtomicU64>,
    live: Live,
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

impl AgentHandle {
    fn connect(path: PathBuf) -> Done<Self> {
        let (inbox, live) = (Inbox::new()?, Live::start("tcpmig-agent")?);
        let client = live.wait_for(async move { Client::connect(path).await })??;
        // It comes from a certificate, where a NUL is not part of a name.
        let host = CString::new(client.host()).unwrap_or_default();
        Ok(Self {
            client,
            host,
            inbox,
            offers: Arc::default(),
            live,
        })
    }

    fn register(&self, service: Service, name: &str, takes: bool) -> Done {
        let service = if takes {
            let (queue, offers) = (Arc::clone(&self.inbox.queue), Arc::clone(&self.offers));
            let name = name.to_owned();
            service.takes(move |offer| {
                let id = offers.fetch_add(1, Ordering::Relaxed) + 1;
                ask(offer, id, Arc::clone(&queue), name.clone())
            })
        } else {
            service
        };
        let client = self.client.clone();
        let events = self
            .live
            .wait_for(async move { client.register(service).await })??;
        let (queue, name) = (Arc::clone(&self.inbox.queue), name.to_owned());
        self.live
            .spawn(async move { hear(events, &queue, &name).await });
        Ok(())
    }

    fn give(&self, parts: Parts, service: &str, host: String, id: u64) {
        let (way, queue) = (self.client.way(service), Arc::clone(&self.inbox.queue));
        self.live.spawn(async move {
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
    let layers = take_out(offer.layers);
    let (layers, _) = layers.map_err(|why| Refusal::new(RefusalCode::Session, why))?;
    let (answer, answered) = oneshot::channel();
    let from = offer.from.to_string();
    let about = About {
        service: service.clone(),
        flow: Some(offer.flow),
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
    // INVARIANT: only [`ask`] takes connections, and refuses layers that cannot be taken apart.
    let (Some(mut taken), Ok((layers, buffers))) = (taken, take_out(layers)) else {
        return;
    };
    taken.queue = None;
    // What the kernel had been given goes before what it had not.
    unwritten.extend_from_slice(&buffers.unsent);
    let about = About {
        service: std::mem::take(&mut taken.service),
        flow: Some(flow),
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
        answer(-1, || agent.map_or(-1, |agent| agent.inbox.queue.descriptor()))
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
