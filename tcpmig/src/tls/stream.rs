//! A TLS session over its socket.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustls::ServerConnection;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::Negotiated;
use super::session::Session;
use super::side::Side;
use crate::session::{Carrier, Parts};

/// One end of a TLS session: what is read and written is plaintext.
///
/// [`Tls`](super::Tls) makes those of servers, and [`TlsClient`](super::TlsClient) those of clients, with `C` a
/// [`ClientConnection`](rustls::ClientConnection). Like a stream of tokio-rustls it ends cleanly only after the other end's
/// `close_notify`, and a flush, which comes with a shutdown, brings out what rustls holds.
pub struct TlsStream<C = ServerConnection> {
    pub(super) tcp: TcpStream,
    pub(super) session: Session<C>,
}

/// Nothing in it is pinned.
impl<C> Unpin for TlsStream<C> {}

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

impl io::Read for Socket<'_, '_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut buffer = ReadBuf::new(bytes);
        blocks(Pin::new(&mut *self.tcp).poll_read(self.cx, &mut buffer))?;
        Ok(buffer.filled().len())
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

#[expect(private_bounds, reason = "the two ends are those of rustls")]
impl<C: Side> TlsStream<C> {
    /// The connection of rustls, for what was negotiated: the protocol, the server's name, the other end's certificates.
    ///
    /// After a move it is another connection with the same session. Of what it can tell, the group of
    /// the key exchange and the kind of handshake are not the session's, nor is what TLS 1.2 exports
    /// (`export_keying_material`).
    #[must_use]
    pub fn tls(&self) -> &C {
        self.session.tls()
    }

    /// Runs the handshake.
    pub(super) async fn handshake(&mut self) -> io::Result<()> {
        loop {
            std::future::poll_fn(|cx| self.poll_records(cx)).await?;
            if !self.session.is_handshaking() {
                return Ok(());
            }
            if let Err(error) = std::future::poll_fn(|cx| self.poll_receive(cx)).await {
                // The other end is told why, if it still listens.
                let _ = std::future::poll_fn(|cx| self.poll_records(cx)).await;
                return Err(error);
            }
        }
    }

    /// Receives something.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut socket = Socket {
            tcp: &mut self.tcp,
            cx,
        };
        match self.session.receive(&mut socket) {
            Ok(0) => Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
            Ok(_) => Poll::Ready(Ok(())),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
            Err(error) => Poll::Ready(Err(error)),
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

impl<C: Side> AsyncRead for TlsStream<C> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let failed = match self.session.read(buffer) {
                Ok(Some(_)) => return Poll::Ready(Ok(())),
                Ok(None) => {
                    // Nobody else may flush while the other end is waited for.
                    if let Poll::Ready(Err(error)) = self.poll_records(cx) {
                        return Poll::Ready(Err(error));
                    }
                    match ready!(self.poll_receive(cx)) {
                        Ok(()) => continue,
                        Err(error) => error,
                    }
                }
                Err(error) => error,
            };
            // The other end is told why as far as TCP takes it.
            let _ = self.poll_records(cx);
            return Poll::Ready(Err(failed));
        }
    }
}

impl<C: Side> AsyncWrite for TlsStream<C> {
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

impl<C: Side + Send + 'static> Carrier for TlsStream<C> {
    type Facts = Negotiated;

    fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    fn facts(&self) -> Option<Negotiated> {
        self.session.negotiated()
    }

    fn check(&self) -> io::Result<()> {
        let checked = self.session.check().map(drop);
        checked.map_err(io::Error::other)
    }

    fn into_parts(self) -> io::Result<Parts> {
        let state = self.session.into_state().map_err(io::Error::other)?;
        let mut parts = self.tcp.into_parts()?;
        parts.layers.push(state.to_layer(C::KIND));
        Ok(parts)
    }
}

impl<C> std::fmt::Debug for TlsStream<C> {
    // No secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let peer: Option<SocketAddr> = self.tcp.peer_addr().ok();
        f.debug_struct("TlsStream")
            .field("peer", &peer)
            .finish_non_exhaustive()
    }
}
