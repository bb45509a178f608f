//! One authenticated connection to another host.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use quinn::ConnectionError;

use crate::cause::{self, connection_error};
use crate::error::TransportError;
use crate::exchange::{Exchange, ReceiveLimits};
use crate::link::Link;
use crate::stream::{RecvHalf, SendHalf};

/// One authenticated connection to another host; clones are handles to the same one.
///
/// Either side may [`open`](Self::open) exchanges, the other [`accept`](Self::accept)s them. The
/// connection closes when the last handle, its exchanges and, on the connecting side, its
/// [`Endpoint`](crate::Endpoint) are dropped.
#[derive(Debug, Clone)]
pub struct Peer {
    link: Arc<Link>,
    limits: ReceiveLimits,
    /// When it was last known to be there.
    seen: Arc<Mutex<Instant>>,
}

/// For so long a peer that was there counts as being there.
const FRESH: Duration = Duration::from_secs(1);
/// How long a peer may take to show that it is there.
const PROBE: Duration = Duration::from_secs(1);

impl Peer {
    pub(crate) fn new(link: Arc<Link>, limits: ReceiveLimits) -> Self {
        Self {
            link,
            limits,
            seen: Arc::new(Mutex::new(Instant::now())),
        }
    }

    /// The name in its certificate by which it was authorised: on the connecting side the name
    /// asked for; on the accepting side the allowed name that matched or, if none is listed, the
    /// first in the certificate.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.link.name
    }

    /// Where it was when the connection was made; an IPv4 address is never shown as IPv6.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.link.address
    }

    /// Opens an exchange. Waits while the other side's limit of open exchanges is reached. The
    /// other side learns of the exchange by its first frame.
    ///
    /// # Errors
    /// The end of the connection.
    pub async fn open(&self) -> Result<Exchange, TransportError> {
        match self.link.connection.open_bi().await {
            Ok(streams) => Ok(self.exchange(streams)),
            Err(error) => Err(connection_error(error, self.link.address)),
        }
    }

    /// Waits for an exchange opened by the other side, in the order they were opened. `None` when
    /// either side closed the connection; an error is final too. Cancel-safe.
    pub async fn accept(&self) -> Option<Result<Exchange, TransportError>> {
        match self.link.connection.accept_bi().await {
            Ok(streams) => Some(Ok(self.exchange(streams))),
            Err(ConnectionError::LocallyClosed | ConnectionError::ApplicationClosed(_)) => None,
            Err(error) => Some(Err(connection_error(error, self.link.address))),
        }
    }

    /// Whether the connection is known to have ended. A peer that vanished is known to have done
    /// so only after the idle limit, or when something is sent to it.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.link.connection.close_reason().is_some()
    }

    /// Whether something answers for the connection, or did a moment ago. It is asked for an acknowledgement, by an
    /// exchange that is over before it begins.
    pub(crate) async fn is_there(&self) -> bool {
        if self.is_closed() {
            return false;
        }
        let seen = || self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen().elapsed() < FRESH {
            return true;
        }
        let heard = || self.link.connection.stats().udp_rx.datagrams;
        let before = heard();
        // Apart, as it is seldom needed.
        let probe = Box::pin(async {
            let (mut send, _receive) = self.link.connection.open_bi().await.ok()?;
            send.finish().ok()?;
            send.stopped().await.ok()
        });
        let answered = tokio::time::timeout(PROBE, probe).await;
        // All its exchanges may be in use: then anything that came from it will do.
        let there = matches!(answered, Ok(Some(_))) || (answered.is_err() && heard() > before);
        if there {
            *seen() = Instant::now();
        }
        there
    }

    /// Waits for the end of the connection and says why it ended.
    pub async fn closed(&self) -> TransportError {
        connection_error(self.link.connection.closed().await, self.link.address)
    }

    /// Closes the connection at once: exchanges end with [`TransportError::Closed`] on both sides
    /// and frames under way are lost. The other side is told `reason`.
    pub fn close(&self, reason: &str) {
        self.link.connection.close(cause::DONE, reason.as_bytes());
    }

    fn exchange(&self, streams: (quinn::SendStream, quinn::RecvStream)) -> Exchange {
        Exchange::new(
            SendHalf::Quic(streams.0, Arc::clone(&self.link)),
            RecvHalf::Quic(streams.1, Arc::clone(&self.link)),
            self.limits.clone(),
        )
    }
}

/// `address` without the IPv6 form that a dual-stack socket gives to IPv4 addresses.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
