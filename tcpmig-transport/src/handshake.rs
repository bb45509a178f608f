//! From a first packet to an authorised peer, on either side.
//!
//! With TLS 1.3 a connecting host is done before the accepting one has seen its certificate. So
//! the accepting side says that it lets the other in, by a welcome on a stream of its own, and the
//! connecting side waits for that.

use std::net::SocketAddr;
use std::sync::Arc;

use quinn::{ClientConfig, ConnectError, Connecting, Connection, ConnectionError};
use rustls::pki_types::CertificateDer;
use tokio::time::{Instant, timeout_at};

use crate::budget::Budget;
use crate::cause::{self, certificate_error, connection_error};
use crate::error::TransportError;
use crate::limits::TransportLimits;
use crate::peer::{Peer, canonical};
use crate::tls::{PROTOCOL, Verdict};
use crate::trust::{Trust, dns_name};

/// Connects to the host at the address, which must have the name.
pub(crate) async fn connect(
    endpoint: &quinn::Endpoint,
    config: ClientConfig,
    verdict: &Verdict,
    (peer, name): (SocketAddr, &str),
    limits: &TransportLimits,
    budget: Arc<Budget>,
) -> Result<Peer, TransportError> {
    dns_name(name)?;
    let deadline = Instant::now() + limits.handshake;
    let late = |_| TransportError::HandshakeTimeout {
        peer,
        limit: limits.handshake,
    };
    let failed = |error| match verdict.take() {
        Some(error) => certificate_error(error, peer),
        None => connection_error(error, peer),
    };
    let mut connecting = endpoint
        .connect_with(config, peer, name)
        .map_err(|error| connect_error(error, peer))?;
    // The first answer tells a slow host from none.
    timeout_at(deadline, connecting.handshake_data())
        .await
        .map_err(|_| TransportError::Unreachable {
            peer,
            reason: format!("no answer within {:?}", limits.handshake),
        })?
        .map_err(failed)?;
    let connection = timeout_at(deadline, connecting)
        .await
        .map_err(late)?
        .map_err(failed)?;
    timeout_at(deadline, welcome(&connection, peer))
        .await
        .map_err(late)??;
    Ok(Peer::new(connection, name, limits.receipt(budget)))
}

/// Lets a host in, or tells it why not.
pub(crate) async fn accept(
    peer: SocketAddr,
    accepted: Result<Connecting, ConnectionError>,
    trust: Trust,
    limits: TransportLimits,
    budget: Arc<Budget>,
) -> Result<Peer, TransportError> {
    let peer = canonical(peer);
    let let_in = async {
        let lost = |error| connection_error(error, peer);
        let connection = accepted.map_err(lost)?.await.map_err(lost)?;
        let name = match authorise(&connection, &trust) {
            Ok(name) => name,
            Err(names) => {
                let reason = format!("its certificate names {names:?}, none of which is allowed");
                connection.close(cause::NOT_ALLOWED, reason.as_bytes());
                return Err(TransportError::NotAllowed { peer, names });
            }
        };
        let mut stream = connection.open_uni().await.map_err(lost)?;
        if stream.write_all(PROTOCOL).await.is_err() {
            return Err(lost(connection.closed().await));
        }
        // An error says that the other side does not care, which the next use will show.
        drop(stream.finish());
        Ok(Peer::new(connection, &name, limits.receipt(budget)))
    };
    tokio::time::timeout(limits.handshake, let_in)
        .await
        .unwrap_or(Err(TransportError::HandshakeTimeout {
            peer,
            limit: limits.handshake,
        }))
}

async fn welcome(connection: &Connection, peer: SocketAddr) -> Result<(), TransportError> {
    let mut stream = connection
        .accept_uni()
        .await
        .map_err(|error| connection_error(error, peer))?;
    match stream.read_to_end(PROTOCOL.len()).await {
        Ok(octets) if octets == PROTOCOL => Ok(()),
        Err(quinn::ReadToEndError::Read(quinn::ReadError::ConnectionLost(error))) => {
            Err(connection_error(error, peer))
        }
        Ok(_) | Err(_) => Err(TransportError::Protocol {
            peer,
            reason: "its welcome is not this protocol's".to_owned(),
        }),
    }
}

fn authorise(connection: &Connection, trust: &Trust) -> Result<String, Vec<String>> {
    let chain = connection
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok());
    match chain.as_deref().and_then(|chain| chain.first()) {
        Some(certificate) => trust.authorise(certificate),
        None => Err(Vec::new()),
    }
}

fn connect_error(error: ConnectError, peer: SocketAddr) -> TransportError {
    match error {
        ConnectError::EndpointStopping => TransportError::Closed {
            reason: "by this host".to_owned(),
        },
        other => TransportError::Unreachable {
            peer,
            reason: other.to_string(),
        },
    }
}
