//! First packets as anybody can make them, without end: real Initials (RFC 9000, section 17.2.2), each with a connection
//! id of its own and a TLS client's first words, from addresses of 127.0.0.0/8.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::ServerName;
use rustls::quic::{ClientConnection, Keys, Suite, Version};

/// Bytes of a client's first datagram, at least.
const DATAGRAM: usize = 1200;
/// Bytes of the tag at the end of each protected packet, and of a Retry.
const TAG: usize = 16;
const NUMBER: usize = 4;
/// What the client calls itself: the same in all packets, which no server compares.
const SOURCE_ID: [u8; 8] = *b"knocking";

/// A client that begins handshakes and never ends one.
pub(crate) struct Knocker {
    provider: Arc<CryptoProvider>,
    suite: Suite,
    hello: Vec<u8>,
}

impl Knocker {
    /// One that asks for the host of that name.
    pub(crate) fn new(name: &'static str) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let suites = provider.cipher_suites.iter();
        let suite = suites
            .filter(|suite| suite.suite() == rustls::CipherSuite::TLS13_AES_128_GCM_SHA256)
            .find_map(|suite| suite.tls13()?.quic_suite())
            .expect("the suite of Initials");
        let mut config = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = vec![b"tcpmig/1".to_vec()];
        // initial_source_connection_id, and 64 KiB of initial_max_data.
        let mut parameters = vec![0x0f, 8];
        parameters.extend(SOURCE_ID);
        parameters.extend([0x04, 4, 0x80, 1, 0, 0]);
        let name = ServerName::try_from(name).expect("a name");
        let mut tls = ClientConnection::new(Arc::new(config), Version::V1, name, parameters)
            .expect("a configuration");
        let mut hello = Vec::new();
        assert!(tls.write_hs(&mut hello).is_none(), "no keys yet");
        Self {
            provider,
            suite,
            hello,
        }
    }

    /// A connection id that was not there before.
    pub(crate) fn fresh_id(&self) -> [u8; 8] {
        let mut id = [0; 8];
        self.provider
            .secure_random
            .fill(&mut id)
            .expect("random bytes");
        id
    }

    /// A datagram that begins a handshake with the server that is called `to`, with the token of a Retry or an empty one.
    pub(crate) fn initial(&self, to: &[u8], token: &[u8]) -> Vec<u8> {
        // Long header, Initial, four bytes of packet number; version 1.
        let mut packet = vec![0xc3, 0, 0, 0, 1];
        for id in [to, &SOURCE_ID] {
            packet.push(id.len() as u8);
            packet.extend(id);
        }
        packet.extend(varint(token.len()));
        packet.extend(token);
        let rest = DATAGRAM - packet.len() - 2;
        packet.extend(varint(rest));
        let number_at = packet.len();
        packet.extend([0; NUMBER]);
        let header = packet.clone();
        // A CRYPTO frame from offset zero, and PADDING.
        packet.extend([0x06, 0]);
        packet.extend(varint(self.hello.len()));
        packet.extend(&self.hello);
        packet.resize(DATAGRAM - TAG, 0);
        let side = rustls::Side::Client;
        let keys = Keys::initial(Version::V1, self.suite.suite, self.suite.quic, to, side).local;
        let tag = keys
            .packet
            .encrypt_in_place(0, &header, &mut packet[header.len()..])
            .expect("short enough");
        packet.extend(tag.as_ref());
        let (header, payload) = packet.split_at_mut(number_at + NUMBER);
        let (first, rest) = header.split_at_mut(1);
        keys.header
            .encrypt_in_place(
                &payload[..keys.header.sample_len()],
                &mut first[0],
                &mut rest[number_at - 1..],
            )
            .expect("a whole sample");
        packet
    }
}

/// A length of two bytes.
fn varint(value: usize) -> [u8; 2] {
    (0x4000 | u16::try_from(value).expect("below 16384")).to_be_bytes()
}

/// What a Retry asks for: the server's name from now on, and the token (RFC 9000, section 17.2.5).
pub(crate) fn retry(datagram: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    if datagram.first()? & 0xf0 != 0xf0 {
        return None;
    }
    let (own, rest) = id(datagram.get(5..)?)?;
    let (server, rest) = id(rest)?;
    let token = rest.get(..rest.len().checked_sub(TAG)?)?;
    (own == SOURCE_ID).then(|| (server.to_vec(), token.to_vec()))
}

fn id(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = bytes.split_first()?;
    rest.split_at_checked(usize::from(*len))
}

/// How a flood is made.
#[derive(Clone)]
pub(crate) struct Kind {
    /// From where; each address may come several times.
    pub(crate) from: Vec<Ipv4Addr>,
    /// Packets per second, if the machine can.
    pub(crate) rate: u32,
    /// Whether it answers a Retry, and uses the token for further handshakes.
    pub(crate) listens: bool,
}

impl Kind {
    /// So many addresses that hear nothing.
    pub(crate) fn deaf(addresses: usize, rate: u32) -> Self {
        let from = (0..addresses).map(stranger).collect();
        Self {
            from,
            rate,
            listens: false,
        }
    }
}

/// An address of the loopback that nobody else has.
pub(crate) fn stranger(number: usize) -> Ipv4Addr {
    let [.., high, low] = (number as u32).to_be_bytes();
    Ipv4Addr::new(127, 77, high, low)
}

/// Goes on until it is dropped.
pub(crate) struct Flood {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Flood {
    pub(crate) fn begin(kind: Kind, target: SocketAddr, name: &'static str) -> io::Result<Self> {
        let sockets = kind.from.iter().map(|from| {
            let socket = UdpSocket::bind((*from, 0))?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        });
        let sockets: Vec<UdpSocket> = sockets.collect::<io::Result<_>>()?;
        let (stop, sent) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let thread = std::thread::spawn({
            let (stop, sent) = (Arc::clone(&stop), Arc::clone(&sent));
            move || run(&Knocker::new(name), &sockets, &kind, target, &stop, &sent)
        });
        Ok(Self {
            stop,
            sent,
            thread: Some(thread),
        })
    }

    /// Packets that it has sent.
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the flood ended");
        }
    }
}

fn run(
    knocker: &Knocker,
    sockets: &[UdpSocket],
    kind: &Kind,
    target: SocketAddr,
    stop: &AtomicBool,
    sent: &AtomicU64,
) {
    let mut tokens: Vec<Option<Vec<u8>>> = vec![None; sockets.len()];
    let mut datagram = vec![0; 2048];
    let begin = Instant::now();
    let pause = Duration::from_secs(1) / kind.rate;
    let mut due = begin;
    for turn in (0..sockets.len()).cycle() {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let socket = &sockets[turn];
        let mut packet = None;
        // One that hears nothing lets its socket run full.
        while kind.listens
            && let Ok(len) = socket.recv(&mut datagram)
        {
            if let Some((server, token)) = retry(&datagram[..len]) {
                packet = Some(knocker.initial(&server, &token));
                tokens[turn] = Some(token);
            }
        }
        let packet = packet.unwrap_or_else(|| {
            // A token is good for any number of handshakes, for a while.
            let token = tokens[turn].take().unwrap_or_default();
            knocker.initial(&knocker.fresh_id(), &token)
        });
        // Lost like any other if a queue is full.
        if socket.send_to(&packet, target).is_ok() {
            sent.fetch_add(1, Ordering::Relaxed);
        }
        // A machine that is too slow for the rate sends as fast as it can, without catching up.
        due = (due + pause).max(Instant::now() - pause * 10);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
}
