//! What an endpoint allows, and how it is tuned.

use std::sync::Arc;
use std::time::Duration;

use quinn::congestion::CubicConfig;
use quinn::{IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};

use crate::budget::Budget;
use crate::error::TransportError;
use crate::exchange::Receipt;

/// Octets that may be in flight on one exchange before the receiver has read them.
pub(crate) const STREAM_WINDOW: u32 = 16 << 20;
/// Octets that may be in flight on one connection: bounds what a peer can make this host hold.
const CONNECTION_WINDOW: u32 = 64 << 20;
/// Octets a connection keeps for repetition until the other side acknowledges them.
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
/// Asked of the kernel for the UDP socket, in octets; it may grant less.
pub(crate) const SOCKET_BUFFER: usize = 8 << 20;

/// A deadline must stay within what a clock can show.
const LONGEST_HANDSHAKE: Duration = Duration::from_secs(3600);

/// What an [`Endpoint`](crate::Endpoint) allows.
///
/// ```
/// use std::time::Duration;
/// use tcpmig_transport::TransportLimits;
///
/// let limits = TransportLimits { idle: Duration::from_secs(5), ..Default::default() };
/// assert!(limits.keep_alive < limits.idle);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransportLimits {
    /// Longest frame in octets, without its length prefix; default 65 MiB, an image whose two
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
    /// How long a frame may take from its first octet to its last; default 30 s, in which 65 MiB come at 18 Mbit/s. Zero
    /// is refused.
    pub frame: Duration,
    /// Octets of unfinished frames that all exchanges of the endpoint may hold together; default 256 MiB. The frame that would be
    /// more is refused, and its exchange ends.
    pub max_unfinished: usize,
    /// Connections that the endpoint may have at a time for others to connect, made by either side, those included that still
    /// have to prove themselves; default 1024. Others are refused.
    pub max_connections: usize,
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
            max_exchanges: 1024,
        }
    }
}

/// Which side of a connection a configuration is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Connecting,
    Accepting,
}

impl TransportLimits {
    /// What an exchange takes.
    pub(crate) fn receipt(&self, budget: Arc<Budget>) -> Receipt {
        Receipt {
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
        let welcomes: u32 = if role == Role::Connecting { 1 } else { 0 };

        let mut config = TransportConfig::default();
        config
            .max_concurrent_bidi_streams(self.max_exchanges.into())
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
