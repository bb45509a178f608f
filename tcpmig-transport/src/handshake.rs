//! From a first packet to an authorised peer, on either side.
//!
//! With TLS 1.3 a connecting host is done before the accepting one has seen its certificate. So
//! the accepting side says that it lets the other in, by a welcome on a stream of its own, and the
//! connecting side waits for that.

use std::net::SocketAddr;
use std::sync::Arc;

use quinn::{ClientConfig, ConnectError, Connecting, Connection, ConnectionError, TransportConfig};
use tokio::time::{Instant, timeout_at};

use crate::budget::Budget;
use crate::cause::{self, certificate_error, connection_error};
use crate::credentials::{Credentials, Current};
use crate::error::TransportError;
use crate::limits::{Role, TransportLimits};
use crate::link::Link;
use crate::peer::{Peer, canonical};
use crate::tls::PROTOCOL;
use crate::trust::dns_name;

/// Connects to the host at the address, which must have the name.
pub(crate) async fn connect(
    endpoint: &quinn::Endpoint,
    credentials: &Credentials,
    transport: Arc<TransportConfig>,
    (peer, name): (SocketAddr, &str),
    limits: &TransportLimits,
    budget: Arc<Budget>,
) -> Result<Peer, TransportError> {
    dns_name(name)?;
    let current = credentials.current();
    let (tls, verdict) = current.connector.connecting()?;
    let mut config = ClientConfig::new(tls);
    config.transport_config(transport);
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
    let link = Link {
        address: canonical(connection.remote_address()),
        connection,
        name: name.to_owned(),
        role: Role::Connecting,
    };
    let link = credentials.watch(link, &current, usize::MAX)?;
    Ok(Peer::new(link, limits.receiving(budget)))
}

/// Lets a host in, or tells it why not.
pub(crate) async fn accept(
    peer: SocketAddr,
    accepted: Result<Connecting, ConnectionError>,
    (credentials, by): (Arc<Credentials>, Arc<Current>),
    limits: TransportLimits,
    budget: Arc<Budget>,
) -> Result<Peer, TransportError> {
    let peer = canonical(peer);
    let let_in = async {
        let lost = |error| connection_error(error, peer);
        let connection = accepted.map_err(lost)?.await.map_err(lost)?;
        let name = match credentials.current().authorise(&connection) {
            Ok(name) => name,
            Err(names) => {
                let reason = format!("its certificate names {names:?}, none of which is allowed");
                connection.close(cause::NOT_ALLOWED, reason.as_bytes());
                return Err(TransportError::NotAllowed { peer, names });
            }
        };
        let link = Link {
            connection,
            name,
            address: peer,
            role: Role::Accepting,
        };
        // Others may have been let in since it knocked.
        let link = credentials.watch(link, &by, limits.max_connections)?;
        let exchanges = limits.max_exchanges.into();
        link.connection.set_max_concurrent_bi_streams(exchanges);
        let mut stream = link.connection.open_uni().await.map_err(lost)?;
        if stream.write_all(PROTOCOL).await.is_err() {
            return Err(lost(link.connection.closed().await));
        }
        // An error says that the other side does not care, which the next use will show.
        drop(stream.finish());
        Ok(Peer::new(link, limits.receiving(budget)))
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
        Ok(bytes) if bytes == PROTOCOL => Ok(()),
        Err(quinn::ReadToEndError::Read(quinn::ReadError::ConnectionLost(error))) => {
            Err(connection_error(error, peer))
        }
        Ok(_) | Err(_) => Err(TransportError::Protocol {
            peer,
            reason: "its welcome is not this protocol's".to_owned(),
        }),
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
