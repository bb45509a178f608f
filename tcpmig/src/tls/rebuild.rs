//! A session goes on: a connection of rustls with carried secrets.

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::NoServerSessionStorage;
use rustls::{
    ClientConfig, ClientConnection, Error, ServerConfig, ServerConnection, SignatureScheme,
    SupportedCipherSuite, SupportedProtocolVersion,
};
use tcpmig_format::Octets;

use super::graft::{self, Graft, Secrets, Switches};
use super::keys::{Begun, Direction, IV, key};
use super::layer::State;
use super::nothing::{NoExchange, NoRandom, Nobody};
use crate::handover::{Code, Refusal};

/// A connection that goes on, the secrets with which it begins here, and what tells how its keys wear.
pub(super) type Rebuilt = (ServerConnection, Begun, Arc<Switches>);

fn refuse(code: Code, reason: impl Into<String>) -> Refusal {
    Refusal::new(code, reason)
}

/// The suite of a session, and whether this server could go on with it.
///
/// # Errors
///
/// The server does not have the suite, or the session's secrets are not those of it.
pub(super) fn check(state: &State, config: &ServerConfig) -> Result<SupportedCipherSuite, Refusal> {
    let suites = &config.crypto_provider().cipher_suites;
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
    let len = match suite {
        SupportedCipherSuite::Tls13(suite) => suite.common.hash_provider.output_len(),
        SupportedCipherSuite::Tls12(suite) => suite.aead_alg.key_block_shape().enc_key_len + IV,
    };
    let lens = [&state.client, &state.server].map(|direction| direction.secret.len());
    if lens != [len; 2] || ![0, len].contains(&state.exporter.len()) {
        let reason =
            "the secrets of the TLS session are not as long as its cipher suite wants them";
        return Err(refuse(Code::Image, reason));
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
    Ok(*suite)
}

/// Rebuilds the connection of a session.
///
/// # Errors
///
/// Those of [`check`], and whatever rustls says.
pub(super) fn rebuild(state: &State, config: &ServerConfig) -> Result<Rebuilt, Refusal> {
    let suite = check(state, config)?;
    let switches = Arc::new(Switches::default());
    let (graft, begun, scheme) = prepare(state, suite, switches.clone());
    let handshake = || handshake(state, config, suite, scheme);
    let rebuilt = graft::with(graft, handshake).map_err(|error| {
        let reason = format!("rustls does not take the TLS session: {error}");
        refuse(Code::Other, reason)
    })?;
    let is_the_same = rebuilt
        .negotiated_cipher_suite()
        .is_some_and(|negotiated| u16::from(negotiated.suite()) == state.suite)
        && rebuilt.alpn_protocol() == state.alpn.as_deref()
        && rebuilt.server_name() == state.server_name.as_deref();
    if !is_the_same || !switches.go_live() {
        return Err(refuse(Code::Other, "rustls made another TLS session of it"));
    }
    Ok((rebuilt, begun, switches))
}

/// What the handshake is to end with, what follows from it, and how it is signed.
fn prepare(
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
                [key, fixed, explicit].map(Octets::from)
            };
            let ([client_key, client_iv, _], [server_key, server_iv, explicit]) =
                (split(client), split(server));
            // Of the explicit part that only who writes needs.
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
    let graft = Graft {
        secrets,
        client_key,
        server_key,
        client_first: begun.client.next,
        server_first: begun.server.next,
        switches,
    };
    (graft, begun, scheme)
}

/// The handshake in memory.
fn handshake(
    state: &State,
    config: &ServerConfig,
    suite: SupportedCipherSuite,
    scheme: SignatureScheme,
) -> Result<ServerConnection, Error> {
    let provider = config.crypto_provider();
    let provider = Arc::new(CryptoProvider {
        cipher_suites: vec![graft::grafted(suite)],
        kx_groups: vec![&NoExchange],
        signature_verification_algorithms: provider.signature_verification_algorithms,
        secure_random: &NoRandom,
        key_provider: provider.key_provider,
    });
    let versions = [suite.version()];
    let mut server = server_config(state, config, provider.clone(), &versions, scheme)?;
    let mut client = client_config(state, provider, &versions, scheme)?;
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
    Ok(server)
}

fn server_config(
    state: &State,
    config: &ServerConfig,
    provider: Arc<CryptoProvider>,
    versions: &[&'static SupportedProtocolVersion],
    scheme: SignatureScheme,
) -> Result<ServerConfig, Error> {
    let builder = ServerConfig::builder_with_provider(provider).with_protocol_versions(versions)?;
    let nobody = Arc::new(Nobody::new(scheme, vec![CertificateDer::from(vec![0])]));
    let builder = if state.certificates.is_empty() {
        builder.with_no_client_auth()
    } else {
        builder.with_client_cert_verifier(nobody.clone())
    };
    let mut server = builder.with_cert_resolver(nobody);
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    server.max_fragment_size = config.max_fragment_size;
    server.time_provider = config.time_provider.clone();
    server.enable_secret_extraction = true;
    server.require_ems = false;
    Ok(server)
}

fn client_config(
    state: &State,
    provider: Arc<CryptoProvider>,
    versions: &[&'static SupportedProtocolVersion],
    scheme: SignatureScheme,
) -> Result<ClientConfig, Error> {
    let certificates = state.certificates.iter();
    let certificates = certificates.map(|der| CertificateDer::from(der.clone()));
    let nobody = Arc::new(Nobody::new(scheme, certificates.collect()));
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)?
        .dangerous()
        .with_custom_certificate_verifier(nobody.clone());
    let mut client = if state.certificates.is_empty() {
        builder.with_no_client_auth()
    } else {
        builder.with_client_cert_resolver(nobody)
    };
    client.resumption = Resumption::disabled();
    client.require_ems = false;
    Ok(client)
}
