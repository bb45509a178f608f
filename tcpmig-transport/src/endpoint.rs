//! One UDP socket from which connections are made and on which they are accepted.

use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quinn::{EndpointConfig, ServerConfig, TokioRuntime, TransportConfig};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::Mutex as AsyncMutex;
use tokio::task::coop::consume_budget;

use crate::budget::Budget;
use crate::cause;
use crate::credentials::{Credentials, Current};
use crate::door::{Door, Guests};
use crate::error::TransportError;
use crate::handshake;
use crate::identity::Identity;
use crate::knocking::Knocks;
use crate::limits::{MAX_DATAGRAM, Role, SOCKET_BUFFER, TransportLimits};
use crate::peer::Peer;
use crate::reset;
use crate::trust::Trust;

/// First packets that wait until `accept` has looked at them; QUIC drops further ones before it spends anything on them.
const WAITING: usize = 1024;
/// Bytes kept of what follows them.
const WAITING_BYTES: u64 = 4 << 20;

/// One UDP socket from which connections are made and on which they are accepted; clones are
/// handles to the same one.
///
/// - Making one: [`bind`](Self::bind), [`from_socket`](Self::from_socket), both inside of a tokio
///   runtime.
/// - [`connect`](Self::connect) gives the one warm connection to a host.
/// - [`accept`](Self::accept) gives hosts that connected. Only a running `accept` answers them.
/// - [`close`](Self::close) tells all peers; dropping the last handle closes connections that are
///   not in use.
#[derive(Debug, Clone)]
pub struct Endpoint {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    endpoint: quinn::Endpoint,
    /// Kept for the key of its tokens, which outlives the credentials: a host that was asked for its address
    /// before they were replaced is asked once only.
    accepting: ServerConfig,
    credentials: Arc<Credentials>,
    connecting: Arc<TransportConfig>,
    limits: TransportLimits,
    budget: Arc<Budget>,
    warm: Mutex<HashMap<(SocketAddr, String), Slot>>,
    door: Arc<Door>,
    /// Those whose handshakes are under way, locked by the one who accepts.
    guests: AsyncMutex<Guests>,
}

/// The warm connection to one host. Locked while it is made, so that those who ask at the same
/// time share it.
type Slot = Arc<AsyncMutex<Option<Peer>>>;

impl Endpoint {
    /// Makes an endpoint at `addr` (port 0: any free one) in the network namespace of the calling
    /// thread, where it stays. `[::]` serves IPv4 too.
    ///
    /// # Errors
    /// [`TransportError::Bind`], and as [`from_socket`](Self::from_socket).
    pub fn bind(
        addr: SocketAddr,
        identity: &Identity,
        trust: &Trust,
        limits: TransportLimits,
    ) -> Result<Self, TransportError> {
        let socket = bind(addr).map_err(|source| TransportError::Bind { addr, source })?;
        Self::from_socket(socket, identity, trust, limits)
    }

    /// Like [`bind`](Self::bind), on a bound socket: one passed by a service manager, or made in
    /// another network namespace.
    ///
    /// # Errors
    /// [`TransportError::Socket`] for a socket that cannot be used and outside of a tokio runtime,
    /// [`TransportError::Limit`], [`TransportError::InvalidName`] for a name in `trust`,
    /// [`TransportError::Tls`].
    pub fn from_socket(
        socket: UdpSocket,
        identity: &Identity,
        trust: &Trust,
        limits: TransportLimits,
    ) -> Result<Self, TransportError> {
        let connecting = limits.quic(Role::Connecting)?;
        let (current, accepting) = Current::new(identity, trust)?;
        let mut server = ServerConfig::with_crypto(accepting);
        server
            .transport_config(limits.quic(Role::Accepting)?)
            // Hosts have addresses that stay; a connection that moves would not be theirs.
            .migration(false)
            // Its tokens tell seconds, rounded down.
            .retry_token_lifetime(limits.handshake + Duration::from_secs(1))
            .max_incoming(WAITING)
            .incoming_buffer_size_total(WAITING_BYTES);
        enlarge_buffers(&socket);
        let socket_error = |call| move |source| TransportError::Socket { call, source };
        let local = socket.local_addr().map_err(socket_error("getsockname"))?;
        // quinn panics without one.
        tokio::runtime::Handle::try_current()
            .map_err(std::io::Error::other)
            .map_err(socket_error("find the tokio runtime"))?;
        let endpoint = quinn::Endpoint::new(
            quic_config(identity, local),
            Some(server.clone()),
            socket,
            Arc::new(TokioRuntime),
        )
        .map_err(socket_error("set up the UDP socket"))?;
        Ok(Self {
            inner: Arc::new(Inner {
                endpoint,
                accepting: server,
                credentials: Arc::new(Credentials::new(current)),
                connecting,
                budget: Budget::new(limits.max_unfinished),
                door: Arc::new(Door::new(&limits)),
                limits,
                warm: Mutex::default(),
                guests: AsyncMutex::default(),
            }),
        })
    }

    /// The address and port of the socket.
    ///
    /// # Errors
    /// [`TransportError::Socket`].
    pub fn local_addr(&self) -> Result<SocketAddr, TransportError> {
        self.inner
            .endpoint
            .local_addr()
            .map_err(|source| TransportError::Socket {
                call: "getsockname",
                source,
            })
    }

    /// The connection to the host at `addr` whose certificate carries the DNS name `name`. The
    /// first call makes it, later ones return it as long as it lives, at no cost. Returns only
    /// after the other side has let this host in.
    ///
    /// A connection on which nothing was heard for a second has to show that it is alive, which takes a round trip; if it does not
    /// within another second, a new one is made. So a host that went away without a word may be taken for alive for
    /// a second: then the exchange fails ([`TransportError::Restarted`], [`TransportError::Idle`]) and a later
    /// `connect` reconnects, also to a process with another key.
    ///
    /// # Errors
    /// [`TransportError::Unreachable`], [`TransportError::HandshakeTimeout`];
    /// [`TransportError::WrongName`], [`TransportError::UntrustedCertificate`] and
    /// [`TransportError::Expired`] if this host does not believe the other;
    /// [`TransportError::Rejected`] if the other does not let this host in.
    pub async fn connect(&self, addr: SocketAddr, name: &str) -> Result<Peer, TransportError> {
        let slot = self.slot(addr, name);
        let mut slot = slot.lock().await;
        if let Some(peer) = slot.as_ref()
            && peer.is_there().await
        {
            return Ok(peer.clone());
        }
        *slot = None;
        // Apart: it is large, seldom needed, and would be in the task of everything that asks for a connection.
        let connecting = Box::pin(handshake::connect(
            &self.inner.endpoint,
            &self.inner.credentials,
            Arc::clone(&self.inner.connecting),
            (addr, name),
            &self.inner.limits,
            Arc::clone(&self.inner.budget),
        ));
        let peer = connecting.await?;
        Ok(slot.insert(peer).clone())
    }

    /// Waits for a host to connect and to prove that it may. One that fails yields an error that
    /// names it, and the endpoint goes on; `None` when the endpoint is closed. Cancel-safe; a slow
    /// host delays no other.
    ///
    /// Anybody can send first packets, from any address, without end. So while more than
    /// [`retry_above`](TransportLimits::retry_above) handshakes are under way a host has to show that it is where it says, which
    /// takes a round trip more and costs this host no memory; an address has a
    /// [share](TransportLimits::max_handshakes_per_address) of the [places](TransportLimits::max_handshakes); and a
    /// handshake whose place is wanted is given up after [`crowded_handshake`](TransportLimits::crowded_handshake), without an error here.
    /// What is turned away is [counted](Self::knocks), and reported to the log every ten seconds.
    pub async fn accept(&self) -> Option<Result<Peer, TransportError>> {
        let inner = &*self.inner;
        let mut guests = inner.guests.lock().await;
        loop {
            tokio::select! {
                Some(ended) = guests.next() => match ended {
                    Ok(Some(result)) => return Some(result),
                    Ok(None) => {}
                    Err(error) => match error.try_into_panic() {
                        Ok(panic) => std::panic::resume_unwind(panic),
                        // The runtime is shutting down.
                        Err(_) => return None,
                    },
                },
                incoming = inner.endpoint.accept() => {
                    let admitted = inner.door.answer(incoming?, &inner.endpoint, &inner.credentials, &inner.limits);
                    if let Some(admitted) = admitted {
                        guests.begin(admitted, &inner.credentials, &inner.limits, &inner.budget);
                    }
                    // Those who knock may come faster than they are answered; other tasks want to run.
                    consume_budget().await;
                }
            }
        }
    }

    /// What became of the hosts that knocked, since the endpoint was made, and how many handshakes are under way.
    #[must_use]
    pub fn knocks(&self) -> Knocks {
        Knocks {
            connections: self.inner.endpoint.open_connections(),
            ..self.inner.door.knocks()
        }
    }

    /// Who this host is and whom it believes from now on: for a certificate that is renewed, another authority, hosts that
    /// come and go, without a restart.
    ///
    /// Connections that are made from now on, in either direction, use the new ones. One that is open is closed if it could not be made by
    /// them now: its other side is not admitted any more, has a certificate of an authority that is not believed any more, or
    /// one that has expired. Its exchanges end with an error on both sides, a handover on it is asked about again. The
    /// others go on; [`connect`](Self::connect) gives one that is made by the new ones, so that the other side
    /// sees this host's new certificate.
    ///
    /// ```no_run
    /// # use std::path::Path;
    /// # use tcpmig_transport::{Authorities, Endpoint, Identity, Trust};
    /// /// On SIGHUP, for instance. After an error everything is as it was.
    /// fn reload(endpoint: &Endpoint) -> Result<(), Box<dyn std::error::Error>> {
    ///     let (cert, key) = (Path::new("a.example.pem"), Path::new("a.example.key"));
    ///     let identity = Identity::from_pem_files(cert, key)?;
    ///     let authorities = Authorities::from_pem_file(Path::new("ca.pem"))?;
    ///     endpoint.reload(&identity, &Trust::only(authorities, ["b.example"]))?;
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    /// [`TransportError::InvalidName`] for a name in `trust`, [`TransportError::Tls`]; everything is then as it was.
    pub fn reload(&self, identity: &Identity, trust: &Trust) -> Result<(), TransportError> {
        let (current, accepting) = Current::new(identity, trust)?;
        let mut server = self.inner.accepting.clone();
        server.crypto = accepting;
        self.inner.endpoint.set_server_config(Some(server));
        self.inner.credentials.replace(current);
        // Those that are being made keep their slot, and are made by one or the other.
        self.warm().clear();
        Ok(())
    }

    /// Closes the endpoint and all its connections at once, telling the peers `reason`. Frames
    /// under way are lost. Waits until the peers have been told, at most for the handshake limit.
    pub async fn close(&self, reason: &str) {
        self.inner.endpoint.close(cause::DONE, reason.as_bytes());
        self.warm().clear();
        let told = self.inner.endpoint.wait_idle();
        if tokio::time::timeout(self.inner.limits.handshake, told)
            .await
            .is_err()
        {
            tracing::debug!("connections still draining when the endpoint closed");
        }
    }

    /// The slot for a host. Slots of connections that have ended go.
    fn slot(&self, addr: SocketAddr, name: &str) -> Slot {
        let mut warm = self.warm();
        warm.retain(|_, slot| match slot.try_lock() {
            Ok(peer) => peer.as_ref().is_some_and(|peer| !peer.is_closed()),
            // Being made.
            Err(_) => true,
        });
        Arc::clone(warm.entry((addr, name.to_ascii_lowercase())).or_default())
    }

    fn warm(&self) -> std::sync::MutexGuard<'_, HashMap<(SocketAddr, String), Slot>> {
        self.inner
            .warm
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn bind(addr: SocketAddr) -> std::io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&addr.into())?;
    Ok(socket.into())
}

fn quic_config(identity: &Identity, local: SocketAddr) -> EndpointConfig {
    let mut config = reset::endpoint_config(identity, local);
    // Without this the other side's MTU discovery would end at 1472.
    config
        .max_udp_payload_size(MAX_DATAGRAM)
        .expect("between 1200 and 65527");
    config
}

/// Bursts of a whole image must not overrun the socket. The kernel grants at most
/// `net.core.{r,w}mem_max`, which is slower but works.
fn enlarge_buffers(socket: &UdpSocket) {
    let socket = socket2::SockRef::from(socket);
    let asked = socket
        .set_recv_buffer_size(SOCKET_BUFFER)
        .and_then(|()| socket.set_send_buffer_size(SOCKET_BUFFER));
    match asked.and_then(|()| socket.recv_buffer_size()) {
        Ok(granted) if granted >= SOCKET_BUFFER => {}
        Ok(granted) => tracing::debug!(granted, "net.core.rmem_max limits the UDP socket"),
        Err(error) => tracing::debug!(%error, "setsockopt(SO_RCVBUF, SO_SNDBUF)"),
    }
}
