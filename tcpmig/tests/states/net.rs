//! Two servers and a peer on a switch.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tcpmig_sys::lab::{Host, Lab};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
    /// IPv4 on an IPv6 socket.
    Mapped,
}

/// Host A holds the service's addresses, host B holds them silently. The peer counts resets in both directions.
pub(crate) struct Net {
    pub(crate) a: Host,
    pub(crate) b: Host,
    pub(crate) peer: Host,
    _lab: Lab,
}

impl Net {
    pub(crate) fn new() -> Self {
        let mut lab = Lab::new().expect("a network of namespaces can be made");
        let a = lab.host("a", &["10.77.0.1/24", "fd77::1/64"]).unwrap();
        let b = lab.host("b", &["10.77.0.2/24", "fd77::2/64"]).unwrap();
        let peer = lab.host("peer", &["10.77.0.9/24", "fd77::9/64"]).unwrap();
        b.hold_silently(&["10.77.0.1/32", "fd77::1/128"]).unwrap();
        // Room for what the tests leave unread, and no more than any host may set.
        a.set("net/ipv4/tcp_rmem", "4096 400000 33554432").unwrap();
        nft(
            &peer,
            "table inet resets { counter n { }; chain i { type filter hook prerouting priority raw; tcp flags & rst != 0 counter name n; }; chain o { type filter hook output priority raw; tcp flags & rst != 0 counter name n; }; }",
        );
        Self {
            a,
            b,
            peer,
            _lab: lab,
        }
    }

    /// A connection from the peer to host A: the peer's end and the server's.
    pub(crate) fn connect(&self, family: Family) -> (TcpStream, TcpStream) {
        let (bind, host) = match family {
            Family::V4 => ("10.77.0.1:0", "10.77.0.1"),
            Family::V6 => ("[fd77::1]:0", "fd77::1"),
            Family::Mapped => ("[::]:0", "10.77.0.1"),
        };
        let listener = self.a.run(|| TcpListener::bind(bind)).unwrap().unwrap();
        let port = listener.local_addr().unwrap().port();
        let peer = self
            .peer
            .run(|| TcpStream::connect((host, port)))
            .unwrap()
            .unwrap();
        let (server, _) = listener.accept().unwrap();
        for stream in [&peer, &server] {
            stream
                .set_read_timeout(Some(Duration::from_secs(120)))
                .unwrap();
        }
        (peer, server)
    }

    /// Makes the peer send what it sends to the service to host B.
    pub(crate) fn point_peer_at_b(&self) {
        self.point_peer_at(&self.b);
    }

    pub(crate) fn point_peer_at_a(&self) {
        self.point_peer_at(&self.a);
    }

    fn point_peer_at(&self, host: &Host) {
        let mut command = host.command("ip").unwrap();
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

    /// Fails if a reset passed the peer's device.
    pub(crate) fn assert_no_reset(&self) {
        assert_eq!(nft_counted(&self.peer, "resets"), 0);
    }
}

/// Keeps TCP on the wire from passing the hooks of a host, until [`mend`].
pub(crate) fn cut(host: &Host, hooks: &[&str]) {
    let chains: String = hooks
        .iter()
        .map(|hook| {
            let device = if *hook == "output" { "oifname" } else { "iifname" };
            format!(
                "chain {hook} {{ type filter hook {hook} priority -310; {device} eth0 meta l4proto tcp drop; }}; "
            )
        })
        .collect();
    nft(host, &format!("table inet cut {{ {chains} }}"));
}

pub(crate) fn mend(host: &Host) {
    nft(host, "delete table inet cut");
}

/// Adds rules on a host.
pub(crate) fn nft(host: &Host, rules: &str) {
    let mut child = host
        .run(|| {
            Command::new("nft")
                .args(["-f", "-"])
                .stdin(Stdio::piped())
                .spawn()
                .expect("nft is installed")
        })
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(rules.as_bytes()).unwrap();
    drop(stdin);
    assert!(child.wait().unwrap().success(), "nft refused {rules}");
}

/// How many packets the counter `n` of a table has seen.
pub(crate) fn nft_counted(host: &Host, table: &str) -> u64 {
    let mut command = host.command("nft").unwrap();
    let output = command
        .args(["list", "counter", "inet", table, "n"])
        .output()
        .expect("nft is installed");
    let text = String::from_utf8(output.stdout).unwrap();
    let mut words = text
        .split_whitespace()
        .skip_while(|word| *word != "packets");
    words.nth(1).expect("a counter").parse().unwrap()
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

/// Waits until a condition holds.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !holds() {
        assert!(Instant::now() < deadline, "did not happen: {what}");
        std::thread::sleep(Duration::from_micros(200));
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
