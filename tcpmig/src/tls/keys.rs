//! The secrets of one connection, as TLS derives them and as they are carried.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls::crypto::tls13::{HkdfExpander, OkmBlock};
use rustls::{ConnectionTrafficSecrets, KeyLog, Tls13CipherSuite};
use tcpmig_format::SecretBytes;

/// Every initialization vector of TLS 1.3, and of the suites of TLS 1.2 that rustls has, in bytes.
pub(super) const IV: usize = 12;

/// One direction of a connection: the secret in use, and how many records were protected with it.
#[derive(Clone, Default)]
pub(super) struct Direction {
    /// The traffic secret of TLS 1.3, from which later ones follow; of TLS 1.2 the key and the initialization vector.
    pub(super) secret: SecretBytes,
    /// The number of the next record.
    pub(super) next: u64,
}

/// What rustls does not give back later: the secrets with which a connection began here.
#[derive(Clone, Default)]
pub(super) struct Begun {
    /// From the client to the server.
    pub(super) client: Direction,
    /// From the server to the client.
    pub(super) server: Direction,
    pub(super) exporter: SecretBytes,
}

/// Takes the secrets of one connection from its handshake.
pub(super) struct Keys {
    begun: Mutex<Begun>,
    /// The application's own, which gets everything as well.
    log: Arc<dyn KeyLog>,
}

impl Keys {
    pub(super) fn new(begun: Begun, log: Arc<dyn KeyLog>) -> Arc<Self> {
        Arc::new(Self {
            begun: Mutex::new(begun),
            log,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Begun> {
        // A panic elsewhere leaves whole values only.
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn begun(&self) -> Begun {
        self.lock().clone()
    }
}

impl KeyLog for Keys {
    fn log(&self, label: &str, client_random: &[u8], secret: &[u8]) {
        let mut begun = self.lock();
        match label {
            "CLIENT_TRAFFIC_SECRET_0" => begun.client.secret = secret.into(),
            "SERVER_TRAFFIC_SECRET_0" => begun.server.secret = secret.into(),
            "EXPORTER_SECRET" => begun.exporter = secret.into(),
            _ => {}
        }
        drop(begun);
        if self.log.will_log(label) {
            self.log.log(label, client_random, secret);
        }
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").finish_non_exhaustive()
    }
}

/// HKDF-Expand-Label with an empty context (RFC 8446, section 7.1).
fn expand(from: &dyn HkdfExpander, label: &str, len: usize) -> SecretBytes {
    const PREFIX: &[u8] = b"tls13 ";
    // INVARIANT: hashes, keys and the labels used here are shorter than 200 bytes.
    let lens = [0, len as u8, (PREFIX.len() + label.len()) as u8];
    let mut output = vec![0; len];
    let expanded = from.expand_slice(&[&lens, PREFIX, label.as_bytes(), &[0]], &mut output);
    // INVARIANT: an output can be 255 times as long as the hash.
    expanded.expect("no key is as long as that");
    output.into()
}

/// The key of TLS 1.3 that follows from a traffic secret.
pub(super) fn key(suite: &Tls13CipherSuite, secret: &[u8]) -> SecretBytes {
    let from = suite.hkdf_provider.expander_for_okm(&OkmBlock::new(secret));
    expand(&*from, "key", suite.aead_alg.key_len())
}

/// The traffic secret that follows a key update.
pub(super) fn next_secret(suite: &Tls13CipherSuite, secret: &[u8]) -> SecretBytes {
    let from = suite.hkdf_provider.expander_for_okm(&OkmBlock::new(secret));
    expand(&*from, "traffic upd", secret.len())
}

/// More key updates than any connection has: they come with the key's limit, or as often as the peer likes.
const MOST_UPDATES: usize = 1 << 20;

/// The direction of TLS 1.3 whose key this is, after any number of key updates since it began.
pub(super) fn follow(
    suite: &Tls13CipherSuite,
    begun: &Direction,
    key_in_use: &[u8],
    count: u64,
) -> Option<Direction> {
    let mut secret = begun.secret.clone();
    for updates in 0..MOST_UPDATES {
        if key(suite, &secret)[..] == *key_in_use {
            // Each secret counts its own records.
            let before = if updates == 0 { begun.next } else { 0 };
            let next = before + count;
            return Some(Direction { secret, next });
        }
        secret = next_secret(suite, &secret);
    }
    None
}

/// The key and the initialization vector, of suites that have them.
pub(super) fn key_and_iv(secrets: &ConnectionTrafficSecrets) -> Option<(&[u8], &[u8])> {
    match secrets {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv }
        | ConnectionTrafficSecrets::Aes256Gcm { key, iv }
        | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => {
            Some((key.as_ref(), iv.as_ref()))
        }
        _ => None,
    }
}
