//! What this module relies on in rustls.

use rustls::KeyLog;

use super::*;

/// The versions of rustls whose sources were read for what this module relies on.
const READ: &[&str] = &["0.23.46"];

/// Fails when rustls is updated: `tls::manual` says what is to be done then.
#[test]
fn this_version_of_rustls_was_read() {
    let lock = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.lock");
    let lock = std::fs::read_to_string(lock).unwrap();
    let (_, entry) = lock.split_once("name = \"rustls\"\nversion = \"").unwrap();
    let (version, _) = entry.split_once('"').unwrap();
    assert!(READ.contains(&version), "rustls {version}");
}

/// Keeps what is logged.
#[derive(Debug, Default)]
struct Labels(std::sync::Mutex<Vec<(String, Vec<u8>)>>);

impl KeyLog for Labels {
    fn log(&self, label: &str, _: &[u8], secret: &[u8]) {
        let mut labels = self.0.lock().unwrap();
        labels.push((label.to_owned(), secret.to_vec()));
    }
}

/// Each thing that an update of rustls could change, by itself: the tests above would fail for it without saying why.
#[test]
fn rustls_does_what_is_relied_on() {
    for suite in suites() {
        let logged = Arc::new(Labels::default());
        let mut config = server(suite, &Identity::of(suite));
        config.key_log = logged.clone();
        let mut pair = Pair::new(config, client(suite));
        // As many records as were written and not more are counted.
        for _ in 0..3 {
            pair.here_writes(10);
        }
        pair.deliver_to_peer(usize::MAX);
        let SupportedCipherSuite::Tls13(_) = suite else {
            let state = pair.here.into_state().unwrap();
            // The end of the handshake was one as well.
            assert_eq!((state.client.next, state.server.next), (1, 4));
            continue;
        };
        let secret = |label: &str| {
            let logged = logged.0.lock().unwrap();
            let found = logged.iter().find(|(known, _)| known == label);
            found.unwrap_or_else(|| panic!("no {label}")).1.clone()
        };
        let begun = ["CLIENT_TRAFFIC_SECRET_0", "SERVER_TRAFFIC_SECRET_0"].map(secret);
        let exporter = secret("EXPORTER_SECRET");
        // The answer to a key update waits, and is sent by a write of nothing.
        pair.peer.refresh_traffic_keys().unwrap();
        pair.deliver_here(usize::MAX);
        pair.here_reads(1);
        assert!(!pair.here.wants_write(), "the answer waits");
        let state = pair.here.into_state().unwrap();
        assert!(!state.unwritten.is_empty(), "the answer is carried");
        assert_eq!((state.client.next, state.server.next), (0, 0));
        assert!(state.client.secret != begun[0] && state.server.secret != begun[1]);
        assert!(state.exporter == exporter);
    }
}
