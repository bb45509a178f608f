//! Whatever is in the layer of a TLS session, and whatever arrives then.

use arbitrary::Arbitrary;
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};
use tcpmig_format::{Layer, LayerReader, SecretBytes};

use super::keys::{Direction, IV};
use super::layer::State;
use super::rebuild::{self, Terms};
use super::session::Session;
use super::side::Side;
use super::{CLIENT_KIND, KIND, VERSION};
use crate::fuzz::Peak;

/// A layer, and what arrives when its session goes on.
#[derive(Arbitrary, Debug)]
pub struct Import<'a> {
    is_client: bool,
    layer: Made<'a>,
    arrives: &'a [u8],
}

#[derive(Arbitrary, Debug)]
enum Made<'a> {
    /// Any bytes.
    Bytes(&'a [u8]),
    /// That of a session of one of the suites, with changes.
    Changed(Box<Sound<'a>>, Vec<Change>),
}

/// A session that can be.
#[derive(Arbitrary, Debug)]
struct Sound<'a> {
    suite: u8,
    secret: u8,
    next: [u32; 2],
    has_exporter: bool,
    name: Option<&'a str>,
    alpn: Option<&'a [u8]>,
    certificates: Vec<&'a [u8]>,
    received: &'a [u8],
    unread: &'a [u8],
    unwritten: &'a [u8],
    closed: [bool; 2],
}

#[derive(Arbitrary, Debug)]
enum Change {
    Flip { at: u16, with: u8 },
    Cut { at: u16 },
    Insert { at: u16, byte: u8 },
}

impl Sound<'_> {
    fn state(&self, terms: &Terms<'_>) -> State {
        let suites = &terms.provider.cipher_suites;
        let suite = suites[usize::from(self.suite) % suites.len()];
        let (len, exporter) = match suite {
            rustls::SupportedCipherSuite::Tls13(suite) => {
                let len = suite.common.hash_provider.output_len();
                (len, if self.has_exporter { len } else { 0 })
            }
            rustls::SupportedCipherSuite::Tls12(suite) => {
                (suite.aead_alg.key_block_shape().enc_key_len + IV, 0)
            }
        };
        let direction = |salt: u8, next| Direction {
            secret: vec![self.secret ^ salt; len].into(),
            next,
        };
        State {
            version: suite.version().version.into(),
            suite: suite.suite().into(),
            client: direction(0, self.next[0].into()),
            server: direction(1, self.next[1].into()),
            exporter: vec![2; exporter].into(),
            server_name: self.name.map(str::to_owned),
            alpn: self.alpn.map(<[u8]>::to_vec),
            certificates: self.certificates.iter().map(|der| der.to_vec()).collect(),
            received: self.received.into(),
            unread: self.unread.into(),
            unwritten: self.unwritten.into(),
            client_closed: self.closed[0],
            server_closed: self.closed[1],
        }
    }
}

impl Import<'_> {
    fn layer(&self, kind: &str, terms: &Terms<'_>) -> Layer {
        let (sound, changes) = match &self.layer {
            Made::Bytes(bytes) => return Layer::new(kind, VERSION, *bytes),
            Made::Changed(sound, changes) => (sound, changes),
        };
        let mut bytes = sound.state(terms).to_layer(kind).payload.to_vec();
        for change in changes {
            let place = |at: u16| usize::from(at) % bytes.len().max(1);
            match *change {
                Change::Flip { at, with } => {
                    let at = place(at);
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte ^= with;
                    }
                }
                Change::Cut { at } => bytes.truncate(place(at)),
                Change::Insert { at, byte } => bytes.insert(place(at), byte),
            }
        }
        Layer::new(kind, VERSION, bytes)
    }
}

/// What is refused by its check is not imported; what is imported is exactly what the layer says; no forged record is taken.
pub fn tls(input: &Import<'_>, server: &ServerConfig, client: &ClientConfig, peak: Peak) {
    if input.is_client {
        import::<ClientConnection>(
            input,
            &input.layer(CLIENT_KIND, &client.into()),
            &client.into(),
            peak,
        );
    } else {
        import::<ServerConnection>(
            input,
            &input.layer(KIND, &server.into()),
            &server.into(),
            peak,
        );
    }
}

/// What a handshake in memory and a connection of rustls take, and what serde reserves for a list of which it has only the length
/// (1 MiB).
const MEMORY: u64 = 1536 << 10;

fn import<C: Side>(input: &Import<'_>, layer: &Layer, terms: &Terms<'_>, peak: Peak) {
    let bytes = (layer.payload.len() + input.arrives.len()) as u64;
    let used = peak(&mut || goes_on::<C>(layer, input.arrives, terms));
    assert!(used <= 16 * bytes + MEMORY, "{used} bytes for {bytes}");
}

fn goes_on<C: Side>(layer: &Layer, mut arrives: &[u8], terms: &Terms<'_>) {
    let layers = [layer.clone()];
    let read = || State::read(&mut LayerReader::new(&layers), C::KIND);
    let Ok(state) = read() else { return };
    let checked = rebuild::check::<C>(&state, terms);
    let mut unread = state.unread.to_vec();
    let session = Session::<C>::resume(state, SecretBytes::new(), terms);
    let session = match (checked, session) {
        (Ok(_), Ok(session)) => session,
        (Err(_), Err(_)) => return,
        (Ok(_), Err(refused)) => panic!("its check was passed, and then: {refused}"),
        (Err(refused), Ok(_)) => panic!("its check said: {refused}"),
    };
    let Ok(state) = session.into_state() else {
        panic!("it goes on, and cannot be taken apart");
    };
    let again = state.to_layer(C::KIND);
    assert!(
        again == *layer,
        "another session goes on: {}",
        hex(&again.payload)
    );
    // INVARIANT: it went on a moment ago.
    let mut session =
        Session::<C>::resume(state, SecretBytes::new(), terms).expect("it goes on again");
    let mut got = Vec::new();
    loop {
        match session.read(&mut got) {
            Ok(None) if arrives.is_empty() => break,
            Ok(None) => {
                if session.receive(&mut arrives).is_err() {
                    break;
                }
            }
            Ok(Some(1..)) => {}
            Ok(Some(0)) | Err(_) => break,
        }
    }
    unread.truncate(got.len());
    assert!(got == unread, "a forged record was taken");
    let _ = session.write(&[std::io::IoSlice::new(b"an answer")]);
    let mut records = Vec::new();
    while session.wants_write() && session.write_records(&mut records).is_ok_and(|len| len > 0) {}
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
