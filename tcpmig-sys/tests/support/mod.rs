//! Two servers and a peer on a switch.
#![allow(dead_code, reason = "each test program uses its own part")]

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tcpmig_sys::lab::{Host, Lab};

/// Host A holds the service's addresses, host B holds them silently.
pub(crate) struct Net {
    pub(crate) a: Host,
    pub(crate) b: Host,
    pub(crate) peer: Host,
    _lab: Lab,
}

const SERVICE: [&str; 2] = ["10.77.0.1/24", "fd77::1/64"];

impl Net {
    pub(crate) fn new() -> Self {
        let mut lab = Lab::new().expect("a network of namespaces can be made");
        let a = lab.host("a", &SERVICE).unwrap();
        let b = lab.host("b", &["10.77.0.2/24", "fd77::2/64"]).unwrap();
        let peer = lab.host("peer", &["10.77.0.9/24", "fd77::9/64"]).unwrap();
        b.hold_silently(&["10.77.0.1/32", "fd77::1/128"]).unwrap();
        for (setting, sizes) in [
            ("tcp_rmem", "4096 16777216 33554432"),
            ("tcp_wmem", "4096 8388608 8388608"),
        ] {
            a.set(&format!("net/ipv4/{setting}"), sizes).unwrap();
        }
        Self {
            a,
            b,
            peer,
            _lab: lab,
        }
    }

    /// A connection from the peer to host A: the peer's end and the server's.
    pub(crate) fn connect(&self, v6: bool) -> (TcpStream, TcpStream) {
        let address = if v6 { "[fd77::1]:0" } else { "10.77.0.1:0" };
        let listener = self.a.run(|| TcpListener::bind(address)).unwrap().unwrap();
        let to = listener.local_addr().unwrap();
        let peer = self.peer.run(|| TcpStream::connect(to)).unwrap().unwrap();
        let (server, _) = listener.accept().unwrap();
        for stream in [&peer, &server] {
            stream
                .set_read_timeout(Some(Duration::from_secs(120)))
                .unwrap();
            stream.set_nodelay(true).unwrap();
        }
        (peer, server)
    }

    /// Makes the peer send what it sends to the service to host B.
    pub(crate) fn point_peer_at_b(&self) {
        let mut command = self.b.command("ip").unwrap();
        let output = command
            .args(["-o", "link", "show", "eth0"])
            .stdout(Stdio::piped())
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let mac = text
            .split_whitespace()
            .skip_while(|word| *word != "link/ether")
            .nth(1)
            .expect("eth0 has a hardware address");
        self.peer
            .ip(&format!(
                "neigh replace 10.77.0.1 lladdr {mac} dev eth0\nneigh replace fd77::1 lladdr {mac} dev eth0\n"
            ))
            .unwrap();
    }
}

/// Runs nft on the calling thread's host.
pub(crate) fn nft(rules: &str) {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("nft is installed");
    child
        .stdin
        .take()
        .unwrap()
        .write_all(rules.as_bytes())
        .unwrap();
    assert!(child.wait().unwrap().success(), "nft refused {rules}");
}

/// What nft prints on the calling thread's host.
pub(crate) fn nft_output(arguments: &str) -> String {
    let output = Command::new("nft")
        .args(arguments.split(' '))
        .output()
        .expect("nft is installed");
    String::from_utf8(output.stdout).unwrap()
}

/// Waits until a condition holds.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !holds() {
        assert!(Instant::now() < deadline, "did not happen: {what}");
        std::thread::sleep(std::time::Duration::from_micros(200));
    }
}

/// Octets that differ from place to place.
pub(crate) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

/// A test that makes networks.
macro_rules! kernel_test {
    ($name:ident, $body:expr) => {
        #[test]
        fn $name() {
            tcpmig_sys::lab::isolated(stringify!($name), $body);
        }
    };
}
pub(crate) use kernel_test;
