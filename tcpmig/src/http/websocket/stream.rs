//! Between a WebSocket library and the socket.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::super::cursor::AnyCursor;
use super::super::gate::Gate;
use super::super::shared::{Obstacle, Shared};
use super::frames::{Incoming, Outgoing};

/// How much is read from the socket at a time, in bytes.
const READ: usize = 16 << 10;

/// The bytes of a WebSocket, for a library that makes messages of them (a `WebSocketStream` of
/// `tokio-tungstenite`, for instance, by `from_raw_socket` with `Role::Server`).
///
/// A read gives bytes of one frame at most, so that the library holds nothing of the next one when it gives out
/// a message. When the connection is to move, a read fails instead of waiting, with [`Moves`]: return then from the
/// handler.
#[derive(Debug)]
pub struct Stream(pub(super) Arc<dyn AnyLink>);

/// Why a read of a [`Stream`] failed: the connection is to move, and goes on with another run of the
/// handler. It is the inner error of the [`io::Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the WebSocket is to go on elsewhere")]
pub struct Moves;

impl Moves {
    /// Whether a read failed for this.
    #[must_use]
    pub fn is_cause_of(error: &io::Error) -> bool {
        matches!(error.get_ref(), Some(inner) if inner.is::<Self>())
    }
}

/// A [`Link`], whatever it runs over: what the handler sees of it.
pub(in crate::http) trait AnyLink: fmt::Debug + Send + Sync {
    /// Ready when the handler has to return.
    fn poll_asked(&self, cx: &Context<'_>) -> Poll<()>;
    fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>>;
    fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>>;
    fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
}

/// What the handler and the connection share.
pub(in crate::http) struct Link<C> {
    shared: Arc<Shared>,
    io: Mutex<Io<C>>,
}

struct Io<C> {
    /// `None` when the connection has taken it back.
    gate: Option<Gate<C>>,
    /// Read from the socket, not by the library.
    ahead: BytesMut,
    incoming: Incoming,
    outgoing: Outgoing,
    draining: bool,
    /// The handler knows that it has to return.
    told: bool,
    /// The handler has ended its side of the connection.
    shut: bool,
    /// That of a handler which got the connection from hyper: it learns from a failing read only that it has to return.
    cursor: Option<Arc<dyn AnyCursor>>,
    /// How many bytes it may write then that wait for the peer.
    absorb: usize,
    /// It waits until what it has written is flushed, and does not know yet that it is sent.
    flushing: bool,
    /// Who waits until it has to.
    reader: Option<Waker>,
    asking: Vec<Waker>,
    /// Who waits for the socket to take bytes.
    writer: Option<Waker>,
}

/// What is left of a WebSocket whose handler has returned.
pub(in crate::http) struct Rest<C> {
    pub(in crate::http) stream: C,
    pub(in crate::http) unread: Vec<u8>,
    pub(in crate::http) unwritten: Vec<u8>,
}

impl<C> fmt::Debug for Link<C> {
    // The bytes are the users' data.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").finish_non_exhaustive()
    }
}

impl<C> Io<C> {
    /// The handler can return now, and nothing is lost.
    fn can_stop(&self) -> bool {
        self.draining && self.obstacle().is_none()
    }

    fn obstacle(&self) -> Option<Obstacle> {
        if self.shut || self.incoming.is_closed() || self.outgoing.is_closed() {
            Some(Obstacle::Closing)
        } else if !self.outgoing.is_between_frames() {
            Some(Obstacle::Writing)
        } else {
            self.cursor.as_deref().and_then(|cursor| self.lacks(cursor))
        }
    }

    /// Whether its handler has to return now; it learns that by this.
    fn tell(&mut self) -> bool {
        // A write is flushed in no time while the connection is drained, and then its cursor is set.
        let can_stop = self.can_stop() && (!self.flushing || self.cursor.is_none());
        if can_stop && !self.told {
            self.told = true;
            if let Some(cursor) = &self.cursor {
                cursor.leaves();
            }
        }
        self.told
    }

    /// What is wrong with the cursor of its handler.
    fn lacks(&self, cursor: &dyn AnyCursor) -> Option<Obstacle> {
        let has_begun = self.incoming.has_message() || self.outgoing.has_message();
        if has_begun && !cursor.is_set() {
            return Some(Obstacle::CursorNotSet);
        }
        cursor.save().err()
    }

    fn wake_if_it_can_stop(&mut self) {
        if self.can_stop() {
            wake(&mut self.reader);
            self.asking.drain(..).for_each(Waker::wake);
        }
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin + Send + 'static> Link<C> {
    /// A connection that stands between two messages, `unread` and `unwritten` as in a gate.
    pub(super) fn new(stream: C, unread: &[u8], unwritten: &[u8]) -> Arc<Self> {
        Self::with_cursor(stream, unread, unwritten, None)
    }

    /// The same for a handler that gets it from hyper, and sets this cursor.
    pub(in crate::http) fn of_handler(
        stream: C,
        unread: &[u8],
        unwritten: &[u8],
        cursor: Arc<dyn AnyCursor>,
    ) -> Arc<Self> {
        Self::with_cursor(stream, unread, unwritten, Some(cursor))
    }

    fn with_cursor(
        stream: C,
        unread: &[u8],
        unwritten: &[u8],
        cursor: Option<Arc<dyn AnyCursor>>,
    ) -> Arc<Self> {
        let shared = Shared::new();
        let gate = Gate::resume(stream, shared.clone(), None, &[], unwritten);
        Arc::new(Self {
            shared,
            io: Mutex::new(Io {
                gate: Some(gate),
                ahead: unread.into(),
                incoming: Incoming::default(),
                outgoing: Outgoing::default(),
                draining: false,
                told: false,
                shut: false,
                cursor,
                absorb: 0,
                flushing: false,
                reader: None,
                asking: Vec::new(),
                writer: None,
            }),
        })
    }

    /// The library gets these by another way, before it reads here.
    pub(in crate::http) fn was_read(&self, mut bytes: &[u8]) {
        let mut io = self.io();
        while !bytes.is_empty() {
            let count = io.incoming.read(bytes);
            bytes = &bytes[count..];
        }
    }

    fn io(&self) -> MutexGuard<'_, Io<C>> {
        // A panic elsewhere leaves whole values only.
        self.io.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on the handler is told to return, as soon as nothing is lost by that, and its
    /// writes wait for no peer as long as it holds no more than so many bytes for it.
    pub(in crate::http) fn drain(&self, absorb: usize) {
        let mut io = self.io();
        if io.draining {
            return;
        }
        self.shared.set_absorb(absorb);
        io.draining = true;
        io.absorb = absorb;
        io.wake_if_it_can_stop();
        // A write that waits for the socket need not any longer.
        wake(&mut io.writer);
    }

    /// Takes [`Link::drain`] back, unless the handler knows already.
    pub(in crate::http) fn undrain(&self) {
        self.shared.set_absorb(0);
        let mut io = self.io();
        io.draining = false;
        wake(&mut io.writer);
    }

    /// Why the handler cannot be told to return; `None` if it can, or was.
    pub(in crate::http) fn obstacle(&self) -> Option<Obstacle> {
        self.io().obstacle()
    }

    /// The handler was told to return.
    pub(in crate::http) fn was_told(&self) -> bool {
        self.io().told
    }

    /// Writes what waits, without the handler.
    pub(in crate::http) fn flush(&self, cx: &mut Context<'_>) {
        let mut io = self.io();
        if io.draining {
            return;
        }
        let Some(gate) = &mut io.gate else { return };
        // The handler gets to know of an error with its next write.
        if gate.has_unwritten() && Pin::new(gate).poll_flush(cx).is_ready() {
            wake(&mut io.writer);
        }
    }

    /// Takes the socket from the handler, which can do nothing with it from now on.
    pub(in crate::http) fn take(&self) -> Option<Rest<C>> {
        let mut io = self.io();
        let (stream, _, unwritten) = io.gate.take()?.into_parts();
        let unread = [&io.incoming.read_again()[..], &io.ahead].concat();
        Some(Rest {
            stream,
            unread,
            unwritten: unwritten.into(),
        })
    }
}

fn gone() -> io::Error {
    io::ErrorKind::NotConnected.into()
}

impl<C: AsyncRead + AsyncWrite + Unpin + Send + 'static> AnyLink for Link<C> {
    fn poll_asked(&self, cx: &Context<'_>) -> Poll<()> {
        let mut io = self.io();
        if io.tell() {
            return Poll::Ready(());
        }
        if !io.asking.iter().any(|waker| waker.will_wake(cx.waker())) {
            io.asking.push(cx.waker().clone());
        }
        Poll::Pending
    }

    fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let io = &mut *self.io();
        if io.tell() {
            return Poll::Ready(Err(io::Error::other(Moves)));
        }
        if io.ahead.is_empty() {
            let Some(gate) = &mut io.gate else {
                return Poll::Ready(Err(gone()));
            };
            io.ahead.resize(READ, 0);
            let mut ahead = ReadBuf::new(&mut io.ahead);
            let read = Pin::new(gate).poll_read(cx, &mut ahead);
            let count = ahead.filled().len();
            io.ahead.truncate(count);
            if read.is_pending() {
                io.reader = Some(cx.waker().clone());
            }
            ready!(read)?;
        }
        let most = buffer.remaining().min(io.ahead.len());
        let count = io.incoming.read(&io.ahead[..most]);
        buffer.put_slice(&io.ahead[..count]);
        io.ahead.advance(count);
        Poll::Ready(Ok(()))
    }

    fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let io = &mut *self.io();
        let Some(gate) = &mut io.gate else {
            return Poll::Ready(Err(gone()));
        };
        let mut bytes = bytes;
        if io.told && io.cursor.is_some() {
            // It ends here and not for the peer.
            let skipped = io.outgoing.skip_close(bytes);
            if skipped > 0 {
                return Poll::Ready(Ok(skipped));
            }
        }
        if io.told || io.draining {
            bytes = &bytes[..io.outgoing.rest_of_frame(bytes)];
        }
        if io.draining {
            // Frames go out whole, so that there is always a moment between two of them; and a task of the handler's may be
            // ended while it writes.
            if io.outgoing.is_between_frames() && gate.unwritten_len() >= io.absorb {
                if let Poll::Ready(Err(error)) = gate.poll_unwritten(cx) {
                    return Poll::Ready(Err(error));
                }
                if gate.unwritten_len() >= io.absorb {
                    io.writer = Some(cx.waker().clone());
                    return Poll::Pending;
                }
            }
            self.shared.set_absorb(usize::MAX);
        }
        let written = Pin::new(gate).poll_write(cx, bytes);
        if written.is_pending() {
            io.writer = Some(cx.waker().clone());
        }
        let written = ready!(written)?;
        if io.outgoing.written(&bytes[..written]) {
            io.incoming.answered();
        }
        io.wake_if_it_can_stop();
        Poll::Ready(Ok(written))
    }

    fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let io = &mut *self.io();
        let Some(gate) = &mut io.gate else {
            return Poll::Ready(Err(gone()));
        };
        let flushed = Pin::new(gate).poll_flush(cx);
        io.flushing = flushed.is_pending();
        if io.flushing {
            io.writer = Some(cx.waker().clone());
        }
        io.wake_if_it_can_stop();
        flushed
    }

    fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let io = &mut *self.io();
        let Some(gate) = &mut io.gate else {
            return Poll::Ready(Err(gone()));
        };
        if io.told && io.cursor.is_some() {
            // It ends here and not for the peer.
            return Poll::Ready(Ok(()));
        }
        io.shut = true;
        Pin::new(gate).poll_shutdown(cx)
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.0.poll_read(cx, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_shutdown(cx)
    }
}
