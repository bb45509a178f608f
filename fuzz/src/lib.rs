//! What the fuzz targets have in common: an allocator that counts, and what sessions of TLS go on with.

use std::sync::{Arc, LazyLock};

use rustls::server::ResolvesServerCertUsingSni;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

/// Runs `work` and returns the bytes that it had allocated at most at one time.
pub fn peak(work: &mut dyn FnMut()) -> u64 {
    allocation_counter::measure(work).bytes_max
}

/// A server and a client with every suite, which could make no handshake with anybody.
pub fn configs() -> &'static (ServerConfig, ClientConfig) {
    static CONFIGS: LazyLock<(ServerConfig, ClientConfig)> = LazyLock::new(|| {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let server = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .expect("it has suites of both")
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(ResolvesServerCertUsingSni::new()));
        let client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("it has suites of both")
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        (server, client)
    });
    &CONFIGS
}
