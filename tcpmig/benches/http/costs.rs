//! What it costs to take a TLS session apart and to go on with it, beside the handshake that the client is spared.

use std::io::{Read, Write};
use std::net::TcpStream as StdStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion,
};
use serde::Serialize;
use tcpmig::session::{Carrier, Carriers};
use tcpmig::tls::Tls;
use tcpmig_format::{LayerReader, SecretBytes};
use tcpmig_transport::keys::Authority;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::middle;
use crate::servers::{config, processor_time};

const SESSIONS: usize = 300;

/// In microseconds, in the middle of all sessions.
#[derive(Serialize)]
pub(crate) struct Costs {
    version: String,
    suite: String,
    /// Of the server's thread.
    handshake_us: f64,
    export_us: f64,
    import_us: f64,
    image_bytes: f64,
}

impl Costs {
    pub(crate) fn measure(version: &'static SupportedProtocolVersion) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().build().unwrap();
        runtime.block_on(Self::of(version))
    }

    async fn of(version: &'static SupportedProtocolVersion) -> Self {
        let authority = Authority::create("bench").unwrap();
        let tls = Tls::new(config(&authority, version));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let client = std::thread::spawn(move || {
            let mut roots = RootCertStore::empty();
            let root = CertificateDer::from_pem_slice(authority.ca_pem().as_bytes()).unwrap();
            roots.add(root).unwrap();
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let config = ClientConfig::builder_with_provider(provider);
            let config = config.with_safe_default_protocol_versions().unwrap();
            let mut config = config.with_root_certificates(roots).with_no_client_auth();
            config.resumption = rustls::client::Resumption::disabled();
            let config = Arc::new(config);
            for _ in 0..SESSIONS {
                let name = ServerName::try_from("bench.example").unwrap();
                let connection = ClientConnection::new(config.clone(), name).unwrap();
                let tcp = StdStream::connect(address).unwrap();
                let mut stream = StreamOwned::new(connection, tcp);
                stream.write_all(b"question").unwrap();
                stream.read_exact(&mut [0; 6]).unwrap();
            }
        });
        let mut all = Vec::new();
        let mut suite = String::new();
        for _ in 0..SESSIONS {
            let (tcp, _) = listener.accept().await.unwrap();
            let before = processor_time();
            let stream = tls.accept(tcp).await.unwrap();
            let handshake = processor_time() - before;
            suite = format!("{:?}", stream.facts().unwrap().cipher_suite());
            let begin = Instant::now();
            let parts = stream.into_parts().unwrap();
            let export = begin.elapsed();
            let tcp = TcpStream::from_std(parts.socket.into()).unwrap();
            let begin = Instant::now();
            let mut layers = LayerReader::new(&parts.layers);
            let rebuilt = tls.rebuild(tcp, SecretBytes::new(), &mut layers).unwrap();
            let import = begin.elapsed();
            all.push((handshake, export, import, parts.layers[0].payload.len()));
            let mut stream = rebuilt.carrier;
            stream.read_exact(&mut [0; 8]).await.unwrap();
            stream.write_all(b"answer").await.unwrap();
            stream.flush().await.unwrap();
        }
        client.join().unwrap();
        let us = |time: Duration| time.as_secs_f64() * 1e6;
        Self {
            version: format!("{:?}", version.version),
            suite,
            handshake_us: middle(all.iter().map(|one| us(one.0))),
            export_us: middle(all.iter().map(|one| us(one.1))),
            import_us: middle(all.iter().map(|one| us(one.2))),
            image_bytes: middle(all.iter().map(|one| one.3 as f64)),
        }
    }

    pub(crate) fn print(&self) {
        println!(
            "{} {}: handshake {:.0} µs of the server's processor; taken apart in {:.0} µs, gone on with in {:.0} µs; {:.0} bytes",
            self.version,
            self.suite,
            self.handshake_us,
            self.export_us,
            self.import_us,
            self.image_bytes
        );
    }
}
