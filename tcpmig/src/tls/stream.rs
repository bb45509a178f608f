//! A TLS session over its socket.

use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use rustls::ServerConnection;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::Negotiated;
use super::session::Session;
use crate::session::{Carrier, Parts};

/// How much is read from TCP at a time, in bytes.
const READ: usize = 16 << 10;

/// A TLS session of a server: what is read and written is plaintext.
///
/// Made by [`Tls`](super::Tls). Like a stream of tokio-rustls it ends cleanly only after the client's `close_notify`, and a
/// flush, which comes with a shutdown, brings out what rustls holds.
pub struct TlsStream {
    pub(super) tcp: TcpStream,
    pub(super) session: Session,
}

/// The socket, for rustls.
struct Socket<'a, 'b> {
    tcp: &'a mut TcpStream,
    cx: &'a mut Context<'b>,
}

fn blocks<T>(polled: Poll<io::Result<T>>) -> io::Result<T> {
    match polled {
        Poll::Ready(result) => result,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}

impl io::Write for Socket<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        blocks(Pin::new(&mut *self.tcp).poll_write(self.cx, bytes))
    }

    fn write_vectored(&mut self, slices: &[io::IoSlice<'_>]) -> io::Result<usize> {
        blocks(Pin::new(&mut *self.tcp).poll_write_vectored(self.cx, slices))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl TlsStream {
    /// The connection of rustls, for what was negotiated: the protocol, the server's name, the client's certificates.
    ///
    /// After a move it is another connection with the same session. Of what it can tell, the group of
    /// the key exchange and the kind of handshake are not the session's, nor is what TLS 1.2 exports
    /// (`export_keying_material`).
    #[must_use]
    pub fn tls(&self) -> &ServerConnection {
        self.session.tls()
    }

    /// Runs the handshake.
    pub(super) async fn handshake(&mut self) -> io::Result<()> {
        loop {
            std::future::poll_fn(|cx| self.poll_records(cx)).await?;
            if !self.session.is_handshaking() {
                return Ok(());
            }
            match self.session.take_record() {
                Ok(true) => {}
                Ok(false) => std::future::poll_fn(|cx| self.poll_receive(cx)).await?,
                Err(error) => {
                    // It is told why, if it still listens.
                    let _ = std::future::poll_fn(|cx| self.poll_records(cx)).await;
                    return Err(error);
                }
            }
        }
    }

    /// Receives something.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let received = self.session.received();
        if received.is_empty() {
            // A connection at rest holds no memory for what may come.
            *received = BytesMut::new();
        }
        ready!(self.tcp.poll_read_ready(cx))?;
        received.reserve(READ);
        let read = pin!(self.tcp.read_buf(received));
        match ready!(read.poll(cx))? {
            0 => Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
            _ => Poll::Ready(Ok(())),
        }
    }

    /// Writes the records that wait.
    fn poll_records(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.session.wants_write() {
            let mut socket = Socket {
                tcp: &mut self.tcp,
                cx,
            };
            match self.session.write_records(&mut socket) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for TlsStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            match self.session.read(buffer) {
                Ok(Some(_)) => return Poll::Ready(Ok(())),
                Ok(None) => {}
                Err(error) => {
                    // The client is told why as far as TCP takes it.
                    let _ = self.poll_records(cx);
                    return Poll::Ready(Err(error));
                }
            }
            // Nobody else may flush while the peer is waited for.
            if let Poll::Ready(Err(error)) = self.poll_records(cx) {
                return Poll::Ready(Err(error));
            }
            ready!(self.poll_receive(cx))?;
        }
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if slices.iter().all(|slice| slice.is_empty()) {
            return Poll::Ready(Ok(0));
        }
        loop {
            let taken = self.session.write(slices)?;
            let written = self.poll_records(cx);
            match (taken, written) {
                (_, Poll::Ready(Err(error))) => return Poll::Ready(Err(error)),
                (0, Poll::Pending) => return Poll::Pending,
                (0, Poll::Ready(Ok(()))) => {}
                (taken, _) => return Poll::Ready(Ok(taken)),
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_records(cx))?;
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.session.close();
        ready!(self.poll_records(cx))?;
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

impl Carrier for TlsStream {
    type Facts = Negotiated;

    fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    fn facts(&self) -> Option<Negotiated> {
        Negotiated::of(self.session.tls())
    }

    fn into_parts(self) -> io::Result<Parts> {
        let state = self.session.into_state().map_err(io::Error::other)?;
        let mut parts = self.tcp.into_parts()?;
        parts.layers.push(state.to_layer());
        Ok(parts)
    }
}

impl std::fmt::Debug for TlsStream {
    // No secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let peer: Option<SocketAddr> = self.tcp.peer_addr().ok();
        f.debug_struct("TlsStream")
            .field("peer", &peer)
            .finish_non_exhaustive()
    }
}
