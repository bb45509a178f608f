//! What a connection's gate, service and bodies know of each other.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};
use std::time::Instant;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::cursor::{AnyCursor, Named, Saved};
use super::inbound::Inbound;
use super::resumable::NotResumed;
#[cfg(feature = "http2")]
use super::upload::{Progress, Uploaded};

/// Why a connection stands at no safe point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Obstacle {
    /// A request has begun and its body has not arrived, or was not read to its end.
    #[error("the body of a request is still arriving")]
    Request,
    /// The body of the request whose response is in the middle is larger than what is carried
    /// ([`Movable::carry_bodies`](super::Movable::carry_bodies)), or has trailers.
    #[error("the body of the request is too large to be carried, or has trailers")]
    RequestBody,
    /// The service has not answered yet.
    #[error("the service is still at work on a request")]
    Service,
    /// The body of the response cannot be resumed and has not ended.
    #[error("a response is in the middle that cannot be resumed")]
    Response,
    /// The body is a [`Resumable`](super::Resumable), but what reaches hyper are not its bytes.
    #[error("something between the service and hyper changes the body of a resumable response")]
    Changed,
    /// The cursor of a response could not be encoded.
    #[error("the cursor of a response in the middle cannot be encoded")]
    Cursor,
    /// The last piece of the response came without a cursor: the handler did not call [`Resume::set`](super::Resume::set) with it.
    #[error(
        "a response in the middle has no cursor for what it has sent: its handler has not set one"
    )]
    CursorNotSet,
    /// The cursor of a response was set by a task that does not poll its body, so that it says nothing of what was sent.
    #[error(
        "the cursor of a response in the middle was set by another task than the one that sends it: set it where its body is polled"
    )]
    CursorElsewhere,
    /// A handler has taken the connection by `hyper::upgrade`, as that of axum's `WebSocketUpgrade` does, and its response has no
    /// [`Resume`](super::Resume).
    #[error(
        "the connection was upgraded by its handler (hyper::upgrade, axum's WebSocketUpgrade), which did not make its response movable"
    )]
    Upgraded,
    /// The last response is written and the peer has not read it to its end; then the connection is closed.
    #[error("the connection is being closed: the end of its last response waits for the peer")]
    Ending,
    /// A WebSocket's handler has not returned.
    #[error("the handler of the WebSocket is still at work")]
    Handler,
    /// A WebSocket's frame waits for a peer that does not read.
    #[error("a frame of the WebSocket is partly written")]
    Writing,
    /// The peer of an HTTP/2 connection breaks the protocol: its frames cannot be followed, and hyper ends it.
    #[error("the frames of the HTTP/2 connection cannot be followed")]
    Frames,
    /// One side of a WebSocket has said CLOSE: it ends where it is.
    #[error("the WebSocket is being closed")]
    Closing,
    /// A WebSocket has extensions (compression), whose state cannot be carried.
    #[error("the WebSocket has extensions, which cannot be carried")]
    Extensions,
}

/// How the length of a response's body is told to the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Framing {
    /// `content-length`, of so many bytes.
    Length(u64),
    /// `transfer-encoding: chunked`.
    Chunked,
    /// The connection closes after it.
    Close,
}

/// A response that is in the middle.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Middle {
    /// The head of its request, without what tells of a body.
    #[serde(with = "serde_bytes")]
    pub(super) request: Vec<u8>,
    /// The body of its request.
    #[serde(default, with = "serde_bytes")]
    pub(super) body: Vec<u8>,
    /// What the cursor is, if it is a [`Cursor`](super::Cursor).
    #[serde(default)]
    pub(super) named: Option<Named>,
    /// Where the body goes on; empty if it begins.
    #[serde(with = "serde_bytes")]
    pub(super) cursor: Vec<u8>,
    /// What is left of it.
    pub(super) framing: Framing,
    /// The response said `connection: close`.
    pub(super) close: bool,
    /// How far its handler has come with the body of the request, if that moves in its middle; `body` is empty then.
    #[cfg(feature = "http2")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) upload: Option<Box<Uploaded>>,
}

impl Middle {
    /// Whether the peer has the response's head.
    pub(super) fn has_response(&self) -> bool {
        #[cfg(feature = "http2")]
        if let Some(uploaded) = &self.upload {
            return uploaded.has_response;
        }
        true
    }
}

/// A WebSocket that a handler of the service has (`hyper::upgrade`).
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Handed {
    /// The head of the request that made it one.
    #[serde(with = "serde_bytes")]
    pub(super) request: Vec<u8>,
    /// The subprotocol that its peer was told.
    #[serde(default, with = "serde_bytes")]
    pub(super) protocol: Option<Vec<u8>>,
    pub(super) named: Option<Named>,
    /// Where the handler goes on; empty if it begins.
    #[serde(with = "serde_bytes")]
    pub(super) cursor: Vec<u8>,
}

/// What there is to carry at a safe point.
pub(super) enum Safe {
    Rest,
    /// A request was read that the service has not seen.
    Held,
    Middle(Middle),
}

/// What is known of a response.
pub(super) struct Responding {
    pub(super) cursor: Option<Arc<dyn AnyCursor>>,
    pub(super) framing: Framing,
    pub(super) close: bool,
    /// Bytes of the body that hyper took; counted if there is a cursor.
    pub(super) passed: u64,
    /// They are not those that the cursor counts.
    pub(super) changed: bool,
}

pub(super) enum Phase {
    Rest,
    Held,
    Service,
    Response(Responding),
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Incoming {
    /// There is none, or it was read to its end.
    Done,
    Arriving,
    /// Nobody reads it to its end, and hyper does not know yet.
    Dropped,
    /// hyper knows: it has skipped the rest, or will close the connection behind the response.
    Skipped,
}

/// The body of a request, for the case that it has to be asked again.
#[derive(Default)]
pub(super) struct Carried {
    pieces: Vec<Bytes>,
    len: usize,
    /// It is more than can be carried: nothing of it is kept.
    is_over: bool,
}

impl Carried {
    pub(super) fn new(body: Bytes) -> Self {
        Self {
            len: body.len(),
            pieces: vec![body],
            is_over: false,
        }
    }

    /// The service has read this.
    pub(super) fn push(&mut self, piece: &Bytes, limit: usize) {
        self.len += piece.len();
        if self.len > limit {
            self.overflow();
        }
        if !self.is_over {
            self.pieces.push(piece.clone());
        }
    }

    pub(super) fn overflow(&mut self) {
        self.is_over = true;
        self.pieces = Vec::new();
    }

    fn whole(&self) -> Result<Vec<u8>, Obstacle> {
        if self.is_over {
            return Err(Obstacle::RequestBody);
        }
        Ok(self.pieces.concat())
    }
}

/// A response that said 101.
pub(super) struct Switched {
    /// Its extensions.
    pub(super) extensions: hyper::http::Extensions,
    /// The next protocol is WebSocket.
    pub(super) websocket: Option<Agreed>,
}

/// What the response said of the WebSocket that begins behind it.
#[derive(Clone)]
pub(super) struct Agreed {
    /// With extensions of WebSocket.
    pub(super) extended: bool,
    /// The subprotocol.
    pub(super) protocol: Option<Vec<u8>>,
    /// Its handler made it movable.
    pub(super) cursor: Option<Arc<dyn AnyCursor>>,
}

impl Agreed {
    /// The cursor of a WebSocket that moves although a handler has it.
    pub(super) fn moves(&self) -> Option<&Arc<dyn AnyCursor>> {
        self.cursor.as_ref().filter(|_| !self.extended)
    }
}

pub(super) struct Current {
    /// The head of the request in the making; kept for its allocation.
    pub(super) head: Vec<u8>,
    /// The body of that request, as far as it was read.
    pub(super) body: Carried,
    /// hyper closes the connection behind the response to it, whatever the two say of that.
    pub(super) closes: bool,
    pub(super) phase: Phase,
    /// Since when the connection is at rest, or the request was begun.
    pub(super) since: Instant,
    pub(super) incoming: Incoming,
    /// What a response that said 101 told.
    pub(super) switched: Option<Switched>,
    /// The cursor of the WebSocket that begins behind that response, if it moves.
    pub(super) socket: Option<Arc<dyn AnyCursor>>,
    /// Why the response in the middle with which the connection came does not go on.
    pub(super) not_resumed: Option<NotResumed>,
    /// What the response's body gives is on its way to hyper.
    pub(super) is_polled: bool,
    /// The response's body has given its end, and hyper has not said it.
    pub(super) has_ended: bool,
    /// Who polls a body that stands still.
    pub(super) standing: Option<Waker>,
    /// The body of the request, where that can move in its middle.
    #[cfg(feature = "http2")]
    pub(super) upload: Progress,
    waker: Option<Waker>,
}

impl Current {
    /// The driver of the connection looks again.
    pub(super) fn changed(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// The request's body is arriving, and its handler says how far it has come.
    fn is_uploading(&self) -> bool {
        #[cfg(feature = "http2")]
        return self.incoming == Incoming::Arriving && self.upload.is_followed;
        #[cfg(not(feature = "http2"))]
        false
    }

    /// The body of a request whose response has begun, if nobody says how far its handler has come with it.
    fn whole_body(&self) -> Result<Vec<u8>, Obstacle> {
        #[cfg(feature = "http2")]
        if self.upload.is_followed {
            return Ok(Vec::new());
        }
        self.body.whole()
    }

    #[cfg(feature = "http2")]
    fn uploaded(&self) -> Result<Option<Uploaded>, Obstacle> {
        let upload = self.upload.is_followed.then(|| self.upload.save(true));
        upload.transpose()
    }

    fn safe(&self) -> Result<Safe, Obstacle> {
        match &self.phase {
            Phase::Held => Ok(Safe::Held),
            Phase::Rest if matches!(self.incoming, Incoming::Done | Incoming::Skipped) => {
                Ok(Safe::Rest)
            }
            Phase::Service if self.incoming == Incoming::Done => Err(Obstacle::Service),
            #[cfg(feature = "http2")]
            Phase::Service if self.is_uploading() => Ok(Safe::Middle(Middle {
                request: self.head.clone(),
                body: Vec::new(),
                named: None,
                cursor: Vec::new(),
                framing: Framing::Chunked,
                close: false,
                upload: Some(Box::new(self.upload.save(false)?)),
            })),
            Phase::Response(responding)
                if self.incoming == Incoming::Done || self.is_uploading() =>
            {
                let Some(cursor) = &responding.cursor else {
                    return Err(Obstacle::Response);
                };
                if self.is_polled || self.has_ended {
                    return Err(Obstacle::Response);
                }
                if responding.changed || cursor.yielded() != responding.passed {
                    return Err(Obstacle::Changed);
                }
                let framing = match responding.framing {
                    Framing::Length(all) => {
                        let left = all.checked_sub(responding.passed);
                        Framing::Length(left.ok_or(Obstacle::Changed)?)
                    }
                    other => other,
                };
                let Saved { named, payload } = cursor.save()?;
                Ok(Safe::Middle(Middle {
                    request: self.head.clone(),
                    body: self.whole_body()?,
                    named,
                    cursor: payload,
                    framing,
                    close: responding.close || self.closes,
                    #[cfg(feature = "http2")]
                    upload: self.uploaded()?.map(Box::new),
                }))
            }
            _ => Err(Obstacle::Request),
        }
    }
}

pub(super) struct Shared {
    draining: AtomicBool,
    /// How many bytes the gate may keep instead of waiting for the socket.
    absorb: AtomicUsize,
    /// Bytes wait for the socket to take them.
    waits: AtomicBool,
    inbound: Mutex<Inbound>,
    current: Mutex<Current>,
}

impl Shared {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            draining: AtomicBool::new(false),
            absorb: AtomicUsize::new(0),
            waits: AtomicBool::new(false),
            inbound: Mutex::default(),
            current: Mutex::new(Current {
                head: Vec::new(),
                body: Carried::default(),
                closes: false,
                phase: Phase::Rest,
                since: Instant::now(),
                incoming: Incoming::Done,
                switched: None,
                socket: None,
                not_resumed: None,
                is_polled: false,
                has_ended: false,
                standing: None,
                #[cfg(feature = "http2")]
                upload: Progress::default(),
                waker: None,
            }),
        })
    }

    /// What the connection does now.
    pub(super) fn current(&self) -> MutexGuard<'_, Current> {
        // A panic elsewhere leaves whole values only.
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the service has not been given.
    pub(super) fn inbound(&self) -> MutexGuard<'_, Inbound> {
        // A panic elsewhere leaves whole values only.
        self.inbound.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on no request is begun, and resumable bodies stand still.
    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    pub(super) fn set_draining(&self, draining: bool) {
        self.draining.store(draining, Ordering::Relaxed);
        let standing = self.current().standing.take();
        if !draining && let Some(standing) = standing {
            standing.wake();
        }
        #[cfg(feature = "http2")]
        if !draining && let Some(reader) = self.current().upload.take_reader() {
            reader.wake();
        }
    }

    /// Takes what hyper has of a request's body whose handler says how far it has come: how many bytes it has given.
    #[cfg(feature = "http2")]
    pub(super) fn pull(&self, cx: &mut Context<'_>) -> Option<u64> {
        let mut current = self.current();
        let upload = &mut current.upload;
        upload.is_followed.then(|| upload.pull(cx))
    }

    /// How many bytes of a resumable response hyper was given.
    #[cfg(feature = "http2")]
    pub(super) fn passed(&self) -> Option<u64> {
        match &self.current().phase {
            Phase::Response(responding) => Some(responding.passed),
            _ => None,
        }
    }

    /// Whether the service is at work, or a response on its way.
    #[cfg(feature = "http2")]
    pub(super) fn is_busy(&self) -> bool {
        matches!(self.current().phase, Phase::Service | Phase::Response(_))
    }

    pub(super) fn absorb(&self) -> usize {
        self.absorb.load(Ordering::Relaxed)
    }

    pub(super) fn set_absorb(&self, bytes: usize) {
        self.absorb.store(bytes, Ordering::Relaxed);
    }

    pub(super) fn waits(&self) -> bool {
        self.waits.load(Ordering::Relaxed)
    }

    pub(super) fn set_waits(&self, waits: bool) {
        self.waits.store(waits, Ordering::Relaxed);
    }

    /// What there is to carry, if the connection stands at a safe point; else the task is woken when
    /// that may have changed without it.
    pub(super) fn safe(&self, cx: &Context<'_>) -> Result<Safe, Obstacle> {
        let mut current = self.current();
        let safe = current.safe();
        if safe.is_err() {
            current.waker = Some(cx.waker().clone());
        }
        safe
    }
}

impl std::fmt::Debug for Shared {
    // The head of a request is the users' data.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}
