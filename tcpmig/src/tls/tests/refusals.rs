//! What cannot go on is refused by its name, before anything is touched.

use std::sync::atomic::{AtomicU8, Ordering};

use rustls::ConnectionTrafficSecrets;
use rustls::Tls13CipherSuite;
use rustls::crypto::cipher::{
    AeadKey, Iv, MessageDecrypter, MessageEncrypter, Tls13AeadAlgorithm, UnsupportedOperationError,
};
use rustls::crypto::tls13::{Hkdf, HkdfExpander, OkmBlock, OutputLengthError};
use rustls::crypto::{CipherSuiteCommon, hmac};

use super::*;

#[test]
fn a_handshake_is_not_taken_apart() {
    let suite = aes();
    let session = Session::accept(&server(suite, &Identity::of(suite))).unwrap();
    assert!(matches!(session.into_state(), Err(NotCarried::Handshake)));
}

#[test]
fn a_session_that_failed_is_not_taken_apart() {
    let mut pair = Pair::of(aes());
    pair.peer_writes(10);
    pair.deliver_here(usize::MAX);
    *pair.arrived.back_mut().unwrap() ^= 1;
    pair.here.receive(&mut pair.arrived).unwrap_err();
    assert!(matches!(pair.here.into_state(), Err(NotCarried::Failed)));
}

#[test]
fn what_is_not_known_here_is_refused_by_name() {
    let mut pair = Pair::of(aes());
    let layer = pair.take();
    let other = suites().into_iter();
    let other = other.filter(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    let other = other.collect::<Vec<_>>();
    let tls = |suite| Tls::new(server(suite, &Identity::of(suite)));
    let refusal = |tls: &Tls, layer: &Layer| {
        let layers = [layer.clone()];
        tls.check(&mut LayerReader::new(&layers)).unwrap_err()
    };
    tls(aes())
        .check(&mut LayerReader::new(std::slice::from_ref(&layer)))
        .unwrap();

    let refused = refusal(&tls(other[0]), &layer);
    assert_eq!(refused.code, Code::Session);
    assert!(refused.reason.contains("0x1301"), "{refused}");
    let mut newer = layer.clone();
    newer.version = VERSION + 1;
    let refused = refusal(&tls(aes()), &newer);
    assert_eq!(refused.code, Code::Session);
    assert!(refused.reason.contains("version 2"), "{refused}");
    let refused = refusal(
        &tls(aes()),
        &Layer::new("tcpmig-http", 1, SecretBytes::new()),
    );
    assert_eq!(refused.code, Code::Session);
    assert!(refused.reason.contains(KIND), "{refused}");
    for len in 0..layer.payload.len() {
        let cut = Layer::new(KIND, VERSION, &layer.payload[..len]);
        assert_eq!(refusal(&tls_of(&pair.config), &cut).code, Code::Image);
    }
}

fn tls_of(config: &ServerConfig) -> Tls {
    Tls::new(config.clone())
}

/// Protects records as another one does, and keeps its keys.
struct Secretive(&'static dyn Tls13AeadAlgorithm);

impl Tls13AeadAlgorithm for Secretive {
    fn encrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageEncrypter> {
        self.0.encrypter(key, iv)
    }

    fn decrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageDecrypter> {
        self.0.decrypter(key, iv)
    }

    fn key_len(&self) -> usize {
        self.0.key_len()
    }

    fn extract_keys(
        &self,
        _: AeadKey,
        _: Iv,
    ) -> Result<ConnectionTrafficSecrets, UnsupportedOperationError> {
        Err(UnsupportedOperationError)
    }
}

/// A provider that does not give keys out is known before anything is touched, here and there.
#[test]
fn a_provider_that_keeps_its_keys_is_refused_by_name() {
    let SupportedCipherSuite::Tls13(suite) = aes() else {
        panic!("it is one of TLS 1.3");
    };
    let secretive = SupportedCipherSuite::Tls13(Box::leak(Box::new(Tls13CipherSuite {
        common: common(&suite.common),
        hkdf_provider: suite.hkdf_provider,
        aead_alg: Box::leak(Box::new(Secretive(suite.aead_alg))),
        quic: None,
    })));
    let mut pair = Pair::of(secretive);
    let refused = pair.here.check().unwrap_err().to_string();
    assert!(refused.contains("TLS13_AES_128_GCM_SHA256"), "{refused}");
    pair.here_writes(100);
    pair.deliver_to_peer(usize::MAX);
    assert_eq!(pair.read[PEER], 100, "it goes on where it is");

    let layers = [Pair::of(aes()).take()];
    let target = Tls::new(pair.config);
    let refused = target.check(&mut LayerReader::new(&layers)).unwrap_err();
    assert_eq!(refused.code, Code::Session);
    assert!(
        refused.reason.contains("TLS13_AES_128_GCM_SHA256"),
        "{refused}"
    );
}

/// Derives other secrets each time, as a version of rustls would that comes to them in another way than this module.
struct Unsteady(&'static dyn Hkdf);

struct UnsteadyExpander(Box<dyn HkdfExpander>);

impl HkdfExpander for UnsteadyExpander {
    fn expand_slice(&self, info: &[&[u8]], output: &mut [u8]) -> Result<(), OutputLengthError> {
        static COUNT: AtomicU8 = AtomicU8::new(0);
        self.0.expand_slice(info, output)?;
        output[0] ^= COUNT.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn expand_block(&self, info: &[&[u8]]) -> OkmBlock {
        self.0.expand_block(info)
    }

    fn hash_len(&self) -> usize {
        self.0.hash_len()
    }
}

impl Hkdf for Unsteady {
    fn extract_from_zero_ikm(&self, salt: Option<&[u8]>) -> Box<dyn HkdfExpander> {
        Box::new(UnsteadyExpander(self.0.extract_from_zero_ikm(salt)))
    }

    fn extract_from_secret(&self, salt: Option<&[u8]>, secret: &[u8]) -> Box<dyn HkdfExpander> {
        Box::new(UnsteadyExpander(self.0.extract_from_secret(salt, secret)))
    }

    fn expander_for_okm(&self, okm: &OkmBlock) -> Box<dyn HkdfExpander> {
        Box::new(UnsteadyExpander(self.0.expander_for_okm(okm)))
    }

    fn hmac_sign(&self, key: &OkmBlock, message: &[u8]) -> hmac::Tag {
        self.0.hmac_sign(key, message)
    }
}

#[test]
fn what_does_not_come_to_the_keys_of_a_session_is_known_before_it_comes() {
    let SupportedCipherSuite::Tls13(suite) = aes() else {
        panic!("it is one of TLS 1.3");
    };
    let other = Tls13CipherSuite {
        common: common(&suite.common),
        hkdf_provider: Box::leak(Box::new(Unsteady(suite.hkdf_provider))),
        aead_alg: suite.aead_alg,
        quic: None,
    };
    let other = SupportedCipherSuite::Tls13(Box::leak(Box::new(other)));
    let layers = [Pair::of(aes()).take()];
    let target = Tls::new(server(other, &Identity::of(other)));
    for _ in 0..2 {
        let refused = target.check(&mut LayerReader::new(&layers)).unwrap_err();
        assert_eq!(refused.code, Code::Session);
        assert!(
            refused.reason.contains("this version of rustls"),
            "{refused}"
        );
    }
}

fn common(common: &CipherSuiteCommon) -> CipherSuiteCommon {
    CipherSuiteCommon {
        suite: common.suite,
        hash_provider: common.hash_provider,
        confidentiality_limit: common.confidentiality_limit,
    }
}

/// What comes before the end of a handshake can come twice: no server here takes it.
#[test]
fn early_data_is_not_taken() {
    let mut server = server(aes(), &Identity::of(aes()));
    server.max_early_data_size = 1000;
    let mut client = client(aes());
    client.enable_early_data = true;
    let client = Arc::new(client);
    for visit in 0..2 {
        let pair = Pair::with(server.clone(), client.clone());
        let resumed = pair.peer.handshake_kind() == Some(HandshakeKind::Resumed);
        assert_eq!(resumed, visit > 0);
        assert!(!pair.peer.is_early_data_accepted());
        pair.end();
    }
}
