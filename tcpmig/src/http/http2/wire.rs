//! Between hyper's HTTP/2 and the socket.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Buf;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::super::gate::Gate;
use crate::http2::Connection;

/// How much is read from the socket at a time, in bytes.
const READ: usize = 16_384;

/// A gate with the layer of frames over it.
pub(super) struct Layer<T> {
    pub(super) gate: Gate<T>,
    pub(super) frames: Connection,
    /// How many bytes hyper has read.
    pub(super) given: u64,
    /// The socket has nothing more to read, or failed.
    ended: Option<io::Result<()>>,
}

/// Where hyper reads and writes, until it is taken away.
pub(super) struct Wire<T>(Mutex<Option<Layer<T>>>);

impl<T> Wire<T> {
    pub(super) fn new(gate: Gate<T>, frames: Connection) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Some(Layer {
            gate,
            frames,
            given: 0,
            ended: None,
        }))))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Layer<T>>> {
        // A panic elsewhere leaves whole values only.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with the layer, if it is here.
    pub(super) fn with<R>(&self, work: impl FnOnce(&mut Layer<T>) -> R) -> Option<R> {
        self.lock().as_mut().map(work)
    }

    pub(super) fn take(&self) -> Option<Layer<T>> {
        self.lock().take()
    }
}

/// A [`Wire`] without its type.
pub(super) trait AnyWire: Send + Sync {
    fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>>;
    fn poll_write(
        &self,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>>;
    fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    fn is_write_vectored(&self) -> bool;
    /// The stream whose request the service is given.
    fn take_request(&self) -> Option<u32>;
}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> AnyWire for Wire<T> {
    fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut *self.lock() {
            Some(layer) => layer.poll_read(cx, buffer),
            None => Poll::Pending,
        }
    }

    fn poll_write(
        &self,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut *self.lock() {
            Some(layer) => layer.poll_write(cx, slices),
            None => Poll::Pending,
        }
    }

    fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self.lock() {
            Some(layer) => layer.poll_flush(cx),
            None => Poll::Pending,
        }
    }

    fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self.lock() {
            Some(layer) => layer.poll_shutdown(cx),
            None => Poll::Pending,
        }
    }

    fn is_write_vectored(&self) -> bool {
        let lock = self.lock();
        lock.as_ref()
            .is_some_and(|layer| layer.gate.is_write_vectored())
    }

    fn take_request(&self) -> Option<u32> {
        self.with(|layer| layer.frames.take_request()).flatten()
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Layer<T> {
    /// Reads from the socket, if it has not ended.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut space = [const { MaybeUninit::uninit() }; READ];
        let mut arrived = ReadBuf::uninit(&mut space);
        let read = ready!(Pin::new(&mut self.gate).poll_read(cx, &mut arrived));
        match read {
            Ok(()) if !arrived.filled().is_empty() => self.frames.receive(arrived.filled()),
            read => self.ended = Some(read),
        }
        Poll::Ready(())
    }

    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            while self.ended.is_none()
                && self.frames.looks_ahead()
                && self.poll_receive(cx).is_ready()
            {}
            let feed = self.frames.read();
            let some = feed.len().min(buffer.remaining());
            buffer.put_slice(&feed[..some]);
            feed.advance(some);
            self.given += some as u64;
            // Who is not writing now does not write what else there is.
            let sent = self.poll_unsent(cx)?;
            if some > 0 {
                return Poll::Ready(Ok(()));
            }
            if self.frames.is_ended() {
                if sent.is_pending() || !self.frames.is_between_frames() {
                    return Poll::Pending;
                }
                let error = io::Error::new(io::ErrorKind::InvalidData, "the peer breaks the rules");
                return Poll::Ready(Err(error));
            }
            if !self.frames.wants_more() {
                // Whoever polls hyper polls it again when it has looked at the request.
                return Poll::Pending;
            }
            match &self.ended {
                None => ready!(self.poll_receive(cx)),
                Some(Ok(())) => return Poll::Ready(Ok(())),
                Some(Err(_)) => return Poll::Ready(self.ended.take().unwrap_or(Ok(()))),
            }
        }
    }

    /// Writes what the layer says to the peer, if nobody is in the middle of a frame.
    pub(super) fn poll_unsent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.frames.is_between_frames() {
            return Poll::Ready(Ok(()));
        }
        let unsent = self.frames.unsent();
        while !unsent.is_empty() {
            let written = ready!(Pin::new(&mut self.gate).poll_write(cx, unsent))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            unsent.advance(written);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_unsent(cx))?;
        // The peer's updates of its windows make room, and hyper does not read while it writes. What it has not read
        // comes first.
        while self.frames.is_full() && self.frames.wants_more() {
            if self.ended.is_some() {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            ready!(self.poll_receive(cx));
            self.frames.read();
            ready!(self.poll_unsent(cx))?;
        }
        let len = slices.iter().map(|slice| slice.len()).sum();
        if self.frames.passes(len) == len && slices.len() > 1 {
            let written = ready!(Pin::new(&mut self.gate).poll_write_vectored(cx, slices))?;
            let mut left = written;
            for slice in slices {
                let some = left.min(slice.len());
                self.frames.sent(&slice[..some]);
                left -= some;
            }
            return Poll::Ready(Ok(written));
        }
        let Some(slice) = slices.iter().find(|slice| !slice.is_empty()) else {
            return Poll::Ready(Ok(0));
        };
        let passes = self.frames.passes(slice.len());
        if passes > 0 {
            let written = ready!(Pin::new(&mut self.gate).poll_write(cx, &slice[..passes]))?;
            self.frames.sent(&slice[..written]);
            return Poll::Ready(Ok(written));
        }
        self.frames.write(slice);
        // What the socket does not take now is in front of the next.
        if let Poll::Ready(Err(error)) = self.poll_unsent(cx) {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(slice.len()))
    }

    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_unsent(cx))?;
        Pin::new(&mut self.gate).poll_flush(cx)
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_unsent(cx))?;
        Pin::new(&mut self.gate).poll_shutdown(cx)
    }
}

/// What hyper reads and writes.
pub(super) struct Io(pub(super) Arc<dyn AnyWire>);

impl AsyncRead for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.0.poll_read(cx, buffer)
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.poll_write(cx, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.poll_write(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_shutdown(cx)
    }
}
