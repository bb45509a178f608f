//! Private networks for the tests.
#![allow(dead_code, unused_imports)] // Each test binary uses its own part.

use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use net::{Host, link};
use tcpmig_lock::{FourTuple, Nftables};

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

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The addresses of the first of two hosts.
pub(crate) fn addresses() -> [IpAddr; 2] {
    [ip("10.0.0.1"), ip("2001:db8::1")]
}

/// Service address, target address and peer address of each family.
pub(crate) fn families() -> [[IpAddr; 3]; 2] {
    [
        [ip("10.0.0.1"), ip("10.0.0.2"), ip("10.0.0.9")],
        [ip("2001:db8::1"), ip("2001:db8::2"), ip("2001:db8::9")],
    ]
}

/// Two hosts with a link between them.
pub(crate) fn hosts() -> (Host, Host) {
    let (server, client) = (Host::new(), Host::new());
    link(&server, &client);
    (server, client)
}

/// Like [`hosts`], the first with a locker in its namespace.
pub(crate) fn locking_hosts() -> (Host, Host, Nftables) {
    let (server, client) = hosts();
    let locker = server.run(|| Nftables::new().unwrap());
    (server, client, locker)
}

/// Flows of the first host.
pub(crate) fn flows(count: u16) -> Vec<FourTuple> {
    let flow = |number: u16| format!("10.0.0.1:80,10.{}.{}.9:1025", number >> 8, number & 255);
    (0..count)
        .map(|number| flow(number).parse().unwrap())
        .collect()
}

/// Runs a test in a network namespace that this prepares, and over which the test has no say: it is in a user namespace of
/// its own. `name` is that of the test function.
pub(crate) fn without_a_say(name: &str, set_up: impl FnOnce(), test: impl FnOnce()) {
    const DENIED: &str = "TCPMIG_LOCK_TEST_DENIED";
    if std::env::var_os(DENIED).is_some() {
        return test();
    }
    isolated(name, || {
        set_up();
        let test = Command::new("unshare")
            .arg("-U")
            .arg(std::env::current_exe().unwrap())
            .args([name, "--exact", "--nocapture"])
            .env(DENIED, "1")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&test.stdout);
        assert!(
            test.status.success() && text.contains("1 passed"),
            "{test:?}"
        );
    });
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
