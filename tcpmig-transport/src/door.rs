//! Answers hosts that knock as [`knocking`](crate::knocking) says, and runs the handshakes of those that are let to one.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use quinn::{Connecting, ConnectionError, Incoming};
use tokio::sync::oneshot;
use tokio::task::{JoinError, JoinSet};

use crate::budget::Budget;
use crate::credentials::{Credentials, Current};
use crate::error::TransportError;
use crate::handshake;
use crate::knocking::{End, Id, Knocking, Knocks, Verdict};
use crate::limits::TransportLimits;
use crate::peer::Peer;

/// Where first packets come in.
#[derive(Debug)]
pub(crate) struct Door {
    knocking: Mutex<Knocking>,
}

/// One that was let to a handshake.
pub(crate) struct Admitted {
    from: SocketAddr,
    accepted: Result<Connecting, ConnectionError>,
    by: Arc<Current>,
    place: PlaceGuard,
    instead_of: Option<Id>,
}

impl Door {
    pub(crate) fn new(limits: &TransportLimits) -> Self {
        Self {
            knocking: Mutex::new(Knocking::new(limits, Instant::now())),
        }
    }

    /// Answers one that knocks, or does not.
    pub(crate) fn answer(
        self: &Arc<Self>,
        incoming: Incoming,
        endpoint: &quinn::Endpoint,
        credentials: &Credentials,
        limits: &TransportLimits,
    ) -> Option<Admitted> {
        let (from, proven) = (
            incoming.remote_address(),
            incoming.remote_address_validated(),
        );
        let now = Instant::now();
        let mut knocking = self.knocking();
        let admitted = match knocking.judge(from, proven, now) {
            Verdict::Admit { instead_of } => match space(endpoint, credentials, limits) {
                Space::Free => {
                    let id = knocking.admit(from, proven, instead_of, now);
                    // Before TLS takes its own: what is replaced in between is found out.
                    let by = credentials.current();
                    Some(Admitted {
                        from,
                        accepted: incoming.accept(),
                        by,
                        place: PlaceGuard::new(self, id),
                        instead_of,
                    })
                }
                Space::Taken if knocking.refuse(from, now) => {
                    incoming.refuse();
                    None
                }
                Space::Taken => {
                    incoming.ignore();
                    None
                }
                Space::Littered => {
                    knocking.ignore();
                    incoming.ignore();
                    None
                }
            },
            Verdict::Retry => {
                // It fails for a packet that has a token of ours, and that one's address is proven.
                if let Err(error) = incoming.retry() {
                    error.into_incoming().ignore();
                }
                None
            }
            Verdict::Ignore => {
                incoming.ignore();
                None
            }
        };
        report(&mut knocking, now);
        admitted
    }

    pub(crate) fn knocks(&self) -> Knocks {
        self.knocking().knocks()
    }

    fn knocking(&self) -> MutexGuard<'_, Knocking> {
        self.knocking.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether there is room for a connection more.
enum Space {
    Free,
    /// As many hosts are connected as may be.
    Taken,
    /// By connections that have ended and that QUIC still remembers, each for three of its round trips or so.
    Littered,
}

fn space(endpoint: &quinn::Endpoint, credentials: &Credentials, limits: &TransportLimits) -> Space {
    let all = endpoint.open_connections();
    let ending = limits.max_handshakes.saturating_mul(2);
    if all < limits.max_connections {
        Space::Free
    } else if credentials.open() >= limits.max_connections {
        Space::Taken
    } else if all >= limits.max_connections.saturating_add(ending) {
        Space::Littered
    } else {
        Space::Free
    }
}

fn report(knocking: &mut Knocking, now: Instant) {
    if let Some(new) = knocking.report(now) {
        tracing::warn!(
            admitted = new.admitted,
            asked_for_their_address = new.retried,
            unanswered = new.ignored,
            refused = new.refused,
            made_way = new.made_way,
            late = new.late,
            under_way = new.under_way,
            "hosts that connect were turned away; if they are not your own, let only your hosts' addresses reach this UDP port; \
             if they are, see TransportLimits"
        );
    }
}

/// The handshakes under way.
#[derive(Debug, Default)]
pub(crate) struct Guests {
    tasks: JoinSet<Ended>,
    /// Dropped to give one up.
    stops: HashMap<Id, oneshot::Sender<()>>,
}

/// `None`: it was given up for another one.
type Ended = (Id, Option<Result<Peer, TransportError>>);

impl Guests {
    /// Begins the handshake of one that was admitted.
    pub(crate) fn begin(
        &mut self,
        admitted: Admitted,
        credentials: &Arc<Credentials>,
        limits: &TransportLimits,
        budget: &Arc<Budget>,
    ) {
        let Admitted {
            from,
            accepted,
            by,
            place,
            instead_of,
        } = admitted;
        if let Some(id) = instead_of {
            self.stops.remove(&id);
        }
        let (stop, stopped) = oneshot::channel();
        let id = place.id;
        self.stops.insert(id, stop);
        let credentials = (Arc::clone(credentials), by);
        let handshake = handshake::accept(
            from,
            accepted,
            credentials,
            limits.clone(),
            Arc::clone(budget),
        );
        self.tasks.spawn(async move {
            let result = tokio::select! {
                result = handshake => Some(result),
                _ = stopped => None,
            };
            place.end(match &result {
                Some(Ok(_)) => End::LetIn,
                Some(Err(TransportError::HandshakeTimeout { .. })) => End::Late,
                Some(Err(_)) | None => End::Failed,
            });
            (id, result)
        });
    }

    /// Waits until one has ended. `None` if there are none.
    pub(crate) async fn next(
        &mut self,
    ) -> Option<Result<Option<Result<Peer, TransportError>>, JoinError>> {
        let ended = self.tasks.join_next().await?;
        Some(ended.map(|(id, result)| {
            self.stops.remove(&id);
            result
        }))
    }
}

/// The place of one handshake. It becomes free when this is dropped.
#[derive(Debug)]
struct PlaceGuard {
    door: Arc<Door>,
    id: Id,
    end: End,
}

impl PlaceGuard {
    fn new(door: &Arc<Door>, id: Id) -> Self {
        Self {
            door: Arc::clone(door),
            id,
            end: End::Failed,
        }
    }

    fn end(mut self, end: End) {
        self.end = end;
    }
}

impl Drop for PlaceGuard {
    fn drop(&mut self) {
        self.door.knocking().end(self.id, self.end, Instant::now());
    }
}
