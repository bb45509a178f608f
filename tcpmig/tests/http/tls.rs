//! Sessions that move over TLS, under clients that know nothing of it: curl, python3 and its websockets, openssl, gnutls-cli, wrk.

use std::io::Write;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig, SupportedCipherSuite, SupportedProtocolVersion,
};
use tcpmig::tls::{Negotiated, Tls};
use tcpmig_sys::process::signals::interrupt;
use tcpmig_transport::keys::Authority;
use tempfile::NamedTempFile;

use crate::scene::{Client, OnB, Scene};
use crate::support::{kernel_test, numbered, until};

const URL: &str = "https://server.example:8080";
const SIZE: usize = 40_000_000;

/// What the handler of `/negotiated` answers.
pub(crate) async fn negotiated(negotiated: Option<Extension<Negotiated>>) -> String {
    let Some(Extension(negotiated)) = negotiated else {
        return "no TLS\n".to_owned();
    };
    let alpn = negotiated.alpn().map(<[u8]>::escape_ascii);
    format!(
        "{:?} {:?} {} {}\n",
        negotiated.version(),
        negotiated.cipher_suite(),
        negotiated.server_name().unwrap_or("no name"),
        alpn.map_or("no protocol".to_owned(), |alpn| alpn.to_string())
    )
}

/// How a server speaks TLS 1.3 and 1.2, and who has signed its certificate.
pub(crate) fn server_config() -> (Authority, ServerConfig) {
    let authority = Authority::create("web").unwrap();
    let config = config(&authority, &[&TLS12, &TLS13]);
    (authority, config)
}

fn config(authority: &Authority, versions: &[Version]) -> ServerConfig {
    let issued = authority.issue("server.example").unwrap();
    let chain = CertificateDer::from_pem_slice(issued.cert_pem.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).unwrap();
    let mut provider = rustls::crypto::ring::default_provider();
    let is_spoken = |suite: &SupportedCipherSuite| versions.contains(&suite.version());
    provider.cipher_suites.retain(is_spoken);
    let config = ServerConfig::builder_with_provider(Arc::new(provider));
    let config = config.with_protocol_versions(versions).unwrap();
    let config = config.with_no_client_auth();
    let mut config = config.with_single_cert(vec![chain], key).unwrap();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config
}

/// A client that trusts nobody else.
pub(crate) fn client_config(authority: &Authority) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    let root = CertificateDer::from_pem_slice(authority.ca_pem().as_bytes()).unwrap();
    roots.add(root).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider);
    let config = config.with_safe_default_protocol_versions().unwrap();
    config.with_root_certificates(roots).with_no_client_auth()
}

/// Two hosts that serve over TLS, each with a certificate of its own, and what the peer knows them by.
struct Secure {
    scene: Scene<Tls>,
    authority: NamedTempFile,
}

type Version = &'static SupportedProtocolVersion;

impl Secure {
    /// Host A speaks these versions, host B those.
    fn new(on_a: &[Version], on_b: &[Version]) -> Self {
        let authority = Authority::create("web").unwrap();
        let tls = |versions: &[Version]| Tls::new(config(&authority, versions));
        let scene = Scene::over([tls(on_a), tls(on_b)], &OnB::Visits, Duration::from_secs(5));
        let mut file = NamedTempFile::new().unwrap();
        file.write_all(authority.ca_pem().as_bytes()).unwrap();
        Self {
            scene,
            authority: file,
        }
    }

    fn authority(&self) -> &str {
        self.authority.path().to_str().unwrap()
    }

    /// curl, which checks the certificate.
    fn curl(&self, arguments: &[&str]) -> Client {
        let known = ["--cacert", self.authority()];
        let resolve = ["--resolve", "server.example:8080:198.18.0.80"];
        self.scene.curl(&[&known, &resolve, arguments].concat())
    }

    /// A program for python3, which finds `context` and `AUTHORITY` in it.
    fn python(&self, program: &str) -> Client {
        let preamble = format!(
            "import ssl, sys\ncontext = ssl.create_default_context(cafile='{}')\n",
            self.authority()
        );
        self.scene.python(&(preamble + program))
    }
}

/// A download that hops at several places is the file, and the next request goes over the same connection.
fn hops(versions: &[Version], more: &[&str]) {
    let mut secure = Secure::new(versions, versions);
    let urls = ["file", "chunked"].map(|kind| format!("{URL}/{kind}/{SIZE}"));
    let mut curl = secure.curl(&[more, &[&urls[0], &urls[1]]].concat());
    let mut body = Vec::new();
    for _ in 0..8 {
        // Buffers on the way may hold a quarter of a file.
        body.extend(curl.read(SIZE / 8));
        secure.scene.hop();
    }
    body.extend(curl.end_of_curl(2));
    let expected = [numbered(0, SIZE), numbered(0, SIZE)].concat();
    assert!(body == expected, "{} bytes", body.len());
}

kernel_test!(downloads_over_tls_1_3_go_on, || hops(
    &[&TLS13],
    &["--tlsv1.3"]
));
kernel_test!(downloads_over_tls_1_2_go_on, || hops(
    &[&TLS12, &TLS13],
    &["--tls-max", "1.2"]
));
kernel_test!(a_download_of_another_suite_goes_on, || hops(
    &[&TLS13],
    &["--tls13-ciphers", "TLS_CHACHA20_POLY1305_SHA256"]
));

kernel_test!(a_slow_reader_does_not_hold_up_a_move_over_tls, || {
    let mut secure = Secure::new(&[&TLS13], &[&TLS13]);
    let url = format!("{URL}/file/4000000");
    // It takes eight seconds.
    let mut curl = secure.curl(&["--limit-rate", "500k", &url]);
    let mut body = curl.read(100_000);
    for _ in 0..4 {
        secure.scene.hop();
    }
    body.extend(curl.end_of_curl(1));
    assert!(body == numbered(0, 4_000_000), "{} bytes", body.len());
});

kernel_test!(a_handler_knows_what_was_negotiated_after_a_move, || {
    let mut secure = Secure::new(&[&TLS13], &[&TLS13]);
    let mut python = secure.python(
        "import http.client, socket\n\
         sock = socket.create_connection(('198.18.0.80', 8080))\n\
         context.set_alpn_protocols(['http/1.1'])\n\
         c = http.client.HTTPConnection('server.example', 8080)\n\
         c.sock = context.wrap_socket(sock, server_hostname='server.example')\n\
         for line in sys.stdin:\n    \
             c.request('GET', '/negotiated')\n    \
             print(c.getresponse().read().decode(), end='')\n    \
             c.request('POST', '/upload', body=b'x' * 100000)\n    \
             assert c.getresponse().read().startswith(b'100000 ')\n",
    );
    for _ in 0..20 {
        python.go();
        python.says("TLSv1_3 TLS13_AES_256_GCM_SHA384 server.example http/1.1");
        secure.scene.hop();
    }
    python.end_of_python();
});

kernel_test!(a_websocket_over_tls_goes_on, || {
    let mut secure = Secure::new(&[&TLS12, &TLS13], &[&TLS12, &TLS13]);
    let mut python = secure.python(
        "import asyncio, websockets\n\
         async def session():\n    \
             async with websockets.connect('wss://server.example:8080/chat', ssl=context, host='198.18.0.80', server_hostname='server.example') as ws:\n        \
                 go = asyncio.get_running_loop().run_in_executor\n        \
                 while await go(None, sys.stdin.readline):\n            \
                     for message in 'text', b'octets', b'x' * 70000:\n                \
                         await ws.send(message)\n                \
                         assert await ws.recv() == message\n            \
                     await ws.send('who')\n            \
                     print(await ws.recv())\n    \
             assert ws.close_code == 1000, ws.close_code\n\
         asyncio.run(session())\n",
    );
    for hop in 1..=10 {
        python.go();
        let host = ["a", "b"][secure.scene.at];
        python.says(&format!("{host} {}", hop * 4));
        secure.scene.hop();
    }
    python.end_of_python();
});

kernel_test!(openssl_renews_its_keys_before_and_after_moves, || {
    let mut secure = Secure::new(&[&TLS13], &[&TLS13]);
    // What it says of key updates is on standard error.
    let mut command = secure.scene.command("sh");
    command.args(["-c", "exec openssl s_client \"$@\" 2>&1", "openssl"]);
    command.args(["-connect", "198.18.0.80:8080", "-crlf", "-CAfile"]);
    command.args([secure.authority(), "-verify_return_error"]);
    command.args(["-servername", "server.example", "-verify_hostname"]);
    command.arg("server.example").stdin(Stdio::piped());
    let mut openssl = Client(command.spawn().expect("openssl starts"));
    let tell = |openssl: &mut Client, line: &str| {
        let stdin = openssl.0.stdin.as_mut().unwrap();
        stdin.write_all(line.as_bytes()).unwrap();
    };
    let waits_for = |openssl: &mut Client, line: &str| {
        while openssl.line().trim_end() != line {}
    };
    for visit in 1..=12 {
        // Its own key, or both keys.
        tell(&mut openssl, ["k\n", "K\n"][visit % 2]);
        waits_for(&mut openssl, "KEYUPDATE");
        if visit % 3 == 0 {
            // The key update is on its way, or has arrived, or is answered.
            secure.scene.hop();
        }
        let host = ["a", "b"][secure.scene.at];
        tell(&mut openssl, "GET /who HTTP/1.1\nhost: server.example\n\n");
        waits_for(&mut openssl, &format!("{host} {visit}"));
        secure.scene.hop();
    }
    tell(&mut openssl, "Q\n");
    let said = String::from_utf8(openssl.end().stdout).unwrap();
    assert!(said.contains("DONE\n"), "{said}");
    until("the connection is over", || secure.scene.counts() == [0, 0]);
});

kernel_test!(a_version_that_the_target_does_not_speak_stays, || {
    let secure = Secure::new(&[&TLS12, &TLS13], &[&TLS13]);
    let url = format!("{URL}/file/{SIZE}");
    let mut curl = secure.curl(&["--tls-max", "1.2", &url, &format!("{URL}/who")]);
    let mut body = curl.read(SIZE / 4);
    let why = secure.scene.stays();
    assert!(why.contains("0x0303"), "{why}");
    body.extend(curl.end_of_curl(2));
    let expected = [&numbered(0, SIZE)[..], b"a 1 \n"].concat();
    assert!(body == expected, "{} bytes", body.len());
});

kernel_test!(gnutls_renews_its_keys_before_and_after_moves, || {
    let mut secure = Secure::new(&[&TLS13], &[&TLS13]);
    let mut command = secure.scene.command("gnutls-cli");
    command.args(["--x509cafile", secure.authority(), "--inline-commands"]);
    command.args(["--sni-hostname", "server.example"]);
    command.args(["--verify-hostname", "server.example"]);
    command.args(["--port", "8080", "198.18.0.80"]);
    command.stdin(Stdio::piped());
    let mut gnutls = Client(command.spawn().expect("gnutls-cli starts"));
    let tell = |gnutls: &mut Client, line: &str, answer: &str| {
        let stdin = gnutls.0.stdin.as_mut().unwrap();
        stdin.write_all(line.as_bytes()).unwrap();
        while gnutls.line().trim_end() != answer {}
    };
    for visit in 1..=9 {
        if visit % 2 == 0 {
            tell(&mut gnutls, "^rekey^\n", "- Rekey was completed");
        }
        if visit % 3 == 0 {
            secure.scene.hop();
        }
        let host = ["a", "b"][secure.scene.at];
        let request = "GET /who HTTP/1.1\r\nhost: server.example\r\n\r\n";
        tell(&mut gnutls, request, &format!("{host} {visit}"));
        secure.scene.hop();
    }
    drop(gnutls.0.stdin.take());
    gnutls.end();
    until("the connection is over", || secure.scene.counts() == [0, 0]);
});

kernel_test!(a_load_of_https_loses_nothing_while_all_of_it_moves, || {
    let mut secure = Secure::new(&[&TLS12, &TLS13], &[&TLS12, &TLS13]);
    let script = NamedTempFile::new().unwrap();
    let done = "done = function(summary)\n  local e = summary.errors\n  \
                print(summary.requests, e.connect + e.read + e.write + e.status + e.timeout)\nend\n";
    std::fs::write(&script, done).unwrap();
    let mut command = secure.scene.command("wrk");
    command.args(["-t1", "-c10", "-d3600s", "--timeout", "60s", "-s"]);
    command
        .arg(script.path())
        .arg("https://198.18.0.80:8080/who");
    let wrk = Client(command.spawn().expect("wrk is installed"));
    until("all are there", || secure.scene.counts() == [10, 0]);
    for _ in 0..6 {
        assert_eq!(secure.scene.hop_all(), 10);
        let all = if secure.scene.at == 0 {
            [10, 0]
        } else {
            [0, 10]
        };
        until("all have arrived", || secure.scene.counts() == all);
    }
    interrupt(wrk.0.id()).unwrap();
    let said = String::from_utf8(wrk.end().stdout).unwrap();
    let last = said.lines().last().unwrap();
    let numbers: Vec<u64> = last
        .split_whitespace()
        .map(|word| word.parse().unwrap())
        .collect();
    assert!(numbers[0] > 100, "{said}");
    assert_eq!(numbers[1], 0, "{said}");
});
