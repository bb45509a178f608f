//! Private networks for the tests.
#![allow(dead_code, unused_imports)] // Each test binary uses its own part.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use net::Host;

pub(crate) use tcpmig_lock::conformance::isolate::isolated;
pub(crate) use tcpmig_lock::conformance::lab::{eventually, slowed};
pub(crate) use tcpmig_lock::conformance::{isolate, lab as net, wire as capture};

/// Set when this is dropped, also by a panic: a thread that goes on until then would hang the test that waits for it.
pub(crate) struct Ends<'a>(pub(crate) &'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Makes a TCP segment without data from one end to the other; each call sends it once.
pub(crate) fn injector(
    host: &Host,
    flags: u8,
    from: SocketAddr,
    to: SocketAddr,
) -> impl Fn() + use<> {
    let (SocketAddr::V4(from), SocketAddr::V4(to)) = (from, to) else {
        panic!("IPv4 only");
    };
    let mut segment = vec![0; 20];
    segment[..2].copy_from_slice(&from.port().to_be_bytes());
    segment[2..4].copy_from_slice(&to.port().to_be_bytes());
    segment[12] = 5 << 4;
    segment[13] = flags;
    let socket = host.run(|| {
        use socket2::{Domain, Protocol, Socket, Type};
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP)).unwrap();
        socket
            .bind(&SocketAddr::from((*from.ip(), 0)).into())
            .unwrap();
        socket
    });
    let to = SocketAddr::from((*to.ip(), 0));
    move || {
        socket.send_to(&segment, &to.into()).unwrap();
    }
}
