//! A gate that hyper has, or who asked hyper for the connection.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::gate::Gate;
use super::shared::Shared;
use super::websocket::{AnyLink, Link};

/// A gate in other hands: it comes home when they drop it.
///
/// hyper gives a connection that was upgraded to who holds the request's `OnUpgrade`, and drops
/// it if nobody does. So where it is tells whether a handler has taken it.
pub(super) struct Lent<T> {
    holds: Holds<T>,
    home: Arc<Home<T>>,
    shared: Arc<Shared>,
}

enum Holds<T> {
    Gate(Gate<T>),
    /// What hyper is to read, so that it has somebody to give a connection to that is a WebSocket already. What it
    /// writes is for nobody.
    Request(Bytes),
    /// A WebSocket that its handler uses, and whoever serves the connection takes back.
    Link(Arc<Link<T>>),
    Nothing,
}

/// Where a gate comes home.
pub(super) struct Home<T> {
    slot: Mutex<Slot<T>>,
    /// Somebody who is not hyper has read or written.
    used: AtomicBool,
}

struct Slot<T> {
    gate: Option<Gate<T>>,
    /// The WebSocket that the connection is.
    link: Option<Arc<Link<T>>>,
    /// Nobody has the connection any more.
    is_dropped: bool,
    waker: Option<Waker>,
}

/// What became of an upgraded connection.
pub(super) enum Use<T> {
    /// Nobody took it.
    Unclaimed(Gate<T>),
    /// Who took it has dropped it.
    Over,
    /// Who took this WebSocket, which moves, has dropped it.
    Returned(Arc<Link<T>>),
}

thread_local! {
    /// Whose connection hyper is polled for on this thread: the address of its home.
    static POLLED: Cell<usize> = const { Cell::new(0) };
}

/// hyper is polled until this is dropped.
pub(super) struct Polling(usize);

impl Drop for Polling {
    fn drop(&mut self) {
        POLLED.set(self.0);
    }
}

impl<T> Home<T> {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            slot: Mutex::new(Slot {
                gate: None,
                link: None,
                is_dropped: false,
                waker: None,
            }),
            used: AtomicBool::new(false),
        })
    }

    pub(super) fn lend(self: &Arc<Self>, gate: Gate<T>, shared: Arc<Shared>) -> Lent<T> {
        Lent {
            holds: Holds::Gate(gate),
            home: self.clone(),
            shared,
        }
    }

    /// For hyper to read this request from, and to give away when it has answered it: then it is the WebSocket of
    /// [`Home::put_link`].
    pub(super) fn lend_request(self: &Arc<Self>, request: &'static [u8]) -> Lent<T> {
        Lent {
            holds: Holds::Request(Bytes::from_static(request)),
            home: self.clone(),
            shared: Shared::new(),
        }
    }

    /// What is read and written on this thread while the result lives, is by hyper. A handler
    /// that has the connection runs on another thread or later.
    pub(super) fn hyper_is_polled(self: &Arc<Self>) -> Polling {
        Polling(POLLED.replace(Arc::as_ptr(self) as usize))
    }

    fn slot(&self) -> MutexGuard<'_, Slot<T>> {
        // A panic elsewhere leaves whole values only.
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The gate, if it is here.
    pub(super) fn take(&self) -> Option<Gate<T>> {
        self.slot().gate.take()
    }

    pub(super) fn is_here(&self) -> bool {
        self.slot().gate.is_some()
    }

    /// The WebSocket, as soon as there is one.
    pub(super) fn link(&self) -> Option<Arc<Link<T>>> {
        self.slot().link.clone()
    }

    /// The connection is this WebSocket from now on.
    pub(super) fn put_link(&self, link: Arc<Link<T>>) {
        let mut slot = self.slot();
        slot.link = Some(link);
        let waker = slot.waker.take();
        drop(slot);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Ready when nobody has the connection; the task is also woken when it becomes a WebSocket.
    pub(super) fn poll_use(&self, cx: &Context<'_>) -> Poll<Use<T>> {
        let mut slot = self.slot();
        if let Some(gate) = slot.gate.take() {
            return Poll::Ready(if self.used.load(Ordering::Relaxed) {
                Use::Over
            } else {
                Use::Unclaimed(gate)
            });
        }
        if slot.is_dropped {
            return Poll::Ready(slot.link.take().map_or(Use::Over, Use::Returned));
        }
        slot.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl<T> Lent<T> {
    fn is_hyper(&self) -> bool {
        POLLED.get() == Arc::as_ptr(&self.home) as usize
    }

    fn gate(&mut self) -> io::Result<Pin<&mut Gate<T>>>
    where
        T: Unpin,
    {
        match &mut self.holds {
            Holds::Gate(gate) => Ok(Pin::new(gate)),
            _ => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Lent<T> {
    /// The WebSocket, if it is one that moves; for who took it from hyper.
    fn link(&mut self) -> Option<&Link<T>> {
        let link = match &mut self.holds {
            Holds::Link(_) | Holds::Nothing => None,
            Holds::Request(_) => self.home.link(),
            Holds::Gate(_) => self.begin_link(),
        };
        if let Some(link) = link {
            self.holds = Holds::Link(link);
        }
        match &self.holds {
            Holds::Link(link) => Some(link),
            _ => {
                self.home.used.store(true, Ordering::Relaxed);
                None
            }
        }
    }

    /// From now on the connection is shared with who serves it, if it is a WebSocket that moves.
    fn begin_link(&mut self) -> Option<Arc<Link<T>>> {
        let cursor = self.shared.current().socket.clone()?;
        let Holds::Gate(gate) = std::mem::replace(&mut self.holds, Holds::Nothing) else {
            return None;
        };
        let (stream, ahead, unwritten) = gate.into_parts();
        let link = Link::of_handler(stream, &ahead, &unwritten, cursor);
        // hyper has read these, and its part of the connection gives them out before it reads here.
        link.was_read(self.shared.inbound().kept());
        self.home.put_link(link.clone());
        Some(link)
    }
}

impl<T> Drop for Lent<T> {
    fn drop(&mut self) {
        let mut slot = self.home.slot();
        if let Holds::Gate(gate) = std::mem::replace(&mut self.holds, Holds::Nothing) {
            slot.gate = Some(gate);
        }
        slot.is_dropped = true;
        if let Some(waker) = slot.waker.take() {
            drop(slot);
            waker.wake();
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> AsyncRead for Lent<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.is_hyper() {
            if let Some(link) = self.link() {
                return link.poll_read(cx, buffer);
            }
            let mut gate = self.gate()?;
            if gate.has_unwritten() {
                // A handler that waits for the peer need not know that bytes of hyper wait for the socket.
                if let Poll::Ready(Err(error)) = gate.poll_unwritten(cx) {
                    return Poll::Ready(Err(error));
                }
            }
            return gate.poll_read(cx, buffer);
        }
        if let Holds::Request(request) = &mut self.holds {
            if request.is_empty() {
                return Poll::Pending;
            }
            let count = request.len().min(buffer.remaining());
            buffer.put_slice(&request.split_to(count));
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        let read = self.gate()?.poll_read(cx, buffer);
        let delivered = &buffer.filled()[before..];
        self.shared.inbound().delivered(delivered);
        read
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> AsyncWrite for Lent<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if !self.is_hyper()
            && let Some(link) = self.link()
        {
            return link.poll_write(cx, bytes);
        }
        if let Holds::Request(_) = self.holds {
            return Poll::Ready(Ok(bytes.len()));
        }
        self.gate()?.poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if !self.is_hyper() && self.link().is_some() || !self.is_write_vectored() {
            let first = slices.iter().find(|slice| !slice.is_empty());
            return self.poll_write(cx, first.map_or(&[], |slice| slice));
        }
        self.gate()?.poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        matches!(&self.holds, Holds::Gate(gate) if gate.is_write_vectored())
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.is_hyper()
            && let Some(link) = self.link()
        {
            return link.poll_flush(cx);
        }
        if let Holds::Request(_) = self.holds {
            return Poll::Ready(Ok(()));
        }
        self.gate()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // hyper has written all it had before. What the gate holds of that goes first, and that can take as long as a
        // slow peer likes: this is done when hyper is out of the way.
        if self.is_hyper() {
            return Poll::Ready(Ok(()));
        }
        if let Some(link) = self.link() {
            return link.poll_shutdown(cx);
        }
        self.gate()?.poll_shutdown(cx)
    }
}
