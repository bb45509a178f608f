//! What a connection is doing, for who asks while it does.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::shared::{Phase, Shared};

/// What a connection is doing: [`Handle::doing`](super::Handle::doing).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Doing {
    /// What. Of an HTTP/2 connection it is what the oldest of its streams does that do something.
    pub what: Activity,
    /// The method and target of the request that it is about, as in `GET /events`.
    pub request: Option<String>,
    /// Since when it is idle, or the request was begun here.
    pub since: Instant,
}

/// What a connection can be doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Activity {
    /// Its carrier has not begun: a handshake.
    Beginning,
    /// It waits for a request.
    Idle,
    /// The service is at work on a request.
    Service,
    /// A response is on its way.
    Response {
        /// How many bytes of its body were taken from the service here, if it has a cursor.
        sent: Option<u64>,
    },
    /// It is a WebSocket, or has been upgraded to another protocol.
    Upgraded,
    /// It ends when the peer has read what was written.
    Ending,
}

impl fmt::Display for Doing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(request) = &self.request {
            write!(f, "{request}: ")?;
        }
        match self.what {
            Activity::Beginning => f.write_str("beginning")?,
            Activity::Idle => f.write_str("idle")?,
            Activity::Service => f.write_str("the service is at work")?,
            Activity::Response { sent: None } => f.write_str("in a response")?,
            Activity::Response { sent: Some(sent) } => {
                write!(f, "in a response, {sent} bytes sent")?;
            }
            Activity::Upgraded => f.write_str("upgraded")?,
            Activity::Ending => f.write_str("ending")?,
        }
        // Whole seconds are enough for who looks at a list.
        let whole = Duration::from_secs(self.since.elapsed().as_secs());
        write!(f, ", for {whole:?}")
    }
}

/// Where a connection says what it is doing.
#[derive(Clone)]
pub(super) struct Seen(Arc<Mutex<Now>>);

enum Now {
    Http(Arc<Shared>),
    #[cfg(feature = "http2")]
    Http2(Arc<super::http2::Streams>, Instant),
    Other(Doing),
}

impl Seen {
    /// Of a connection that has not begun.
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Now::Other(Doing {
            what: Activity::Beginning,
            request: None,
            since: Instant::now(),
        }))))
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        // A panic elsewhere leaves whole values only.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_http(&self, shared: &Arc<Shared>) {
        *self.now() = Now::Http(shared.clone());
    }

    #[cfg(feature = "http2")]
    pub(super) fn is_http2(&self, streams: &Arc<super::http2::Streams>) {
        *self.now() = Now::Http2(streams.clone(), Instant::now());
    }

    pub(super) fn is(&self, what: Activity, head: Option<&[u8]>) {
        *self.now() = Now::Other(Doing {
            what,
            request: head.and_then(request_of),
            since: Instant::now(),
        });
    }

    pub(super) fn doing(&self) -> Doing {
        let shared = match &*self.now() {
            Now::Http(shared) => shared.clone(),
            #[cfg(feature = "http2")]
            Now::Http2(streams, since) => match streams.oldest() {
                Some(shared) => shared,
                None => {
                    return Doing {
                        what: Activity::Idle,
                        request: None,
                        since: *since,
                    };
                }
            },
            Now::Other(doing) => return doing.clone(),
        };
        let current = shared.current();
        let what = match &current.phase {
            Phase::Rest | Phase::Held => Activity::Idle,
            Phase::Service => Activity::Service,
            Phase::Response(responding) => Activity::Response {
                sent: responding.cursor.is_some().then_some(responding.passed),
            },
        };
        let request = match what {
            Activity::Idle => None,
            _ => request_of(&current.head),
        };
        Doing {
            what,
            request,
            since: current.since,
        }
    }
}

impl fmt::Debug for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Seen").field(&self.doing()).finish()
    }
}

/// The method and target of a request's head.
pub(super) fn request_of(head: &[u8]) -> Option<String> {
    let line = head.split(|&byte| byte == b'\r').next()?;
    let line = String::from_utf8_lossy(line);
    let (request, _) = line.rsplit_once(' ')?;
    Some(request.to_owned())
}
