//! What an endpoint allows, and how it is tuned.

use std::sync::Arc;
use std::time::Duration;

use quinn::congestion::CubicConfig;
use quinn::{IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};

use crate::budget::Budget;
use crate::error::TransportError;
use crate::exchange::ReceiveLimits;

/// Bytes that may be in flight on one exchange before the receiver has read them.
pub(crate) const STREAM_WINDOW: u32 = 16 << 20;
/// Bytes that may be in flight on one connection: bounds what a peer can make this host hold.
const CONNECTION_WINDOW: u32 = 64 << 20;
/// Bytes a connection keeps for repetition until the other side acknowledges them.
const SEND_WINDOW: u64 = 32 << 20;
/// Ten segments of this size fit the 64 KiB that the kernel splits in one call; above 6553 they
/// do not, and throughput collapses.
pub(crate) const MAX_DATAGRAM: u16 = 6400;
/// What a fresh connection sends before the first acknowledgement: a usual image at once instead of
/// probing up from 14 KiB, as hosts that migrate share a fast network. More would only overrun the
/// buffers of its switches; the window doubles with each round trip and shrinks with losses.
const INITIAL_WINDOW: u64 = 1 << 20;
/// Until measured: a lost handshake packet is repeated after three times this, not after a second.
const INITIAL_RTT: Duration = Duration::from_millis(100);
/// Exchanges of a host that has not proved itself, for which QUIC makes ready; nobody looks at them before it has.
const STRANGERS_EXCHANGES: u32 = 8;
/// Asked of the kernel for the UDP socket, in bytes; it may grant less.
pub(crate) const SOCKET_BUFFER: usize = 8 << 20;

/// A deadline must stay within what a clock can show.
const LONGEST_HANDSHAKE: Duration = Duration::from_secs(3600);

/// What an [`Endpoint`](crate::Endpoint) allows.
///
/// ```
/// use std::time::Duration;
/// use tcpmig_transport::TransportLimits;
///
/// let mut limits = TransportLimits::default();
/// limits.idle = Duration::from_secs(5);
/// assert!(limits.keep_alive < limits.idle);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TransportLimits {
    /// Longest frame in bytes, without its length prefix; default 65 MiB, an image whose two
    /// queues hold 32 MiB each. Never above `u32::MAX - 1`.
    pub max_frame: usize,
    /// How long connecting may take, authorisation included; default 5 s, at most an hour.
    pub handshake: Duration,
    /// Silence after which a peer counts as gone; default 30 s. The smaller value of both sides
    /// holds.
    pub idle: Duration,
    /// Pause after which a connection without traffic is kept warm; default 3 s. Zero: never, so
    /// that a connection without traffic ends by `idle`. A peer that restarted is noticed by the
    /// next keep-alive at the latest.
    pub keep_alive: Duration,
    /// How long a frame may take from its first byte to its last; default 30 s, in which 65 MiB come at 18 Mbit/s. Zero
    /// is refused.
    pub frame: Duration,
    /// Bytes of unfinished frames that all exchanges of the endpoint may hold together; default 256 MiB. The frame that would be
    /// more is refused, and its exchange ends.
    pub max_unfinished: usize,
    /// Connections that the endpoint may have at a time for others to connect, made by either side; default 1024. Others are
    /// refused. Those that still have to prove themselves are not among them.
    pub max_connections: usize,
    /// Handshakes under way at a time of hosts that connect and have shown their address; default 512, some 25 MiB, and
    /// as much again while QUIC forgets those that were given up. The last quarter is for addresses that have none. Zero is
    /// refused.
    pub max_handshakes: usize,
    /// Those of one IPv4 address, or of the IPv6 addresses that share their first 64 bits; default 16. One that fails counts
    /// until `crowded_handshake` has passed since it began. Zero is refused.
    pub max_handshakes_per_address: usize,
    /// While so many handshakes are under way a host that connects has to show its address, which takes a round
    /// trip more (QUIC Retry); default 16. Zero: always.
    pub retry_above: usize,
    /// How long a handshake may take when its place is wanted for another; default 1 s. Zero is refused.
    pub crowded_handshake: Duration,
    /// Retries and refusals that may be sent per second, all addresses together; default 8192, which is less than 1 MB. Who
    /// knocks beyond that, or when no place is free, gets no answer. Zero: nobody is asked or refused, so that above `retry_above`
    /// nobody connects.
    pub answers_per_second: u32,
    /// Exchanges that one peer may have open at a time; default 1024. More wait in
    /// [`Peer::open`](crate::Peer::open).
    pub max_exchanges: u32,
}

impl Default for TransportLimits {
    fn default() -> Self {
        Self {
            max_frame: 65 << 20,
            handshake: Duration::from_secs(5),
            idle: Duration::from_secs(30),
            keep_alive: Duration::from_secs(3),
            frame: Duration::from_secs(30),
            max_unfinished: 256 << 20,
            max_connections: 1024,
            max_handshakes: 512,
            max_handshakes_per_address: 16,
            retry_above: 16,
            crowded_handshake: Duration::from_secs(1),
            answers_per_second: 8192,
            max_exchanges: 1024,
        }
    }
}

/// Which side of a connection a configuration is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Connecting,
    Accepting,
}

impl TransportLimits {
    /// What an exchange takes.
    pub(crate) fn receiving(&self, budget: Arc<Budget>) -> ReceiveLimits {
        ReceiveLimits {
            max_frame: self.max_frame,
            frame: Some(self.frame),
            budget,
        }
    }

    /// The QUIC settings for these limits.
    pub(crate) fn quic(&self, role: Role) -> Result<Arc<TransportConfig>, TransportError> {
        let idle = IdleTimeout::try_from(self.idle).map_err(|_| TransportError::Limit {
            what: "idle",
            reason: "too long",
        })?;
        if self.idle.is_zero() {
            return Err(TransportError::Limit {
                what: "idle",
                reason: "must not be zero",
            });
        }
        if self.handshake.is_zero() || self.handshake > LONGEST_HANDSHAKE {
            return Err(TransportError::Limit {
                what: "handshake",
                reason: "must be above zero and at most an hour",
            });
        }
        if self.crowded_handshake.is_zero() {
            return Err(TransportError::Limit {
                what: "crowded_handshake",
                reason: "must not be zero",
            });
        }
        for (what, places) in [
            ("max_handshakes", self.max_handshakes),
            (
                "max_handshakes_per_address",
                self.max_handshakes_per_address,
            ),
        ] {
            if places == 0 {
                return Err(TransportError::Limit {
                    what,
                    reason: "must not be zero",
                });
            }
        }
        if self.frame.is_zero() || self.frame > LONGEST_HANDSHAKE {
            return Err(TransportError::Limit {
                what: "frame",
                reason: "must be above zero and at most an hour",
            });
        }
        if self.keep_alive >= self.idle {
            return Err(TransportError::Limit {
                what: "keep_alive",
                reason: "must be shorter than idle",
            });
        }
        let mut mtu = MtuDiscoveryConfig::default();
        mtu.upper_bound(MAX_DATAGRAM);
        let mut cubic = CubicConfig::default();
        cubic.initial_window(INITIAL_WINDOW);
        // Only the accepting side's welcome travels on a stream of one direction.
        let (welcomes, exchanges): (u32, u32) = match role {
            Role::Connecting => (1, self.max_exchanges),
            // QUIC takes memory for each that may come. A host that is let in may have all.
            Role::Accepting => (0, self.max_exchanges.min(STRANGERS_EXCHANGES)),
        };

        let mut config = TransportConfig::default();
        config
            .max_concurrent_bidi_streams(exchanges.into())
            .max_concurrent_uni_streams(welcomes.into())
            .datagram_receive_buffer_size(None)
            .max_idle_timeout(Some(idle))
            .keep_alive_interval((!self.keep_alive.is_zero()).then_some(self.keep_alive))
            .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
            .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
            .send_window(SEND_WINDOW)
            .initial_rtt(INITIAL_RTT)
            .mtu_discovery_config(Some(mtu))
            .congestion_controller_factory(Arc::new(cubic));
        Ok(Arc::new(config))
    }
}
