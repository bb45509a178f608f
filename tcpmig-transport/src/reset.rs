//! Connection ids and reset tokens that outlive the process.
//!
//! A process that restarts gets packets of connections it does not know. It answers with a reset,
//! which the other side believes only if the token in it comes from the same key as before. With a
//! key derived from the identity, peers learn of a restart within a round trip instead of after
//! the idle limit.

use std::net::SocketAddr;
use std::sync::Arc;

use quinn::crypto::{CryptoError, HmacKey};
use quinn::{ConnectionId, ConnectionIdGenerator, EndpointConfig};
use rustls::crypto::CryptoProvider;
use rustls::crypto::tls13::OkmBlock;

use crate::identity::{Identity, hkdf, provider};

/// Bytes of HMAC-SHA-256.
const TAG: usize = 32;
/// Bytes of a connection id.
const ID: usize = 8;

/// The settings of an endpoint at `local`.
///
/// The address is part of the key: another endpoint with this identity could otherwise be made
/// to reveal the tokens of connections that are alive here (RFC 9000, section 21.11).
pub(crate) fn endpoint_config(identity: &Identity, local: SocketAddr) -> EndpointConfig {
    let key = ResetKey(identity.derive(&format!("stateless reset {local}")));
    let mut config = EndpointConfig::new(Arc::new(key));
    config.cid_generator(|| Box::new(RandomIds(provider())));
    config
}

struct ResetKey(OkmBlock);

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        signature_out.copy_from_slice(hkdf().hmac_sign(&self.0, data).as_ref());
    }

    fn signature_len(&self) -> usize {
        TAG
    }

    /// Tokens are compared by the connection, never verified by the key.
    fn verify(&self, _data: &[u8], _signature: &[u8]) -> Result<(), CryptoError> {
        Err(CryptoError)
    }
}

/// Ids without a check value: quinn's own generator would drop a predecessor's ids unanswered.
struct RandomIds(Arc<CryptoProvider>);

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; ID];
        self.0
            .secure_random
            .fill(&mut id)
            .expect("getrandom(2) does not fail once the system is up");
        ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        ID
    }

    fn cid_lifetime(&self) -> Option<std::time::Duration> {
        None
    }
}
