//! A peer and two hosts, and what the tests ask of them.
#![allow(
    dead_code,
    unused_imports,
    unused_macros,
    reason = "each test program uses its own part"
)]

mod net;
mod numbered;
mod site;
mod talk;

use std::io::{Read, Write};
use std::net::TcpStream;

pub(crate) use net::{B, END, Family, Net, end_of, flow, open_from_a, tcp_counter};
pub(crate) use numbered::numbered;
pub(crate) use site::{Here, Keys, Running, Site, endpoint, kept, kept_by};
pub(crate) use talk::{Fake, Talk};
pub(crate) use tcpmig_sys::kernel_test;
pub(crate) use tcpmig_sys::lab::{PATIENCE, until};

/// Reads exactly these bytes.
pub(crate) fn expect(mut stream: &TcpStream, bytes: &[u8]) {
    let mut got = vec![0; bytes.len()];
    stream.read_exact(&mut got).expect("the bytes arrive");
    let differs = got.iter().zip(bytes).position(|(got, want)| got != want);
    assert_eq!(differs, None, "the first byte that is not the one written");
}

/// Data goes both ways.
pub(crate) fn both_ways(a: &TcpStream, b: &TcpStream) {
    for stream in [a, b] {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    for round in 0..4 {
        for (mut from, to) in [(a, b), (b, a)] {
            let sent = numbered(round * 1000, 1000);
            from.write_all(&sent).expect("the connection takes bytes");
            expect(to, &sent);
        }
    }
}
