//! A client of rustls, which knows of nothing, keeps its session while that moves again and again.

mod pieces;
mod refusals;
mod relied_on;
mod wiped;

use std::collections::VecDeque;
use std::io::{IoSlice, Read, Write};
use std::ops::DerefMut;
use std::sync::Arc;

use rustls::client::ClientConnectionData;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ServerConnectionData, WebPkiClientVerifier};
use rustls::{
    CipherSuite, ClientConfig, ClientConnection, ConnectionCommon, DigitallySignedStruct, Error,
    HandshakeKind, RootCertStore, ServerConfig, ServerConnection, SignatureScheme,
    SupportedCipherSuite,
};
use tcpmig_format::{Layer, LayerReader, SecretBytes};
use tcpmig_transport::keys::Authority;

use super::layer::State;
use super::rebuild::Terms;
use super::session::{NotCarried, Session};
use super::side::Side;
use super::{KIND, Tls, TlsClient, VERSION};
use crate::handover::Code;
use crate::session::Carriers;

/// Takes every certificate: whom it talks to is not what is tested.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = &self.0.signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}

/// A chain and its key, in PEM.
struct Identity(String, String);

impl Identity {
    fn ecdsa() -> Self {
        let issued = Authority::create("tests").unwrap().issue("server.example");
        let issued = issued.unwrap();
        Self(issued.cert_pem.clone(), issued.key_pem.clone())
    }

    /// ring makes no RSA keys.
    fn rsa() -> Self {
        let mut openssl = std::process::Command::new("openssl");
        openssl.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-batch"]);
        openssl.args(["-subj", "/CN=server.example", "-keyout", "-", "-out", "-"]);
        let output = openssl.output().expect("openssl is installed");
        assert!(output.status.success());
        let both = String::from_utf8(output.stdout).unwrap();
        Self(both.clone(), both)
    }

    fn of(suite: SupportedCipherSuite) -> Self {
        let name = format!("{:?}", suite.suite());
        if name.contains("_RSA_") {
            Self::rsa()
        } else {
            Self::ecdsa()
        }
    }

    fn parse(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let chain = CertificateDer::pem_slice_iter(self.0.as_bytes()).collect::<Result<_, _>>();
        let key = PrivateKeyDer::from_pem_slice(self.1.as_bytes());
        (chain.unwrap(), key.unwrap())
    }
}

fn only(provider: &CryptoProvider, suite: SupportedCipherSuite) -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![suite],
        ..provider.clone()
    })
}

fn server(suite: SupportedCipherSuite, identity: &Identity) -> ServerConfig {
    let provider = only(&ring::default_provider(), suite);
    let builder = ServerConfig::builder_with_provider(provider);
    let builder = builder.with_protocol_versions(&[suite.version()]).unwrap();
    let (chain, key) = identity.parse();
    let builder = builder.with_no_client_auth();
    let mut config = builder.with_single_cert(chain, key).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config
}

fn client(suite: SupportedCipherSuite) -> ClientConfig {
    let provider = only(&ring::default_provider(), suite);
    let builder = ClientConfig::builder_with_provider(provider.clone());
    let builder = builder.with_protocol_versions(&[suite.version()]).unwrap();
    let builder = builder.dangerous();
    let anybody = Arc::new(Anybody(provider));
    let builder = builder.with_custom_certificate_verifier(anybody);
    let mut config = builder.with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config
}

/// The cipher suites of both providers that come with rustls.
fn suites() -> Vec<SupportedCipherSuite> {
    let providers = [ring::default_provider(), aws_lc_rs::default_provider()];
    let suites = providers.into_iter().flat_map(|it| it.cipher_suites);
    suites.collect()
}

/// A small generator of numbers, the same ones every time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        ((self.0 >> 33) as usize) % limit
    }
}

/// The bytes of a stream, by their place in it.
fn numbered(from: usize, len: usize) -> Vec<u8> {
    (from..from + len).map(|at| (at % 251) as u8).collect()
}

/// An end of a session that moves, and how the other one is made, which knows of nothing.
trait End: Side + Send + 'static {
    type Config: Clone;
    type Peer: DerefMut<Target = ConnectionCommon<Self::PeerData>>;
    type PeerData;

    fn config(suite: SupportedCipherSuite, identity: &Identity) -> Self::Config;
    /// Both ends, before their handshake.
    fn pair(config: &Self::Config, identity: &Identity) -> (Session<Self>, Self::Peer);
    fn begin(config: &Self::Config) -> Session<Self>;
    fn terms(config: &Self::Config) -> Terms<'_>;
}

fn name() -> ServerName<'static> {
    ServerName::try_from("server.example").unwrap()
}

/// The one suite of a provider.
fn suite_of(provider: &CryptoProvider) -> SupportedCipherSuite {
    provider.cipher_suites[0]
}

impl End for ServerConnection {
    type Config = ServerConfig;
    type Peer = ClientConnection;
    type PeerData = ClientConnectionData;

    fn config(suite: SupportedCipherSuite, identity: &Identity) -> ServerConfig {
        server(suite, identity)
    }

    fn pair(config: &ServerConfig, _: &Identity) -> (Session<Self>, ClientConnection) {
        let client = client(suite_of(config.crypto_provider()));
        let client = ClientConnection::new(client.into(), name()).unwrap();
        (Self::begin(config), client)
    }

    fn begin(config: &ServerConfig) -> Session<Self> {
        Session::accept(config).unwrap()
    }

    fn terms(config: &ServerConfig) -> Terms<'_> {
        config.into()
    }
}

impl End for ClientConnection {
    type Config = ClientConfig;
    type Peer = ServerConnection;
    type PeerData = ServerConnectionData;

    fn config(suite: SupportedCipherSuite, _: &Identity) -> ClientConfig {
        client(suite)
    }

    fn pair(config: &ClientConfig, identity: &Identity) -> (Session<Self>, ServerConnection) {
        let server = server(suite_of(config.crypto_provider()), identity);
        let server = ServerConnection::new(server.into()).unwrap();
        (Self::begin(config), server)
    }

    fn begin(config: &ClientConfig) -> Session<Self> {
        Session::connect(config, name()).unwrap()
    }

    fn terms(config: &ClientConfig) -> Terms<'_> {
        config.into()
    }
}

/// The end of a session that moves and its peer, and what is under way between them.
struct Pair<C: End = ServerConnection> {
    config: C::Config,
    peer: C::Peer,
    here: Session<C>,
    to_here: Vec<u8>,
    /// What TCP has received here.
    arrived: VecDeque<u8>,
    to_peer: Vec<u8>,
    /// How much each has written, how much each has read.
    written: [usize; 2],
    read: [usize; 2],
}

const PEER: usize = 0;
const HERE: usize = 1;

impl Pair {
    fn new(config: ServerConfig, client: ClientConfig) -> Self {
        Self::with(config, Arc::new(client))
    }

    fn with(config: ServerConfig, client: Arc<ClientConfig>) -> Self {
        let client = ClientConnection::new(client, name()).unwrap();
        let here = Session::accept(&config).unwrap();
        Self::shake_hands(config, here, client)
    }

    fn of(suite: SupportedCipherSuite) -> Self {
        Self::new(server(suite, &Identity::of(suite)), client(suite))
    }
}

impl<C: End> Pair<C> {
    fn shake_hands(config: C::Config, here: Session<C>, peer: C::Peer) -> Self {
        let mut pair = Self {
            config,
            peer,
            here,
            to_here: Vec::new(),
            arrived: VecDeque::new(),
            to_peer: Vec::new(),
            written: [0; 2],
            read: [0; 2],
        };
        while pair.peer.is_handshaking() || pair.here.is_handshaking() {
            pair.deliver_here(usize::MAX);
            while !pair.arrived.is_empty() {
                pair.here.receive(&mut pair.arrived).unwrap();
            }
            pair.deliver_to_peer(usize::MAX);
        }
        pair
    }

    /// The peer's records, as many bytes of them as that, reach this end.
    fn deliver_here(&mut self, most: usize) {
        while self.peer.wants_write() {
            self.peer.write_tls(&mut self.to_here).unwrap();
        }
        let len = most.min(self.to_here.len());
        self.arrived.extend(self.to_here.drain(..len));
    }

    fn deliver_to_peer(&mut self, most: usize) {
        while self.here.wants_write() {
            self.here.write_records(&mut self.to_peer).unwrap();
        }
        let len = most.min(self.to_peer.len());
        let bytes: Vec<u8> = self.to_peer.drain(..len).collect();
        let mut bytes = &bytes[..];
        while !bytes.is_empty() {
            self.peer.read_tls(&mut bytes).unwrap();
            self.peer
                .process_new_packets()
                .expect("the peer takes every record");
            self.peer_reads();
        }
    }

    fn peer_reads(&mut self) {
        let mut got = Vec::new();
        // There may be no more for now.
        let _ = self.peer.reader().read_to_end(&mut got);
        assert!(
            got == numbered(self.read[PEER], got.len()),
            "the peer's bytes"
        );
        self.read[PEER] += got.len();
    }

    /// Whether the peer has ended its side.
    fn here_reads(&mut self, most: usize) -> bool {
        let mut got = Vec::new();
        let read = loop {
            let mut into = bytes::BufMut::limit(&mut got, most);
            match self.here.read(&mut into).unwrap() {
                None if !self.arrived.is_empty() => {
                    self.here.receive(&mut self.arrived).unwrap();
                }
                read => break read,
            }
        };
        assert!(
            got == numbered(self.read[HERE], got.len()),
            "this end's bytes"
        );
        self.read[HERE] += got.len();
        most > 0 && read == Some(0)
    }

    fn peer_writes(&mut self, len: usize) {
        let bytes = numbered(self.written[PEER], len);
        self.written[PEER] += self.peer.writer().write(&bytes).unwrap();
    }

    fn here_writes(&mut self, len: usize) {
        let bytes = numbered(self.written[HERE], len);
        self.written[HERE] += self.here.write(&[IoSlice::new(&bytes)]).unwrap();
    }

    /// What the session is; it can be rebuilt, once.
    fn take(&mut self) -> Layer {
        let next = C::begin(&self.config);
        let here = std::mem::replace(&mut self.here, next);
        here.into_state().unwrap().to_layer(C::KIND)
    }

    fn put(&mut self, layer: Layer) {
        let layers = [layer];
        let mut layers = LayerReader::new(&layers);
        let state = State::read(&mut layers, C::KIND).unwrap();
        layers.finish().unwrap();
        self.here = Session::resume(state, SecretBytes::new(), &C::terms(&self.config)).unwrap();
    }

    fn moves(&mut self) {
        let layer = self.take();
        self.put(layer);
    }

    /// Everything arrives, and both end.
    fn end(mut self) {
        self.peer.send_close_notify();
        self.deliver_here(usize::MAX);
        while !self.here_reads(1000) {}
        // An end that was seen is carried, too.
        self.moves();
        assert!(self.here_reads(1000));
        self.here_writes(100);
        self.here.close();
        self.moves();
        self.deliver_to_peer(usize::MAX);
        let Self { written, read, .. } = self;
        assert_eq!(read, [written[HERE], written[PEER]]);
        // A clean end.
        assert_eq!(self.peer.reader().read(&mut [0]).unwrap(), 0);
    }
}

/// Between two hosts with the same suite, each of its own provider.
fn play<C: End>(
    suite: SupportedCipherSuite,
    other: SupportedCipherSuite,
    seed: u64,
    steps: usize,
) -> usize {
    let identity = Identity::of(suite);
    let config = C::config(suite, &identity);
    let (here, peer) = C::pair(&config, &identity);
    let mut pair = Pair::<C>::shake_hands(config, here, peer);
    let mut other = C::config(other, &identity);
    let is_13 = matches!(suite, SupportedCipherSuite::Tls13(_));
    let mut dice = Dice(seed);
    let mut moves = 0;
    for _ in 0..steps {
        // Few bytes are cut in more places, many are more than a record.
        let most = [3, 40, 1000, 40_000][dice.below(4)];
        let len = dice.below(most) + 1;
        match dice.below(10) {
            0 => pair.peer_writes(len),
            1 => pair.here_writes(len),
            2 | 3 => pair.deliver_here(len),
            4 | 5 => pair.deliver_to_peer(len),
            6 => drop(pair.here_reads(len)),
            7 if is_13 => pair.peer.refresh_traffic_keys().unwrap(),
            8 if is_13 => pair.here.refresh(),
            _ => {
                if dice.below(2) == 0 {
                    std::mem::swap(&mut pair.config, &mut other);
                }
                pair.moves();
                moves += 1;
            }
        }
    }
    pair.end();
    moves
}

#[test]
fn sessions_of_every_suite_move_at_any_time() {
    every_suite::<ServerConnection>(4);
}

#[test]
fn sessions_of_clients_move_as_well() {
    // Most of it is the same code.
    every_suite::<ClientConnection>(2);
}

fn every_suite<C: End>(seeds: u64) {
    let all = suites();
    assert_eq!(all.len(), 18);
    let halves = all.split_at(9);
    for (from, to) in [halves, (halves.1, halves.0)] {
        for &suite in from {
            let is_same = |other: &&SupportedCipherSuite| other.suite() == suite.suite();
            let other = *to.iter().find(is_same).unwrap();
            let moves: usize = (1..=seeds)
                .map(|seed| play::<C>(suite, other, seed, 400))
                .sum();
            assert!(
                moves > 25 * seeds as usize,
                "{:?} moved {moves} times",
                suite.suite()
            );
        }
    }
}

fn aes() -> SupportedCipherSuite {
    let suites = suites();
    let suite = suites
        .into_iter()
        .find(|s| s.suite() == CipherSuite::TLS13_AES_128_GCM_SHA256);
    suite.unwrap()
}

#[test]
fn what_was_negotiated_is_the_same() {
    for suite in suites() {
        negotiated(suite);
    }
}

/// Of a session whose client has a certificate.
fn negotiated(suite: SupportedCipherSuite) {
    let authority = Authority::create("clients").unwrap();
    let issued = authority.issue("client.example").unwrap();
    let (chain, key) = Identity(issued.cert_pem.clone(), issued.key_pem.clone()).parse();
    let mut roots = RootCertStore::empty();
    let root = CertificateDer::from_pem_slice(authority.ca_pem().as_bytes()).unwrap();
    roots.add(root).unwrap();
    let provider = only(&ring::default_provider(), suite);
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone());
    let (server_chain, server_key) = Identity::of(suite).parse();
    let builder = ServerConfig::builder_with_provider(provider.clone());
    let builder = builder
        .with_protocol_versions(&[suite.version()])
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap());
    let mut server = builder.with_single_cert(server_chain, server_key).unwrap();
    server.alpn_protocols = vec![b"http/1.1".to_vec()];
    let builder = ClientConfig::builder_with_provider(provider.clone());
    let builder = builder.with_protocol_versions(&[suite.version()]).unwrap();
    let builder = builder.dangerous();
    let builder = builder.with_custom_certificate_verifier(Arc::new(Anybody(provider)));
    let mut client = builder.with_client_auth_cert(chain.clone(), key).unwrap();
    client.alpn_protocols = vec![b"http/1.1".to_vec()];

    let mut pair = Pair::new(server, client);
    for _ in 0..3 {
        let tls = pair.here.tls();
        assert_eq!(tls.server_name(), Some("server.example"));
        assert_eq!(tls.alpn_protocol(), Some(&b"http/1.1"[..]));
        assert_eq!(tls.peer_certificates(), Some(&chain[..]));
        if let SupportedCipherSuite::Tls13(_) = suite {
            let here = tls.export_keying_material([0; 32], b"label", Some(b"context"));
            let there = pair
                .peer
                .export_keying_material([0; 32], b"label", Some(b"context"));
            assert_eq!(here.unwrap(), there.unwrap());
        }
        pair.moves();
        pair.here_writes(100);
        pair.peer_writes(100);
        pair.deliver_to_peer(usize::MAX);
        pair.deliver_here(usize::MAX);
        pair.here_reads(100);
    }
    pair.end();
}

/// That of a proxy's connection to its backend.
#[test]
fn a_client_knows_what_was_negotiated() {
    for suite in suites() {
        let identity = Identity::of(suite);
        let config = client(suite);
        let (here, peer) = ClientConnection::pair(&config, &identity);
        let mut pair = Pair::<ClientConnection>::shake_hands(config, here, peer);
        for _ in 0..3 {
            let known = pair.here.negotiated().unwrap();
            assert_eq!(known.version(), suite.version().version);
            assert_eq!(known.cipher_suite(), suite.suite());
            assert_eq!(known.server_name(), Some("server.example"));
            assert_eq!(known.alpn(), Some(&b"http/1.1"[..]));
            assert_eq!(known.peer_certificates(), identity.parse().0);
            let layers = [pair.take()];
            let check = TlsClient::new(pair.config.clone()).check(&mut LayerReader::new(&layers));
            assert_eq!(format!("{:?}", check.unwrap()), format!("{known:?}"));
            // A server does not go on with it.
            let server = Tls::new(server(suite, &identity));
            let refused = server.check(&mut LayerReader::new(&layers)).unwrap_err();
            assert_eq!(refused.code, Code::Session);
            let [layer] = layers;
            pair.put(layer);
        }
        pair.end();
    }
}

/// A client that comes back has a session by a ticket, or by its number.
#[test]
fn sessions_that_were_resumed_move() {
    for suite in suites() {
        let server = server(suite, &Identity::of(suite));
        let client = Arc::new(client(suite));
        for visit in 0..3 {
            let mut pair = Pair::with(server.clone(), client.clone());
            let resumed = pair.peer.handshake_kind() == Some(HandshakeKind::Resumed);
            assert_eq!(resumed, visit > 0, "{:?}", suite.suite());
            for _ in 0..3 {
                pair.here_writes(100);
                pair.peer_writes(100);
                pair.moves();
                pair.deliver_to_peer(usize::MAX);
                pair.deliver_here(usize::MAX);
                pair.here_reads(100);
            }
            pair.end();
        }
    }
}

/// Whatever is in a layer, it is refused or goes on as something: nothing panics.
#[test]
fn a_damaged_layer_is_harmless() {
    for suite in suites() {
        let mut pair = Pair::of(suite);
        pair.peer_writes(100);
        pair.deliver_here(50);
        pair.here.receive(&mut pair.arrived).unwrap();
        let layer = pair.take();
        for at in 0..layer.payload.len() {
            for flip in [1, 0x80, 0xff] {
                let mut bytes = layer.payload.to_vec();
                bytes[at] ^= flip;
                let layers = [Layer::new(KIND, VERSION, bytes)];
                let Ok(state) = State::read(&mut LayerReader::new(&layers), KIND) else {
                    continue;
                };
                let Ok(mut session) = Session::<ServerConnection>::resume(
                    state,
                    SecretBytes::new(),
                    &(&pair.config).into(),
                ) else {
                    continue;
                };
                // What the client has sent does not decrypt, or does.
                let _ = session.read(&mut Vec::with_capacity(100));
                let _ = session.write(&[IoSlice::new(b"answer")]);
                let _ = session.into_state().map(|state| state.to_layer(KIND));
            }
        }
    }
}

#[test]
fn a_layer_shows_no_secret() {
    let mut pair = Pair::of(aes());
    let shown = format!("{:?}", pair.take());
    assert!(shown.starts_with("Layer"), "{shown}");
    assert!(shown.len() < 120, "{shown}");
}

/// A key that has protected as many records as it may is replaced, also if most of them were elsewhere.
#[test]
fn a_key_wears_out_over_moves() {
    for suite in suites() {
        let limit = match suite {
            SupportedCipherSuite::Tls13(suite) => suite.common.confidentiality_limit,
            SupportedCipherSuite::Tls12(suite) => suite.common.confidentiality_limit,
        };
        if limit == u64::MAX {
            continue;
        }
        let mut pair = Pair::of(suite);
        let layers = [pair.take()];
        let mut state = State::read(&mut LayerReader::new(&layers), KIND).unwrap();
        state.server.next = limit - 10;
        let secret = state.server.secret.clone();
        let mut session =
            Session::<ServerConnection>::resume(state, SecretBytes::new(), &(&pair.config).into())
                .unwrap();
        let mut write = || session.write(&[IoSlice::new(b"a line")]);
        assert_eq!(write().unwrap(), 6);
        let again = write();
        if let SupportedCipherSuite::Tls12(_) = suite {
            assert!(again.unwrap_err().to_string().contains("worn out"));
            continue;
        }
        assert_eq!(again.unwrap(), 6);
        let state = session.into_state().unwrap();
        assert_eq!(state.server.next, 1);
        assert!(state.server.secret != secret[..]);
    }
}
