//! The world of these tests: the peer counts resets in both directions.

use std::ops::Deref;

use tcpmig_sys::lab::{Host, World};

pub(crate) use tcpmig_sys::lab::{Family, pattern, until};

/// A [`World`] in which the peer counts the resets that end a connection.
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
        // Room for what the tests leave unread, and no more than any host may set.
        let sizes = "4096 400000 33554432";
        world.a.set("net/ipv4/tcp_rmem", sizes).unwrap();
        // A segment that is acknowledged twice, which a slow machine sends twice, draws an RST from the peer when that has
        // closed. It has no acknowledgement itself (RFC 9293, section 3.10.7.1), as that of an end that gives up has.
        world.peer.nft(
            "table inet resets { counter n { }; \
            chain i { type filter hook prerouting priority raw; tcp flags & rst != 0 counter name n; }; \
            chain o { type filter hook output priority raw; tcp flags & (rst | ack) == (rst | ack) counter name n; }; }",
        );
        Self(world)
    }

    /// Fails if a reset of a connection passed the peer's device.
    pub(crate) fn assert_no_reset(&self) {
        assert_eq!(self.peer.counted("resets"), 0);
    }
}

/// Whether a connection with this local port is more than a `TIME_WAIT` on a host.
pub(crate) fn lives(host: &Host, port: u16) -> bool {
    let own = format!(":{port:04X}");
    ["tcp", "tcp6"].iter().any(|table| {
        let path = format!("/proc/thread-self/net/{table}");
        let lines = host.run(|| std::fs::read_to_string(path)).unwrap();
        lines.unwrap().lines().skip(1).any(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            fields[1].ends_with(&own) && fields[3] != "06"
        })
    })
}
