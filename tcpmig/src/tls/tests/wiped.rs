//! What is left of secrets in the memory of this process.

use std::fs;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::sync::Arc;
use std::thread;

use rustls::crypto::{CryptoProvider, ring};
use rustls::server::ResolvesServerCertUsingSni;
use rustls::{ServerConfig, ServerConnection, SupportedCipherSuite};
use tcpmig_format::LayerReader;

use super::super::keys::{Direction, IV};
use super::super::layer::State;
use super::super::{KIND, rebuild};

/// Nobody has the secret itself but those who are looked at.
const MASK: u8 = 0xa5;

fn unmasked(masked: &[u8]) -> Vec<u8> {
    masked.iter().map(|byte| byte ^ MASK).collect()
}

/// How often it is in memory that can be written, apart from the mapping of this address.
fn found(masked: &[u8], but_for: usize) -> usize {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let memory = fs::File::open("/proc/self/mem").unwrap();
    let mut count = 0;
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let (range, rights) = (words.next().unwrap(), words.next().unwrap());
        let (begin, end) = range.split_once('-').unwrap();
        let [begin, end] = [begin, end].map(|number| usize::from_str_radix(number, 16).unwrap());
        if !rights.starts_with("rw") || (begin..end).contains(&but_for) {
            continue;
        }
        // What other threads have given back meanwhile cannot be read.
        let mut buffer = vec![0; 1 << 20];
        let mut at = begin;
        while at < end {
            let len = buffer.len().min(end - at);
            let Ok(read @ 1..) = memory.read_at(&mut buffer[..len], at as u64) else {
                break;
            };
            let is_it = |window: &[u8]| {
                let mut pairs = window.iter().zip(masked);
                pairs.all(|(byte, masked)| byte ^ MASK == *masked)
            };
            count += buffer[..read]
                .windows(masked.len())
                .filter(|window| is_it(window))
                .count();
            at += read;
        }
    }
    count
}

/// The secrets of a session come and leave, as a target has them before it goes on: where the stack of that was.
///
/// What rustls makes of them is not looked at: it leaves copies itself, as `manual` says.
fn come_and_leave(config: &ServerConfig, suite: SupportedCipherSuite, masked: &[u8]) -> usize {
    let here = 0_u8;
    let direction = |salt: usize| Direction {
        secret: unmasked(&masked[salt..salt + masked.len() - 1]).into(),
        next: 7,
    };
    let state = State {
        version: suite.version().version.into(),
        suite: suite.suite().into(),
        client: direction(1),
        server: direction(0),
        ..State::default()
    };
    let layers = [state.to_layer(KIND)];
    drop(state);
    let mut reader = LayerReader::new(&layers);
    let state = State::read(&mut reader, KIND).unwrap();
    rebuild::check::<ServerConnection>(&state, &config.into()).unwrap();
    drop(state.to_layer(KIND));
    std::ptr::from_ref(&here) as usize
}

/// In a process of its own: there is little memory to look through, and nobody else's.
#[test]
fn nothing_is_left_of_secrets_that_were_carried() {
    const ALONE: &str = "TCPMIG_TEST_ALONE";
    if std::env::var_os(ALONE).is_none() {
        let name = "tls::tests::wiped::nothing_is_left_of_secrets_that_were_carried";
        let mut alone = Command::new(std::env::current_exe().unwrap());
        alone.args(["--exact", name]).env(ALONE, "1");
        let output = alone.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && said.contains("1 passed"),
            "{said}"
        );
        return;
    }
    let provider = ring::default_provider();
    for (number, suite) in provider.cipher_suites.clone().into_iter().enumerate() {
        let len = match suite {
            SupportedCipherSuite::Tls13(suite) => suite.common.hash_provider.output_len(),
            SupportedCipherSuite::Tls12(suite) => suite.aead_alg.key_block_shape().enc_key_len + IV,
        };
        let provider = Arc::new(CryptoProvider {
            cipher_suites: vec![suite],
            ..provider.clone()
        });
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[suite.version()])
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(ResolvesServerCertUsingSni::new()));
        // One more byte for the other direction, whose secret is another one.
        let masked: Vec<u8> = (0..=len)
            .map(|at| (at * 37 + number * 11 + 5) as u8)
            .collect();
        let stack = thread::scope(|scope| {
            let runs = scope.spawn(|| come_and_leave(&config, suite, &masked));
            runs.join().unwrap()
        });
        let part = &masked[..16];
        assert_eq!(found(part, stack), 0, "{:?}", suite.suite());
        // It would be found.
        let left = unmasked(part);
        assert!(found(part, stack) > 0);
        drop(left);
    }
}
