//! Between hyper and the socket.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Whether a connection is being drained, shared with the response bodies: one that is in the
/// middle must stop at the end of a frame (return [`Poll::Pending`]) while it is.
#[derive(Debug, Clone, Default)]
pub struct Drain(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    stage: AtomicU8,
    /// Octets wait for the socket to take them.
    waits: AtomicBool,
}

/// Nothing new begins, and what is written still goes to the socket.
const STOPPING: u8 = 1;
/// What is written is kept.
const ABSORBING: u8 = 2;

impl Drain {
    /// Whether the connection is being drained.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.0.stage.load(Ordering::Relaxed) >= STOPPING
    }

    fn absorbs(&self) -> bool {
        self.0.stage.load(Ordering::Relaxed) >= ABSORBING
    }

    pub(super) fn stop(&self) {
        self.0.stage.store(STOPPING, Ordering::Relaxed);
    }

    pub(super) fn absorb(&self) {
        self.0.stage.store(ABSORBING, Ordering::Relaxed);
    }

    pub(super) fn waits(&self) -> bool {
        self.0.waits.load(Ordering::Relaxed)
    }

    fn set_waits(&self, waits: bool) {
        self.0.waits.store(waits, Ordering::Relaxed);
    }
}

/// A socket that can stop to be one: while the connection is drained nothing is read, and in
/// the end every write is taken into a buffer.
#[derive(Debug)]
pub struct Gate {
    stream: TcpStream,
    /// Read before what the socket has.
    unread: Bytes,
    /// Written before what hyper writes next.
    unwritten: BytesMut,
    /// How many octets of the `\r\n\r\n` at the end of a response head are behind us, while
    /// that head is to be swallowed.
    swallowed: Option<usize>,
    drain: Drain,
}

const HEAD_END: &[u8; 4] = b"\r\n\r\n";

impl Gate {
    /// A gate that lets everything pass.
    #[must_use]
    pub fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            unread: Bytes::new(),
            unwritten: BytesMut::new(),
            swallowed: None,
            drain: Drain::default(),
        }
    }

    /// A gate for a connection that was drained.
    ///
    /// `unread` is read first, `unwritten` is written first. If a response is in the
    /// middle, `request` is read before both, and the head of the answer to it is swallowed.
    #[must_use]
    pub fn resume(
        stream: TcpStream,
        request: Option<&[u8]>,
        unread: &[u8],
        unwritten: &[u8],
    ) -> Self {
        Self {
            unread: [request.unwrap_or_default(), unread].concat().into(),
            unwritten: unwritten.into(),
            swallowed: request.map(|_| 0),
            ..Self::new(stream)
        }
    }

    /// Tells whether the connection is being drained.
    #[must_use]
    pub fn drain(&self) -> Drain {
        self.drain.clone()
    }

    pub(super) fn into_parts(self) -> (TcpStream, Bytes, BytesMut) {
        (self.stream, self.unread, self.unwritten)
    }

    /// How much of `octets` belongs to a head that is to be swallowed.
    fn swallow(&mut self, octets: &[u8]) -> usize {
        let Some(mut matched) = self.swallowed else {
            return 0;
        };
        for (index, &octet) in octets.iter().enumerate() {
            matched = if octet == HEAD_END[matched] {
                matched + 1
            } else {
                usize::from(octet == HEAD_END[0])
            };
            if matched == HEAD_END.len() {
                self.swallowed = None;
                return index + 1;
            }
        }
        self.swallowed = Some(matched);
        octets.len()
    }

    fn poll_unwritten(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unwritten.is_empty() {
            self.drain.set_waits(true);
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.unwritten))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unwritten.advance(written);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Gate {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.drain.is_on() {
            return Poll::Pending;
        }
        if !self.unread.is_empty() {
            let count = self.unread.len().min(buffer.remaining());
            buffer.put_slice(&self.unread.split_to(count));
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Gate {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        octets: &[u8],
    ) -> Poll<io::Result<usize>> {
        let swallowed = self.swallow(octets);
        if swallowed > 0 {
            return Poll::Ready(Ok(swallowed));
        }
        if self.drain.absorbs() {
            self.unwritten.extend_from_slice(octets);
            return Poll::Ready(Ok(octets.len()));
        }
        ready!(self.poll_unwritten(cx))?;
        let written = Pin::new(&mut self.stream).poll_write(cx, octets);
        self.drain.set_waits(written.is_pending());
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.swallowed.is_some() || self.drain.absorbs() {
            let first = slices.iter().find(|slice| !slice.is_empty());
            return match first {
                Some(slice) => self.poll_write(cx, slice),
                None => Poll::Ready(Ok(0)),
            };
        }
        ready!(self.poll_unwritten(cx))?;
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.drain.set_waits(written.is_pending());
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.drain.absorbs() {
            return Poll::Ready(Ok(()));
        }
        if !self.unwritten.is_empty() {
            ready!(self.poll_unwritten(cx))?;
            self.drain.set_waits(false);
        }
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().poll_flush(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (client, server) = tokio::join!(TcpStream::connect(address), listener.accept());
        (client.unwrap(), server.unwrap().0)
    }

    #[tokio::test]
    async fn a_resumed_gate_reads_and_writes_the_old_octets_first() {
        let (mut peer, server) = pair().await;
        let mut gate = Gate::resume(server, None, b"unread ", b"unwritten ");
        peer.write_all(b"new").await.unwrap();
        let mut got = [0; 10];
        gate.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"unread new");
        gate.write_all(b"next").await.unwrap();
        gate.flush().await.unwrap();
        let mut got = [0; 14];
        peer.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"unwritten next");
    }

    #[tokio::test]
    async fn the_head_of_a_synthetic_answer_is_swallowed_wherever_it_is_cut() {
        let answer = b"HTTP/1.1 200 OK\r\nx: \r\r\n\r\nbody\r\n\r\nmore";
        for cut in 1..answer.len() {
            let (mut peer, server) = pair().await;
            let mut gate = Gate::resume(server, Some(b"GET"), b"", b"");
            gate.write_all(&answer[..cut]).await.unwrap();
            gate.write_all(&answer[cut..]).await.unwrap();
            let mut got = [0; 12];
            peer.read_exact(&mut got).await.unwrap();
            assert_eq!(&got, b"body\r\n\r\nmore");
        }
    }

    #[tokio::test]
    async fn a_drained_gate_keeps_what_is_written() {
        let (mut peer, server) = pair().await;
        let mut gate = Gate::new(server);
        gate.drain().absorb();
        gate.write_all(&[7; 1 << 20]).await.unwrap();
        gate.flush().await.unwrap();
        peer.write_all(b"waits").await.unwrap();
        let read = std::future::poll_fn(|cx| {
            let mut octets = [0; 8];
            let mut buffer = ReadBuf::new(&mut octets);
            Poll::Ready(Pin::new(&mut gate).poll_read(cx, &mut buffer).is_pending())
        });
        assert!(read.await);
        let (mut stream, unread, unwritten) = gate.into_parts();
        assert!(unread.is_empty());
        assert_eq!(unwritten, [7; 1 << 20][..]);
        let mut got = [0; 5];
        stream.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"waits");
    }
}
