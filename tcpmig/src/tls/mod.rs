//! TLS sessions that move: a client keeps its connection, and sees no handshake.
//!
//! [`Tls`] serves TLS 1.3 and 1.2 with an ordinary `ServerConfig` of rustls, and makes a session on one server what it was on another. Give it to
//! [`Movable::over`](crate::http::Movable::over), and HTTP/1, HTTP/2 and WebSocket sessions move over it as they do over plain TCP:
//!
//! ```no_run
//! # async fn run(config: std::sync::Arc<rustls::ServerConfig>, router: axum::Router) -> Result<(), Box<dyn std::error::Error>> {
//! use hyper_util::service::TowerToHyperService;
//! use tcpmig::http::{Movable, Server};
//! use tcpmig::tls::Tls;
//!
//! let movable = Movable::new(TowerToHyperService::new(router)).over(Tls::new(config));
//! let server = Server::new(movable);
//! let listener = tokio::net::TcpListener::bind("198.18.0.80:443").await?;
//! loop {
//!     let (stream, _) = listener.accept().await?;
//!     let server = server.clone();
//!     tokio::spawn(async move { server.serve(stream).await });
//! }
//! # }
//! ```
//!
//! Without the feature `http2` name `http/1.1` alone in `alpn_protocols`, or nothing; with it, and `Movable::with_http2`, `h2` too.
//!
//! [`TlsClient`] does the same for the connections of a proxy to its backends.
//!
//! A handler finds what was negotiated among the extensions of a request, as [`Negotiated`].
//!
//! # What moves
//!
//! The session's keys and the numbers of its records, what was negotiated (suite, ALPN, server's name, the client's certificates,
//! the exporter of TLS 1.3), records that are cut anywhere, a key update that its sender has cut into several records, plaintext that was read ahead, records that TCP has not taken, the
//! answer to a key update that has not been written, and who has said `close_notify`. The target's provider of cryptography has to have the
//! session's cipher suite, which is one of TLS 1.3 or of TLS 1.2: if it does not, the connection is refused before it leaves its source. Which
//! versions the target takes for new sessions is not asked, and it need not have the same certificate. Tickets that the
//! source gave out can be used at the target if both have the same ticketer.
//!
//! A connection in its handshake is not moved: the move waits for the end of that. Early data is not accepted, whatever the
//! `ServerConfig` says.
//!
//! # Secrets
//!
//! The layer has the secrets of the session: whoever reads it can read and forge what follows in this session. **Only one may go on
//! with it.** Two that write with the same keys and numbers break the protection of both (nonces are used twice).
//! [`Carrier::into_parts`](crate::session::Carrier::into_parts) ends the session where it was, and a
//! [`Way`](crate::session::Way) gives the parts to one place. [`manual`] has the threat model, and says which providers of cryptography and
//! versions of rustls work.
//!
//! # What does not move
//!
//! Sessions of kernel TLS, and suites of other providers that do not give their keys out. `export_keying_material` of TLS
//! 1.2 gives something else after a move.

mod client;
#[cfg(feature = "arbitrary")]
pub(crate) mod fuzz;
mod graft;
mod keys;
mod layer;
pub mod manual;
mod negotiated;
mod nothing;
mod rebuild;
mod records;
mod session;
mod side;
mod stream;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection};
use tcpmig_format::{LayerReader, SecretBytes};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::handover::Refusal;
use crate::session::{Carriers, Rebuilt};
pub use client::TlsClient;
use layer::State;
pub use layer::{CLIENT_KIND, KIND, VERSION};
pub use negotiated::Negotiated;
use rebuild::Terms;
use session::Session;
use side::Side;
pub use stream::TlsStream;

/// The TLS sessions of a server.
#[derive(Debug, Clone)]
pub struct Tls {
    config: Arc<ServerConfig>,
    handshake_within: Duration,
}

/// How long a handshake may take.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);

impl Tls {
    /// With this configuration, and 10 seconds for a handshake.
    pub fn new(config: impl Into<Arc<ServerConfig>>) -> Self {
        Self {
            config: config.into(),
            handshake_within: HANDSHAKE_WITHIN,
        }
    }

    /// How long a client may take for its handshake.
    #[must_use]
    pub fn handshake_within(mut self, within: Duration) -> Self {
        self.handshake_within = within;
        self
    }
}

impl Carriers for Tls {
    type Carrier = TlsStream;

    fn accept(&self, tcp: TcpStream) -> impl Future<Output = io::Result<TlsStream>> + Send {
        let session = Session::accept(&self.config).map_err(io::Error::other);
        begin(tcp, session, self.handshake_within)
    }

    fn check(&self, layers: &mut LayerReader<'_>) -> Result<Option<Negotiated>, Refusal> {
        check::<ServerConnection>(layers, &Terms::from(&*self.config)).map(Some)
    }

    fn rebuild(
        &self,
        tcp: TcpStream,
        unwritten: SecretBytes,
        layers: &mut LayerReader<'_>,
    ) -> Result<Rebuilt<TlsStream>, Refusal> {
        let carrier = resume(tcp, unwritten, layers, &Terms::from(&*self.config))?;
        Ok(Rebuilt {
            carrier,
            unwritten: SecretBytes::new(),
        })
    }
}

/// Makes a handshake.
async fn begin<C: Side>(
    tcp: TcpStream,
    session: io::Result<Session<C>>,
    within: Duration,
) -> io::Result<TlsStream<C>> {
    let mut stream = TlsStream {
        tcp,
        session: session?,
    };
    timeout(within, stream.handshake()).await??;
    Ok(stream)
}

/// Whether a session could go on, and what was negotiated.
fn check<C: Side>(layers: &mut LayerReader<'_>, terms: &Terms<'_>) -> Result<Negotiated, Refusal> {
    let state = State::read(layers, C::KIND)?;
    rebuild::check::<C>(&state, terms)?;
    Ok(Negotiated::of_state(state))
}

/// A session goes on.
fn resume<C: Side>(
    tcp: TcpStream,
    unwritten: SecretBytes,
    layers: &mut LayerReader<'_>,
    terms: &Terms<'_>,
) -> Result<TlsStream<C>, Refusal> {
    let state = State::read(layers, C::KIND)?;
    let session = Session::resume(state, unwritten, terms)?;
    Ok(TlsStream { tcp, session })
}
