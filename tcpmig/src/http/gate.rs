//! Between hyper and the socket.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::shared::Shared;

/// A socket that can stop to be one: while the connection is drained, writes are taken into a
/// buffer instead of waiting for the peer.
pub(super) struct Gate<T> {
    stream: T,
    /// Read before what the socket has.
    unread: Bytes,
    /// Written before what hyper writes next.
    unwritten: BytesMut,
    /// How many bytes of the `\r\n\r\n` at the end of a response head are behind us, while
    /// that head is to be swallowed.
    swallowed: Option<usize>,
    shared: Arc<Shared>,
}

const HEAD_END: &[u8; 4] = b"\r\n\r\n";

impl<T: AsyncRead + AsyncWrite + Unpin> Gate<T> {
    /// A gate that lets everything pass.
    pub(super) fn new(stream: T, shared: Arc<Shared>) -> Self {
        Self {
            stream,
            unread: Bytes::new(),
            unwritten: BytesMut::new(),
            swallowed: None,
            shared,
        }
    }

    /// A gate for a connection that was drained: `unread` is read first, `unwritten` is written first.
    /// If a response is in the middle, its request is read before both, and the
    /// head of the answer to it is swallowed.
    pub(super) fn resume(
        stream: T,
        shared: Arc<Shared>,
        request: Option<&[u8]>,
        unread: &[u8],
        unwritten: &[u8],
    ) -> Self {
        Self {
            unread: [request.unwrap_or_default(), unread].concat().into(),
            unwritten: unwritten.into(),
            swallowed: request.map(|_| 0),
            ..Self::new(stream, shared)
        }
    }

    /// Bytes wait for the socket.
    pub(super) fn has_unwritten(&self) -> bool {
        !self.unwritten.is_empty()
    }

    /// How many bytes wait for the socket.
    pub(super) fn unwritten_len(&self) -> usize {
        self.unwritten.len()
    }

    /// Writes what waits here and below, whether or not writes are absorbed.
    pub(super) async fn flush(&mut self) -> io::Result<()> {
        std::future::poll_fn(|cx| {
            ready!(self.poll_unwritten(cx))?;
            Pin::new(&mut self.stream).poll_flush(cx)
        })
        .await
    }

    pub(super) fn into_parts(self) -> (T, Bytes, BytesMut) {
        (self.stream, self.unread, self.unwritten)
    }

    /// How much of `bytes` belongs to a head that is to be swallowed.
    fn swallow(&mut self, bytes: &[u8]) -> usize {
        let Some(mut matched) = self.swallowed else {
            return 0;
        };
        for (index, &byte) in bytes.iter().enumerate() {
            matched = if byte == HEAD_END[matched] {
                matched + 1
            } else {
                usize::from(byte == HEAD_END[0])
            };
            if matched == HEAD_END.len() {
                self.swallowed = None;
                return index + 1;
            }
        }
        self.swallowed = Some(matched);
        bytes.len()
    }

    pub(super) fn poll_unwritten(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unwritten.is_empty() {
            self.shared.set_waits(true);
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.unwritten))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unwritten.advance(written);
        }
        Poll::Ready(Ok(()))
    }

    /// Takes bytes into the buffer, as many as fit below the limit.
    fn poll_absorb(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
        limit: usize,
    ) -> Poll<io::Result<usize>> {
        if limit < usize::MAX
            && let Poll::Ready(Err(error)) = self.poll_unwritten(cx)
        {
            return Poll::Ready(Err(error));
        }
        let count = limit.saturating_sub(self.unwritten.len()).min(bytes.len());
        if count == 0 && !bytes.is_empty() {
            // The socket, which is asked above, wakes the task.
            return Poll::Pending;
        }
        self.unwritten.extend_from_slice(&bytes[..count]);
        Poll::Ready(Ok(count))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for Gate<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.unread.is_empty() {
            let count = self.unread.len().min(buffer.remaining());
            buffer.put_slice(&self.unread.split_to(count));
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Gate<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let swallowed = self.swallow(bytes);
        if swallowed > 0 {
            return Poll::Ready(Ok(swallowed));
        }
        let limit = self.shared.absorb();
        if limit > 0 {
            return self.poll_absorb(cx, bytes, limit);
        }
        ready!(self.poll_unwritten(cx))?;
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.shared.set_waits(written.is_pending());
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.swallowed.is_some() || self.shared.absorb() > 0 {
            let first = slices.iter().find(|slice| !slice.is_empty());
            return match first {
                Some(slice) => self.poll_write(cx, slice),
                None => Poll::Ready(Ok(0)),
            };
        }
        ready!(self.poll_unwritten(cx))?;
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.shared.set_waits(written.is_pending());
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.shared.absorb() > 0 {
            return Poll::Ready(Ok(()));
        }
        if !self.unwritten.is_empty() {
            ready!(self.poll_unwritten(cx))?;
            self.shared.set_waits(false);
        }
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Not a flush, which says that all is well while bytes are absorbed: what was written before
        // the end has to reach the peer before it.
        ready!(self.poll_unwritten(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (client, server) = tokio::join!(TcpStream::connect(address), listener.accept());
        (client.unwrap(), server.unwrap().0)
    }

    #[tokio::test]
    async fn a_resumed_gate_reads_and_writes_the_old_bytes_first() {
        let (mut peer, server) = pair().await;
        let mut gate = Gate::resume(server, Shared::new(), None, b"unread ", b"unwritten ");
        peer.write_all(b"new").await.unwrap();
        let mut got = [0; 10];
        gate.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"unread new");
        gate.write_all(b"next").await.unwrap();
        AsyncWriteExt::flush(&mut gate).await.unwrap();
        let mut got = [0; 14];
        peer.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"unwritten next");
    }

    #[tokio::test]
    async fn the_head_of_a_synthetic_answer_is_swallowed_wherever_it_is_cut() {
        let answer = b"HTTP/1.1 200 OK\r\nx: \r\r\n\r\nbody\r\n\r\nmore";
        for cut in 1..answer.len() {
            let (mut peer, server) = pair().await;
            let mut gate = Gate::resume(server, Shared::new(), Some(b"GET"), b"", b"");
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
        let shared = Shared::new();
        let mut gate = Gate::new(server, shared.clone());
        shared.set_absorb(usize::MAX);
        gate.write_all(&[7; 1 << 20]).await.unwrap();
        AsyncWriteExt::flush(&mut gate).await.unwrap();
        let (_, _, unwritten) = gate.into_parts();
        assert_eq!(unwritten, [7; 1 << 20][..]);
        let mut got = Vec::new();
        peer.read_to_end(&mut got).await.unwrap();
        assert!(got.is_empty());
    }

    #[tokio::test]
    async fn what_was_absorbed_reaches_the_peer_before_the_end() {
        let (mut peer, server) = pair().await;
        let shared = Shared::new();
        let mut gate = Gate::new(server, shared.clone());
        shared.set_absorb(usize::MAX);
        gate.write_all(b"the last bytes").await.unwrap();
        gate.shutdown().await.unwrap();
        let mut got = Vec::new();
        peer.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"the last bytes");
    }

    #[tokio::test]
    async fn a_gate_with_a_limit_passes_on_what_is_beyond() {
        let (mut peer, server) = pair().await;
        let shared = Shared::new();
        let mut gate = Gate::new(server, shared.clone());
        shared.set_absorb(1000);
        let all = numbered(8 << 20);
        let sent = all.clone();
        let writing = tokio::spawn(async move {
            gate.write_all(&sent).await.unwrap();
            gate
        });
        let mut got = vec![0; all.len() - 1000];
        peer.read_exact(&mut got).await.unwrap();
        let (stream, _, unwritten) = writing.await.unwrap().into_parts();
        drop(stream);
        peer.read_to_end(&mut got).await.unwrap();
        got.extend_from_slice(&unwritten);
        assert!(unwritten.len() <= 1000);
        assert!(got == all);
    }

    fn numbered(len: u32) -> Vec<u8> {
        (0..len / 4).flat_map(u32::to_be_bytes).collect()
    }
}
