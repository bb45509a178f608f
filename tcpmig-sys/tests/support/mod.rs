//! The world of these tests: with room for large queues.
#![allow(
    dead_code,
    unused_imports,
    reason = "each test program uses its own part"
)]

use std::net::TcpStream;
use std::ops::Deref;

pub(crate) use tcpmig_sys::kernel_test;
pub(crate) use tcpmig_sys::lab::{Family, World, nft, pattern, until};

/// A [`World`] in which host A keeps what nobody reads.
pub(crate) struct Net(World);

impl Deref for Net {
    type Target = World;

    fn deref(&self) -> &World {
        &self.0
    }
}

impl Net {
    pub(crate) fn new() -> Self {
        let world = World::new();
        for (setting, sizes) in [
            ("tcp_rmem", "4096 16777216 33554432"),
            ("tcp_wmem", "4096 8388608 8388608"),
        ] {
            world.a.set(&format!("net/ipv4/{setting}"), sizes).unwrap();
        }
        Self(world)
    }

    /// Like [`World::connect`], but small segments go out at once.
    pub(crate) fn connect(&self, family: Family) -> (TcpStream, TcpStream) {
        let ends = self.0.connect(family);
        for stream in [&ends.0, &ends.1] {
            stream.set_nodelay(true).unwrap();
        }
        ends
    }
}

/// The family of a test that is told only whether it is IPv6.
pub(crate) fn family(v6: bool) -> Family {
    if v6 { Family::V6 } else { Family::V4 }
}
