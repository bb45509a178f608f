//! A provider of cryptography that puts carried secrets where a handshake derives its own.
//!
//! rustls makes a connection by a handshake and in no other way. So a session goes on in a connection that has made one in
//! memory, with a client of this process, in which nothing is secret: the key exchange, the signatures and the protection of
//! records do nothing. At the one place where TLS derives the secrets of the traffic, the provider answers with the carried ones:
//! HKDF-Expand-Label of `c ap traffic`, `s ap traffic` and `exp master` in TLS 1.3, the PRF of `key expansion` in TLS 1.2. From then on the
//! connection's keys are those of the session, and only the numbers of its records have to be shifted, which is done
//! where they are protected. What it becomes is an ordinary connection of rustls, which does all the rest itself.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::crypto::cipher::{
    AeadKey, InboundOpaqueMessage, InboundPlainMessage, Iv, KeyBlockShape, MessageDecrypter,
    MessageEncrypter, OutboundChunks, OutboundOpaqueMessage, OutboundPlainMessage, PrefixedPayload,
    Tls12AeadAlgorithm, Tls13AeadAlgorithm, UnsupportedOperationError,
};
use rustls::crypto::tls12::Prf;
use rustls::crypto::tls13::{Hkdf, HkdfExpander, OkmBlock, OutputLengthError};
use rustls::crypto::{ActiveKeyExchange, CipherSuiteCommon, hmac};
use rustls::{
    ConnectionTrafficSecrets, Error, SupportedCipherSuite, Tls12CipherSuite, Tls13CipherSuite,
};
use tcpmig_format::SecretBytes;

/// What a handshake in memory is to end with.
pub(super) struct Graft {
    pub(super) secrets: Secrets,
    /// The key that follows from them for what the connection that goes on writes, and the number of the session's record
    /// of which that thinks that it is 0.
    pub(super) own: (SecretBytes, u64),
    /// The same for what it reads.
    pub(super) other: (SecretBytes, u64),
    pub(super) switches: Arc<Switches>,
}

pub(super) enum Secrets {
    Tls13 {
        client: SecretBytes,
        server: SecretBytes,
        exporter: SecretBytes,
    },
    /// The key block (RFC 5246, section 6.3).
    Tls12(SecretBytes),
}

/// What a connection and the protection of its records tell each other.
#[derive(Default)]
pub(super) struct Switches {
    /// The handshake in memory is over.
    live: AtomicBool,
    /// So many records were protected with one key that another one is due.
    worn: AtomicBool,
    /// What protects records was made with the session's keys.
    encrypts: AtomicBool,
    decrypts: AtomicBool,
}

impl Switches {
    fn is_live(&self) -> bool {
        self.live.load(Ordering::Acquire)
    }

    /// From now on records are protected. Whether they can be: another version of rustls may come to its keys in another way.
    pub(super) fn go_live(&self) -> bool {
        self.live.store(true, Ordering::Release);
        self.encrypts.load(Ordering::Relaxed) && self.decrypts.load(Ordering::Relaxed)
    }

    /// Whether another key is due; asking takes it back.
    pub(super) fn take_worn(&self) -> bool {
        // Most are not, and a plain load costs nothing.
        self.worn.load(Ordering::Relaxed) && self.worn.swap(false, Ordering::Relaxed)
    }
}

thread_local! {
    /// That of the handshake in memory which this thread makes.
    static GRAFT: RefCell<Option<Graft>> = const { RefCell::new(None) };
}

/// Makes a handshake in memory, with the suite of [`grafted`], that ends with this.
pub(super) fn with<T>(graft: Graft, handshake: impl FnOnce() -> T) -> T {
    struct Taken;
    impl Drop for Taken {
        fn drop(&mut self) {
            GRAFT.take();
        }
    }
    GRAFT.set(Some(graft));
    let _taken = Taken;
    handshake()
}

fn with_graft<T>(uses: impl FnOnce(&Graft) -> Option<T>) -> Option<T> {
    GRAFT.with_borrow(|graft| uses(graft.as_ref()?))
}

/// The label in the information of HKDF-Expand-Label (RFC 8446, section 7.1).
fn label(info: &[u8]) -> &[u8] {
    match info {
        [_, _, len, rest @ ..] => rest.get(..usize::from(*len)).unwrap_or_default(),
        _ => &[],
    }
}

struct GraftedHkdf(&'static dyn Hkdf);

struct GraftedExpander(Box<dyn HkdfExpander>);

impl HkdfExpander for GraftedExpander {
    fn expand_slice(&self, info: &[&[u8]], output: &mut [u8]) -> Result<(), OutputLengthError> {
        self.0.expand_slice(info, output)
    }

    fn expand_block(&self, info: &[&[u8]]) -> OkmBlock {
        let carried = with_graft(|graft| {
            let Secrets::Tls13 {
                client,
                server,
                exporter,
            } = &graft.secrets
            else {
                return None;
            };
            let secret = match label(&info.concat()) {
                b"tls13 c ap traffic" => client,
                b"tls13 s ap traffic" => server,
                b"tls13 exp master" if !exporter.is_empty() => exporter,
                _ => return None,
            };
            Some(OkmBlock::new(secret))
        });
        carried.unwrap_or_else(|| self.0.expand_block(info))
    }

    fn hash_len(&self) -> usize {
        self.0.hash_len()
    }
}

impl Hkdf for GraftedHkdf {
    fn extract_from_zero_ikm(&self, salt: Option<&[u8]>) -> Box<dyn HkdfExpander> {
        Box::new(GraftedExpander(self.0.extract_from_zero_ikm(salt)))
    }

    fn extract_from_secret(&self, salt: Option<&[u8]>, secret: &[u8]) -> Box<dyn HkdfExpander> {
        Box::new(GraftedExpander(self.0.extract_from_secret(salt, secret)))
    }

    fn expander_for_okm(&self, okm: &OkmBlock) -> Box<dyn HkdfExpander> {
        Box::new(GraftedExpander(self.0.expander_for_okm(okm)))
    }

    fn hmac_sign(&self, key: &OkmBlock, message: &[u8]) -> hmac::Tag {
        self.0.hmac_sign(key, message)
    }

    fn fips(&self) -> bool {
        self.0.fips()
    }
}

struct GraftedPrf(&'static dyn Prf);

impl Prf for GraftedPrf {
    fn for_key_exchange(
        &self,
        output: &mut [u8; 48],
        exchange: Box<dyn ActiveKeyExchange>,
        peer_key: &[u8],
        label: &[u8],
        seed: &[u8],
    ) -> Result<(), Error> {
        self.0
            .for_key_exchange(output, exchange, peer_key, label, seed)
    }

    fn for_secret(&self, output: &mut [u8], secret: &[u8], label: &[u8], seed: &[u8]) {
        let carried = with_graft(|graft| match &graft.secrets {
            Secrets::Tls12(block) if label == b"key expansion" && block.len() == output.len() => {
                output.copy_from_slice(block);
                Some(())
            }
            _ => None,
        });
        if carried.is_none() {
            self.0.for_secret(output, secret, label, seed);
        }
    }

    fn fips(&self) -> bool {
        self.0.fips()
    }
}

/// Protects records, shifted: not at all before the connection is live.
struct Encrypter {
    inner: Box<dyn MessageEncrypter>,
    /// `None` for another key than the session's.
    first: Option<u64>,
    /// The number of the record from which on another key is due.
    worn_at: u64,
    is_primed: bool,
    switches: Arc<Switches>,
}

/// So many records before a key must not be used any longer, another one is due: more than one write makes.
const MARGIN: u64 = 1 << 16;

impl MessageEncrypter for Encrypter {
    fn encrypt(
        &mut self,
        message: OutboundPlainMessage<'_>,
        number: u64,
    ) -> Result<OutboundOpaqueMessage, Error> {
        if !self.switches.is_live() {
            let mut payload = PrefixedPayload::with_capacity(message.payload.len());
            payload.extend_from_chunks(&message.payload);
            let (kind, version) = (message.typ, message.version);
            return Ok(OutboundOpaqueMessage::new(kind, version, payload));
        }
        let first = self.first.ok_or(Error::EncryptError)?;
        if !self.is_primed {
            self.is_primed = true;
            if first > 0 {
                // AWS-LC takes the nonce of the first record that it sees for that of number 0, and refuses
                // smaller ones than the last. Nobody gets this record.
                let empty = OutboundPlainMessage {
                    typ: message.typ,
                    version: message.version,
                    payload: OutboundChunks::new_empty(),
                };
                drop(self.inner.encrypt(empty, 0)?);
            }
        }
        let number = first.wrapping_add(number);
        if number >= self.worn_at {
            self.switches.worn.store(true, Ordering::Relaxed);
        }
        self.inner.encrypt(message, number)
    }

    fn encrypted_payload_len(&self, len: usize) -> usize {
        self.inner.encrypted_payload_len(len)
    }
}

struct Decrypter {
    inner: Box<dyn MessageDecrypter>,
    first: Option<u64>,
    switches: Arc<Switches>,
}

impl MessageDecrypter for Decrypter {
    fn decrypt<'a>(
        &mut self,
        message: InboundOpaqueMessage<'a>,
        number: u64,
    ) -> Result<InboundPlainMessage<'a>, Error> {
        if !self.switches.is_live() {
            return Ok(message.into_plain_message());
        }
        let first = self.first.ok_or(Error::DecryptError)?;
        self.inner.decrypt(message, first.wrapping_add(number))
    }
}

/// What protects the records of the end that goes on.
fn encrypter(
    key: &[u8],
    limit: u64,
    inner: Box<dyn MessageEncrypter>,
) -> Box<dyn MessageEncrypter> {
    let parts = with_graft(|graft| {
        let first = (graft.own.0[..] == *key).then_some(graft.own.1);
        let encrypts = &graft.switches.encrypts;
        encrypts.fetch_or(first.is_some(), Ordering::Relaxed);
        Some((first, graft.switches.clone()))
    });
    // Keys that a later key update makes have nothing to shift.
    let Some((first, switches)) = parts else {
        return inner;
    };
    Box::new(Encrypter {
        inner,
        first,
        worn_at: limit.saturating_sub(MARGIN),
        is_primed: false,
        switches,
    })
}

fn decrypter(key: &[u8], inner: Box<dyn MessageDecrypter>) -> Box<dyn MessageDecrypter> {
    let parts = with_graft(|graft| {
        let first = (graft.other.0[..] == *key).then_some(graft.other.1);
        let decrypts = &graft.switches.decrypts;
        decrypts.fetch_or(first.is_some(), Ordering::Relaxed);
        Some((first, graft.switches.clone()))
    });
    let Some((first, switches)) = parts else {
        return inner;
    };
    Box::new(Decrypter {
        inner,
        first,
        switches,
    })
}

struct Grafted13 {
    inner: &'static dyn Tls13AeadAlgorithm,
    limit: u64,
}

impl Tls13AeadAlgorithm for Grafted13 {
    fn encrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageEncrypter> {
        let bytes = SecretBytes::from(key.as_ref());
        encrypter(&bytes, self.limit, self.inner.encrypter(key, iv))
    }

    fn decrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageDecrypter> {
        let bytes = SecretBytes::from(key.as_ref());
        decrypter(&bytes, self.inner.decrypter(key, iv))
    }

    fn key_len(&self) -> usize {
        self.inner.key_len()
    }

    fn extract_keys(
        &self,
        key: AeadKey,
        iv: Iv,
    ) -> Result<ConnectionTrafficSecrets, UnsupportedOperationError> {
        self.inner.extract_keys(key, iv)
    }

    fn fips(&self) -> bool {
        self.inner.fips()
    }
}

struct Grafted12 {
    inner: &'static dyn Tls12AeadAlgorithm,
    limit: u64,
}

impl Tls12AeadAlgorithm for Grafted12 {
    fn encrypter(&self, key: AeadKey, iv: &[u8], extra: &[u8]) -> Box<dyn MessageEncrypter> {
        let bytes = SecretBytes::from(key.as_ref());
        encrypter(&bytes, self.limit, self.inner.encrypter(key, iv, extra))
    }

    fn decrypter(&self, key: AeadKey, iv: &[u8]) -> Box<dyn MessageDecrypter> {
        let bytes = SecretBytes::from(key.as_ref());
        decrypter(&bytes, self.inner.decrypter(key, iv))
    }

    fn key_block_shape(&self) -> KeyBlockShape {
        self.inner.key_block_shape()
    }

    fn extract_keys(
        &self,
        key: AeadKey,
        iv: &[u8],
        explicit: &[u8],
    ) -> Result<ConnectionTrafficSecrets, UnsupportedOperationError> {
        self.inner.extract_keys(key, iv, explicit)
    }

    fn fips(&self) -> bool {
        self.inner.fips()
    }
}

fn leak<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

fn graft(suite: SupportedCipherSuite) -> SupportedCipherSuite {
    let common = |common: &CipherSuiteCommon| CipherSuiteCommon {
        suite: common.suite,
        hash_provider: common.hash_provider,
        confidentiality_limit: common.confidentiality_limit,
    };
    match suite {
        SupportedCipherSuite::Tls13(suite) => SupportedCipherSuite::Tls13(leak(Tls13CipherSuite {
            common: common(&suite.common),
            hkdf_provider: leak(GraftedHkdf(suite.hkdf_provider)),
            aead_alg: leak(Grafted13 {
                inner: suite.aead_alg,
                limit: suite.common.confidentiality_limit,
            }),
            quic: None,
        })),
        SupportedCipherSuite::Tls12(suite) => SupportedCipherSuite::Tls12(leak(Tls12CipherSuite {
            common: common(&suite.common),
            prf_provider: leak(GraftedPrf(suite.prf_provider)),
            kx: suite.kx,
            sign: suite.sign,
            aead_alg: leak(Grafted12 {
                inner: suite.aead_alg,
                limit: suite.common.confidentiality_limit,
            }),
        })),
    }
}

/// Where a suite is, which is for ever.
pub(super) fn address(suite: SupportedCipherSuite) -> usize {
    match suite {
        SupportedCipherSuite::Tls13(suite) => std::ptr::from_ref(suite) as usize,
        SupportedCipherSuite::Tls12(suite) => std::ptr::from_ref(suite) as usize,
    }
}

/// The suite, in a form that a [`Graft`] reaches. rustls wants suites that live for ever, so each is made once.
pub(super) fn grafted(suite: SupportedCipherSuite) -> SupportedCipherSuite {
    static MADE: Mutex<Option<HashMap<usize, SupportedCipherSuite>>> = Mutex::new(None);
    // A panic elsewhere leaves whole values only.
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    *made
        .get_or_insert_default()
        .entry(address(suite))
        .or_insert_with(|| graft(suite))
}
