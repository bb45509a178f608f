//! What can go wrong, split by whose doing it is.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use thiserror::Error;

/// A certificate, key or certificate authority that cannot be used. The operator's to mend.
///
/// `origin` is the file, or "the given PEM" if the text came from memory.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("read {origin}: {source}")]
    Read {
        /// The file.
        origin: String,
        /// Why not.
        source: io::Error,
    },
    /// The text is readable but has no section of the wanted kind.
    #[error("{origin}: no {what} in it (a \"-----BEGIN ...-----\" section)")]
    Missing {
        /// Where the text came from.
        origin: String,
        /// "certificate" or "private key".
        what: &'static str,
    },
    /// The text is not PEM.
    #[error("{origin}: malformed PEM for the {what}: {reason}")]
    Pem {
        /// Where the text came from.
        origin: String,
        /// "certificate" or "private key".
        what: &'static str,
        /// What is malformed.
        reason: String,
    },
    /// The certificate is PEM but not a usable X.509 certificate.
    #[error("{origin}: certificate not usable: {reason}")]
    Certificate {
        /// Where the text came from.
        origin: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The private key is PEM but of an unknown kind or damaged.
    #[error("{origin}: private key not usable: {reason}")]
    Key {
        /// Where the text came from.
        origin: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The private key belongs to another certificate.
    #[error("{key}: not the private key of the certificate in {cert}")]
    KeyMismatch {
        /// Where the certificate came from.
        cert: String,
        /// Where the key came from.
        key: String,
    },
}

/// Why an endpoint, a peer or an exchange failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TransportError {
    // The caller's or the operator's doing.
    /// The UDP socket could not be made or bound.
    #[error("bind UDP {addr}: {source}")]
    Bind {
        /// The wanted local address.
        addr: SocketAddr,
        /// The system's answer.
        source: io::Error,
    },
    /// A UDP socket was made but cannot be driven, for instance outside of a tokio runtime.
    #[error("{call}: {source}")]
    Socket {
        /// The call that failed.
        call: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// A limit is outside of what QUIC can express.
    #[error("transport limit {what}: {reason}")]
    Limit {
        /// The field of [`TransportLimits`](crate::TransportLimits).
        what: &'static str,
        /// What it must be.
        reason: &'static str,
    },
    /// TLS refuses the identity or the trust given.
    #[error("set up TLS: {0}")]
    Tls(String),
    /// A name that no certificate can carry as a DNS name.
    #[error("{name:?} is not a DNS name")]
    InvalidName {
        /// The name given.
        name: String,
    },
    /// A frame is longer than this side allows; nothing was sent, or allocated for it.
    #[error("frame of {len} bytes is longer than the limit of {limit}")]
    FrameTooLong {
        /// Bytes given, or announced by the other side.
        len: u64,
        /// Bytes allowed.
        limit: usize,
    },
    /// The call comes after [`finish`](crate::Exchange::finish), or after an error that ended
    /// this direction of the exchange.
    #[error("this direction of the exchange has ended already")]
    Ended,

    // The network's doing.
    /// Nothing answered, or the address cannot be reached from this endpoint.
    #[error("connect {peer}: unreachable: {reason}")]
    Unreachable {
        /// Whom this host tried to reach.
        peer: SocketAddr,
        /// What is known about it.
        reason: String,
    },
    /// The other side answered, but the handshake did not end within the limit.
    #[error("handshake with {peer} not done within {limit:?}")]
    HandshakeTimeout {
        /// The other side.
        peer: SocketAddr,
        /// [`TransportLimits::handshake`](crate::TransportLimits::handshake).
        limit: Duration,
    },
    /// Nothing came from the other side for the idle limit: it, or the path to it, is gone.
    #[error("nothing heard from {peer} within the idle limit")]
    Idle {
        /// The other side.
        peer: SocketAddr,
    },

    // Who is who.
    /// The certificate of the other side is valid but carries other names.
    #[error("{peer} is not {expected:?}: its certificate names {presented:?}")]
    WrongName {
        /// The other side.
        peer: SocketAddr,
        /// The name asked for.
        expected: String,
        /// The names in its certificate.
        presented: Vec<String>,
    },
    /// The other side has no certificate of a trusted authority.
    #[error("certificate of {peer} not trusted: {reason}")]
    UntrustedCertificate {
        /// The other side.
        peer: SocketAddr,
        /// What is wrong with it.
        reason: String,
    },
    /// The certificate of the other side has expired or is not yet valid.
    #[error("certificate of {peer} is not valid now: {reason}")]
    Expired {
        /// The other side.
        peer: SocketAddr,
        /// The times concerned.
        reason: String,
    },
    /// The certificate of a connecting peer is valid, but none of its names is allowed here.
    #[error("{peer} is not allowed here: its certificate names {names:?}")]
    NotAllowed {
        /// The other side.
        peer: SocketAddr,
        /// The names in its certificate.
        names: Vec<String>,
    },
    /// A connecting peer would have been let in if there were not as many already as may be.
    #[error("{peer} not let in: {limit} hosts are connected, which is the limit max_connections")]
    Full {
        /// The other side.
        peer: SocketAddr,
        /// [`TransportLimits::max_connections`](crate::TransportLimits::max_connections).
        limit: usize,
    },
    /// The other side refuses this host.
    #[error("{peer} refuses this host: {reason}")]
    Rejected {
        /// The other side.
        peer: SocketAddr,
        /// The reason it gave.
        reason: String,
    },

    // The other side's doing.
    /// The other side closed the connection, or this side did.
    #[error("connection closed: {reason}")]
    Closed {
        /// The reason given by the side that closed.
        reason: String,
    },
    /// The other side's process was replaced by one that does not know this connection.
    #[error("{peer} has restarted: the connection is gone")]
    Restarted {
        /// The other side.
        peer: SocketAddr,
    },
    /// The other side gave the exchange up without finishing it; all whole frames it had sent
    /// came before this error.
    #[error("the other side gave up the exchange unfinished")]
    Abandoned,
    /// The other side reads no more of this exchange.
    #[error("the other side stopped reading: {reason}")]
    Stopped {
        /// Why, as far as it told.
        reason: &'static str,
    },
    /// A frame was begun and did not end in time.
    #[error("a frame did not end within {limit:?}: {got} bytes of it came")]
    FrameTimeout {
        /// Bytes of it that came.
        got: usize,
        /// [`TransportLimits::frame`](crate::TransportLimits::frame).
        limit: Duration,
    },
    /// The unfinished frames from all hosts are as many bytes as this host holds.
    #[error("the unfinished frames of all hosts are more than {limit} bytes")]
    TooMuch {
        /// [`TransportLimits::max_unfinished`](crate::TransportLimits::max_unfinished).
        limit: usize,
    },
    /// The stream ended inside of a frame.
    #[error("stream cut inside of a frame: {got} of {expected} bytes came")]
    Truncated {
        /// Bytes of the frame, or of its length prefix, that came.
        got: usize,
        /// Bytes that should have come.
        expected: usize,
    },
    /// The other side does not keep to QUIC or to this crate's protocol.
    #[error("protocol error with {peer}: {reason}")]
    Protocol {
        /// The other side.
        peer: SocketAddr,
        /// What it did.
        reason: String,
    },
}
