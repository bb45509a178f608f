//! Key updates that their sender has cut into several records.

use rustls::crypto::cipher::{AeadKey, Iv, OutboundChunks, OutboundPlainMessage};
use rustls::{ContentType, ProtocolVersion};

use super::*;
use crate::tls::keys::{IV, key, next_secret};
use crate::tls::records::HEADER;

/// A client that makes its records by itself, after the handshake of one of rustls.
struct ByHand {
    suite: &'static rustls::Tls13CipherSuite,
    secret: SecretBytes,
    next: u64,
}

impl ByHand {
    /// One record with this in it.
    fn record(&mut self, kind: ContentType, bytes: &[u8]) -> Vec<u8> {
        let expander = |secret: &[u8]| {
            let block = rustls::crypto::tls13::OkmBlock::new(secret);
            self.suite.hkdf_provider.expander_for_okm(&block)
        };
        let mut iv = [0; IV];
        let info: [&[u8]; 4] = [&[0, IV as u8, 8], b"tls13 ", b"iv", &[0]];
        expander(&self.secret).expand_slice(&info, &mut iv).unwrap();
        // A key of this suite has 32 bytes.
        let key: [u8; 32] = key(self.suite, &self.secret)[..].try_into().unwrap();
        let aead = self.suite.aead_alg;
        let mut encrypter = aead.encrypter(AeadKey::from(key), Iv::new(iv));
        let message = OutboundPlainMessage {
            typ: kind,
            version: ProtocolVersion::TLSv1_2,
            payload: OutboundChunks::Single(bytes),
        };
        let record = encrypter.encrypt(message, self.next).unwrap().encode();
        self.next += 1;
        record
    }

    /// A key update in records that have so many bytes of it; what it writes after that is protected by the next key.
    fn key_update(&mut self, sizes: &[usize], asks_back: bool) -> Vec<Vec<u8>> {
        let message = [24, 0, 0, 1, u8::from(asks_back)];
        let mut at = 0;
        let mut records = Vec::new();
        for size in sizes {
            records.push(self.record(ContentType::Handshake, &message[at..at + size]));
            at += size;
        }
        assert_eq!(at, message.len());
        self.secret = next_secret(self.suite, &self.secret);
        self.next = 0;
        records
    }
}

#[test]
fn a_key_update_in_pieces_moves_at_any_time() {
    for provider in [ring::default_provider(), aws_lc_rs::default_provider()] {
        let suites = provider.cipher_suites.iter();
        let suites =
            suites.filter(|suite| suite.suite() == CipherSuite::TLS13_CHACHA20_POLY1305_SHA256);
        for suite in suites.copied() {
            for sizes in [&[5][..], &[1, 4], &[4, 1], &[2, 3], &[1, 1, 1, 1, 1]] {
                for asks_back in [false, true] {
                    in_pieces(suite, sizes, asks_back);
                }
            }
        }
    }
}

fn in_pieces(suite: SupportedCipherSuite, sizes: &[usize], asks_back: bool) {
    let SupportedCipherSuite::Tls13(suite13) = suite else {
        panic!("a suite of TLS 1.3");
    };
    let mut pair = Pair::of(suite);
    let mut client = ByHand {
        suite: suite13,
        secret: pair.here.begun().client.secret,
        next: 0,
    };
    let mut written = 0;
    for _ in 0..3 {
        let mut records = Vec::new();
        let hello = |client: &mut ByHand, written: &mut usize| {
            let record = client.record(ContentType::ApplicationData, &numbered(*written, 4));
            *written += 4;
            record
        };
        records.push(hello(&mut client, &mut written));
        records.extend(client.key_update(sizes, asks_back));
        // As long as one piece is.
        records.push(hello(&mut client, &mut written));
        records.push(hello(&mut client, &mut written));
        // It moves in the middle of each record, at each end of one, and before what has come is read.
        for record in records {
            for part in record.chunks(HEADER + 4) {
                pair.arrived.extend(part);
                pair.moves();
                pair.here_reads(3);
                pair.moves();
                pair.here_reads(100);
            }
        }
    }
    // And all of it at once.
    let mut records = client.key_update(sizes, asks_back);
    records.push(client.record(ContentType::ApplicationData, &numbered(written, 4)));
    records.extend(client.key_update(sizes, asks_back));
    records.push(client.record(ContentType::ApplicationData, &numbered(written + 4, 4)));
    written += 8;
    pair.arrived.extend(records.concat());
    pair.here_reads(3);
    pair.moves();
    pair.here_reads(3);
    pair.here_reads(100);
    assert_eq!(pair.read[HERE], written);
}
