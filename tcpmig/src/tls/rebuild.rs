//! A session goes on: a connection of rustls with carried secrets.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::crypto::cipher::{AeadKey, Iv};
use rustls::pki_types::{CertificateDer, DnsName, ServerName};
use rustls::server::NoServerSessionStorage;
use rustls::time_provider::TimeProvider;
use rustls::{
    ClientConfig, ClientConnection, Error, KeyLog, ServerConfig, ServerConnection, SignatureScheme,
    SupportedCipherSuite, SupportedProtocolVersion,
};
use tcpmig_format::SecretBytes;

use super::graft::{self, Graft, Secrets, Switches};
use super::keys::{Begun, Direction, IV, key, key_and_iv};
use super::layer::State;
use super::nothing::{NoExchange, NoRandom, Nobody};
use super::side::Side;
use crate::handover::{Code, Refusal};

/// A connection that goes on, the secrets with which it begins here, and what tells how its keys wear.
pub(super) type Rebuilt<C> = (C, Begun, Arc<Switches>);

/// What a configuration of rustls says of sessions that go on.
pub(super) struct Terms<'a> {
    pub(super) provider: &'a Arc<CryptoProvider>,
    pub(super) key_log: &'a Arc<dyn KeyLog>,
    time_provider: &'a Arc<dyn TimeProvider>,
    max_fragment_size: Option<usize>,
}

impl<'a> From<&'a ServerConfig> for Terms<'a> {
    fn from(config: &'a ServerConfig) -> Self {
        Self {
            provider: config.crypto_provider(),
            key_log: &config.key_log,
            time_provider: &config.time_provider,
            max_fragment_size: config.max_fragment_size,
        }
    }
}

impl<'a> From<&'a ClientConfig> for Terms<'a> {
    fn from(config: &'a ClientConfig) -> Self {
        Self {
            provider: config.crypto_provider(),
            key_log: &config.key_log,
            time_provider: &config.time_provider,
            max_fragment_size: config.max_fragment_size,
        }
    }
}

fn refuse(code: Code, reason: impl Into<String>) -> Refusal {
    Refusal::new(code, reason)
}

/// The suite of a session, and whether this server could go on with it.
///
/// # Errors
///
/// The server does not have the suite, or the session's secrets are not those of it.
pub(super) fn check<C: Side>(
    state: &State,
    terms: &Terms<'_>,
) -> Result<SupportedCipherSuite, Refusal> {
    let suites = &terms.provider.cipher_suites;
    let is_of = |suite: &&SupportedCipherSuite| {
        u16::from(suite.suite()) == state.suite
            && u16::from(suite.version().version) == state.version
    };
    let Some(suite) = suites.iter().find(is_of) else {
        let reason = format!(
            "the cipher suite {:#06x} of TLS version {:#06x} is not one that this server has",
            state.suite, state.version
        );
        return Err(refuse(Code::Session, reason));
    };
    let len = secret_len(*suite);
    let lens = [&state.client, &state.server].map(|direction| direction.secret.len());
    if lens != [len; 2] || ![0, len].contains(&state.exporter.len()) {
        let reason =
            "the secrets of the TLS session are not as long as its cipher suite wants them";
        return Err(refuse(Code::Image, reason));
    }
    if C::IS_CLIENT && state.certificates.is_empty() {
        let reason = "the TLS session of a client does not know its server's certificate";
        return Err(refuse(Code::Image, reason));
    }
    check_shown::<C>(state)?;
    let (_, is_ended) = C::own_first(state.client_closed, state.server_closed);
    if is_ended && !state.received.is_empty() {
        return Err(refuse(
            Code::Image,
            "something was received behind the end of the TLS session",
        ));
    }
    let counts = [state.client.next, state.server.next];
    // The first record of TLS 1.2 is that of the handshake's end.
    let least = u64::from(matches!(suite, SupportedCipherSuite::Tls12(_)));
    if counts
        .iter()
        .any(|&next| next < least || next > u64::MAX / 2)
    {
        return Err(refuse(
            Code::Image,
            "the TLS session counts its records wrong",
        ));
    }
    if !gives_keys(*suite) {
        let reason = format!(
            "the cipher suite {:?} of this server's provider of cryptography does not give its keys out",
            suite.suite()
        );
        return Err(refuse(Code::Session, reason));
    }
    if !goes_on::<C>(*suite, terms) {
        let reason = format!(
            "sessions of the cipher suite {:?} do not go on with this version of rustls and its provider",
            suite.suite()
        );
        return Err(refuse(Code::Session, reason));
    }
    Ok(*suite)
}

/// Whether sessions of this suite go on here, which is tried once with one that is made up: another version of rustls may come to
/// its keys in another way, and so may another provider.
fn goes_on<C: Side>(suite: SupportedCipherSuite, terms: &Terms<'_>) -> bool {
    static TRIED: Mutex<Option<HashMap<(usize, bool), bool>>> = Mutex::new(None);
    let lock = || TRIED.lock().unwrap_or_else(PoisonError::into_inner);
    let suite_and_end = (graft::address(suite), C::IS_CLIENT);
    if let Some(tried) = lock().as_ref().and_then(|tried| tried.get(&suite_and_end)) {
        return *tried;
    }
    let direction = |byte| Direction {
        secret: vec![byte; secret_len(suite)].into(),
        next: 7,
    };
    let state = State {
        version: suite.version().version.into(),
        suite: suite.suite().into(),
        client: direction(1),
        server: direction(2),
        certificates: vec![vec![0]],
        ..State::default()
    };
    let goes_on = make::<C>(&state, suite, terms).is_ok();
    lock()
        .get_or_insert_default()
        .insert(suite_and_end, goes_on);
    goes_on
}

fn secret_len(suite: SupportedCipherSuite) -> usize {
    match suite {
        SupportedCipherSuite::Tls13(suite) => suite.common.hash_provider.output_len(),
        SupportedCipherSuite::Tls12(suite) => suite.aead_alg.key_block_shape().enc_key_len + IV,
    }
}

/// Rebuilds the connection of a session.
///
/// # Errors
///
/// Those of [`check`], and whatever rustls says.
pub(super) fn rebuild<C: Side>(state: &State, terms: &Terms<'_>) -> Result<Rebuilt<C>, Refusal> {
    let suite = check::<C>(state, terms)?;
    make(state, suite, terms)
}

fn make<C: Side>(
    state: &State,
    suite: SupportedCipherSuite,
    terms: &Terms<'_>,
) -> Result<Rebuilt<C>, Refusal> {
    let switches = Arc::new(Switches::default());
    let (graft, begun, scheme) = prepare::<C>(state, suite, switches.clone());
    let handshake = || handshake::<C>(state, terms, suite, scheme);
    let rebuilt = graft::with(graft, handshake).map(C::of).map_err(|error| {
        let reason = format!("rustls does not take the TLS session: {error}");
        refuse(Code::Other, reason)
    })?;
    let is_the_same = rebuilt
        .negotiated_cipher_suite()
        .is_some_and(|negotiated| u16::from(negotiated.suite()) == state.suite)
        && rebuilt.alpn_protocol() == state.alpn.as_deref()
        && rebuilt
            .server_name()
            .is_none_or(|name| state.server_name.as_deref() == Some(name));
    if !is_the_same || !switches.go_live() {
        return Err(refuse(Code::Other, "rustls made another TLS session of it"));
    }
    Ok((rebuilt, begun, switches))
}

/// How many bytes the certificates of one end may have; rustls takes no handshake of more than 65 535.
const MOST_CERTIFICATES: usize = 60_000;

/// Whether a handshake can show what was negotiated.
fn check_shown<C: Side>(state: &State) -> Result<(), Refusal> {
    let certificates = || state.certificates.iter().map(Vec::len);
    let is_alpn = |alpn: &Vec<u8>| (1..=255).contains(&alpn.len());
    // A server has the name as it came, which is in lower case and without a dot behind it.
    let came =
        |name: &str| !name.bytes().any(|byte| byte.is_ascii_uppercase()) && !name.ends_with('.');
    let is_name =
        |name: &String| DnsName::try_from(name.as_str()).is_ok() && (C::IS_CLIENT || came(name));
    let what = if !state.alpn.iter().all(is_alpn) {
        "a protocol (ALPN) that has no name"
    } else if !state.server_name.iter().all(is_name) {
        "a server that has no name"
    } else if certificates().any(|len| len == 0)
        || certificates().sum::<usize>() > MOST_CERTIFICATES
    {
        "certificates that are empty, or longer than a handshake has"
    } else {
        return Ok(());
    };
    let reason = format!("the TLS session was negotiated with {what}");
    Err(refuse(Code::Image, reason))
}

/// Whether the keys that a provider has for a suite can be taken out of it.
pub(super) fn gives_keys(suite: SupportedCipherSuite) -> bool {
    let (key, iv) = (AeadKey::from([0; 32]), [0; IV]);
    let secrets = match suite {
        SupportedCipherSuite::Tls13(suite) => suite.aead_alg.extract_keys(key, Iv::from(iv)),
        SupportedCipherSuite::Tls12(suite) => {
            let shape = suite.aead_alg.key_block_shape();
            let (fixed, explicit) = iv.split_at(shape.fixed_iv_len.min(IV));
            suite.aead_alg.extract_keys(key, fixed, explicit)
        }
    };
    secrets.is_ok_and(|secrets| key_and_iv(&secrets).is_some())
}

/// What the handshake is to end with, what follows from it, and how it is signed.
fn prepare<C: Side>(
    state: &State,
    suite: SupportedCipherSuite,
    switches: Arc<Switches>,
) -> (Graft, Begun, SignatureScheme) {
    let (client, server) = (&state.client, &state.server);
    let mut begun = Begun {
        client: client.clone(),
        server: server.clone(),
        exporter: state.exporter.clone(),
    };
    let (secrets, client_key, server_key, scheme) = match suite {
        SupportedCipherSuite::Tls13(suite) => (
            Secrets::Tls13 {
                client: client.secret.clone(),
                server: server.secret.clone(),
                exporter: state.exporter.clone(),
            },
            key(suite, &client.secret),
            key(suite, &server.secret),
            SignatureScheme::ED25519,
        ),
        SupportedCipherSuite::Tls12(suite) => {
            let shape = suite.aead_alg.key_block_shape();
            let split = |direction: &Direction| {
                let (key, iv) = direction.secret.split_at(shape.enc_key_len);
                let (fixed, explicit) = iv.split_at(shape.fixed_iv_len);
                [key, fixed, explicit].map(SecretBytes::from)
            };
            let [client_key, client_iv, client_explicit] = split(client);
            let [server_key, server_iv, server_explicit] = split(server);
            // The explicit part is that of whoever writes here.
            let (explicit, _) = C::own_first(client_explicit, server_explicit);
            let parts = [&client_key, &server_key, &client_iv, &server_iv, &explicit];
            let block = parts.map(|part| &part[..]).concat();
            // The Finished of the handshake in memory was record 0 in both directions.
            for direction in [&mut begun.client, &mut begun.server] {
                direction.next = direction.next.wrapping_sub(1);
            }
            let scheme = if suite.sign.contains(&SignatureScheme::RSA_PSS_SHA256) {
                SignatureScheme::RSA_PSS_SHA256
            } else {
                SignatureScheme::ECDSA_NISTP256_SHA256
            };
            (Secrets::Tls12(block.into()), client_key, server_key, scheme)
        }
    };
    let (own, other) = C::own_first(
        (client_key, begun.client.next),
        (server_key, begun.server.next),
    );
    let graft = Graft {
        secrets,
        own,
        other,
        switches,
    };
    (graft, begun, scheme)
}

/// The handshake in memory.
fn handshake<C: Side>(
    state: &State,
    terms: &Terms<'_>,
    suite: SupportedCipherSuite,
    scheme: SignatureScheme,
) -> Result<(ClientConnection, ServerConnection), Error> {
    let provider = terms.provider;
    let provider = Arc::new(CryptoProvider {
        cipher_suites: vec![graft::grafted(suite)],
        kx_groups: vec![&NoExchange],
        signature_verification_algorithms: provider.signature_verification_algorithms,
        secure_random: &NoRandom,
        key_provider: provider.key_provider,
    });
    let versions = [suite.version()];
    let (of_client, of_server) = C::shown(&state.certificates);
    let shown = |certificates: Vec<Vec<u8>>| {
        let certificates = certificates.into_iter().map(CertificateDer::from);
        Arc::new(Nobody::new(scheme, certificates.collect()))
    };
    let asks = !of_client.is_empty();
    let (of_client, of_server) = (shown(of_client), shown(of_server));
    let mut server = server_config(terms, provider.clone(), &versions, of_server, asks)?;
    let mut client = client_config(terms, provider, &versions, of_client, asks)?;
    if let Some(alpn) = &state.alpn {
        server.alpn_protocols = vec![alpn.clone()];
        client.alpn_protocols = vec![alpn.clone()];
    }
    let name = match &state.server_name {
        Some(name) => {
            ServerName::try_from(name.clone()).map_err(|error| Error::General(error.to_string()))?
        }
        // Addresses are not sent.
        None => ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into()),
    };
    let mut server = ServerConnection::new(Arc::new(server))?;
    let mut client = ClientConnection::new(Arc::new(client), name)?;
    let mut bytes = Vec::with_capacity(4096);
    let io = |error: std::io::Error| Error::General(error.to_string());
    while client.wants_write() || server.wants_write() {
        bytes.clear();
        while client.wants_write() {
            client.write_tls(&mut bytes).map_err(io)?;
        }
        let mut sent = &bytes[..];
        while !sent.is_empty() {
            server.read_tls(&mut sent).map_err(io)?;
            server.process_new_packets()?;
        }
        bytes.clear();
        while server.wants_write() {
            server.write_tls(&mut bytes).map_err(io)?;
        }
        let mut sent = &bytes[..];
        while !sent.is_empty() {
            client.read_tls(&mut sent).map_err(io)?;
            client.process_new_packets()?;
        }
    }
    if server.is_handshaking() || client.is_handshaking() {
        return Err(Error::HandshakeNotComplete);
    }
    Ok((client, server))
}

fn server_config(
    terms: &Terms<'_>,
    provider: Arc<CryptoProvider>,
    versions: &[&'static SupportedProtocolVersion],
    nobody: Arc<Nobody>,
    asks: bool,
) -> Result<ServerConfig, Error> {
    let builder = ServerConfig::builder_with_provider(provider).with_protocol_versions(versions)?;
    let builder = if asks {
        builder.with_client_cert_verifier(nobody.clone())
    } else {
        builder.with_no_client_auth()
    };
    let mut server = builder.with_cert_resolver(nobody);
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    server.max_fragment_size = terms.max_fragment_size;
    server.time_provider = terms.time_provider.clone();
    server.enable_secret_extraction = true;
    server.require_ems = false;
    Ok(server)
}

fn client_config(
    terms: &Terms<'_>,
    provider: Arc<CryptoProvider>,
    versions: &[&'static SupportedProtocolVersion],
    nobody: Arc<Nobody>,
    asks: bool,
) -> Result<ClientConfig, Error> {
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)?
        .dangerous()
        .with_custom_certificate_verifier(nobody.clone());
    let mut client = if asks {
        builder.with_client_cert_resolver(nobody)
    } else {
        builder.with_no_client_auth()
    };
    // A ticket that comes later belongs to secrets that are not here.
    client.resumption = Resumption::disabled();
    client.max_fragment_size = terms.max_fragment_size;
    client.time_provider = terms.time_provider.clone();
    client.enable_secret_extraction = true;
    client.require_ems = false;
    Ok(client)
}
