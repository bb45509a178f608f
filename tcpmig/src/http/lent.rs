//! A gate that hyper has, or who asked hyper for the connection.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::gate::Gate;
use super::shared::Shared;

/// A gate in other hands: it comes home when they drop it.
///
/// hyper gives a connection that was upgraded to who holds the request's `OnUpgrade`, and drops
/// it if nobody does. So where it is tells whether a handler has taken it.
pub(super) struct Lent<T> {
    /// `None` while it is being dropped.
    gate: Option<Gate<T>>,
    home: Arc<Home<T>>,
    shared: Arc<Shared>,
}

/// Where a gate comes home.
pub(super) struct Home<T> {
    slot: Mutex<Slot<T>>,
    /// Somebody who is not hyper has read or written.
    used: AtomicBool,
}

struct Slot<T> {
    gate: Option<Gate<T>>,
    waker: Option<Waker>,
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
                waker: None,
            }),
            used: AtomicBool::new(false),
        })
    }

    pub(super) fn lend(self: &Arc<Self>, gate: Gate<T>, shared: Arc<Shared>) -> Lent<T> {
        Lent {
            gate: Some(gate),
            home: self.clone(),
            shared,
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

    /// Ready when the gate is here.
    pub(super) fn poll_take(&self, cx: &Context<'_>) -> Poll<Gate<T>> {
        let mut slot = self.slot();
        if let Some(gate) = slot.gate.take() {
            return Poll::Ready(gate);
        }
        slot.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Somebody who is not hyper has had it and used it.
    pub(super) fn was_used(&self) -> bool {
        self.used.load(Ordering::Relaxed)
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
        if !self.is_hyper() {
            self.home.used.store(true, Ordering::Relaxed);
        }
        let gate = self.gate.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        Ok(Pin::new(gate))
    }
}

impl<T> Drop for Lent<T> {
    fn drop(&mut self) {
        let mut slot = self.home.slot();
        slot.gate = self.gate.take();
        if let Some(waker) = slot.waker.take() {
            drop(slot);
            waker.wake();
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for Lent<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let is_hyper = self.is_hyper();
        let mut gate = self.gate()?;
        if !is_hyper && gate.has_unwritten() {
            // A handler that waits for the peer need not know that bytes of hyper wait for the socket.
            if let Poll::Ready(Err(error)) = gate.poll_unwritten(cx) {
                return Poll::Ready(Err(error));
            }
        }
        let before = buffer.filled().len();
        let read = gate.poll_read(cx, buffer);
        if is_hyper {
            let delivered = &buffer.filled()[before..];
            self.shared.inbound().delivered(delivered);
        }
        read
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Lent<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.gate()?.poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.gate()?.poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.gate
            .as_ref()
            .is_some_and(AsyncWrite::is_write_vectored)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.gate()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // hyper has written all it had before. What the gate holds of that goes first, and that can take as long as a
        // slow peer likes: this is done when hyper is out of the way.
        if self.is_hyper() {
            return Poll::Ready(Ok(()));
        }
        self.gate()?.poll_shutdown(cx)
    }
}
