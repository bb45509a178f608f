//! A path of the lab does to real connections what it says.
#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use tcpmig_sys::lab::path::{Cable, Path};
use tcpmig_sys::lab::{Host, Lab, isolated};

const DELAY: Duration = Duration::from_millis(30);

/// A server on the switch, a client behind the path, and a connection between them.
struct Net {
    client: TcpStream,
    server: TcpStream,
    cable: Cable,
    _hosts: (Lab, Host, Host),
}

impl Net {
    fn new(path: &Path) -> Self {
        let mut lab = Lab::new().unwrap();
        let near = lab.host("near", &["10.0.0.1/24"]).unwrap();
        let (far, cable) = lab.far_host("far", &["10.0.0.9/24"], path).unwrap();
        let to: SocketAddr = "10.0.0.1:80".parse().unwrap();
        let listener = near.run(|| TcpListener::bind(to).unwrap()).unwrap();
        let client = far.run(|| TcpStream::connect(to).unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        Self {
            client,
            server,
            cable,
            _hosts: (lab, near, far),
        }
    }

    /// Sends bytes to the client, and compares what comes.
    fn download(&self, len: usize) {
        let bytes: Vec<u8> = (0..len).map(|at| (at / 4 * at % 251) as u8).collect();
        std::thread::scope(|scope| {
            scope.spawn(|| (&self.server).write_all(&bytes).unwrap());
            let mut got = vec![0; len];
            (&self.client).read_exact(&mut got).unwrap();
            assert!(got == bytes, "other bytes");
        });
    }
}

#[test]
fn an_answer_takes_twice_the_delay() {
    isolated("an_answer_takes_twice_the_delay", || {
        let mut net = Net::new(&Path::new(DELAY));
        let begin = Instant::now();
        net.client.write_all(b"?").unwrap();
        net.server.read_exact(&mut [0]).unwrap();
        net.server.write_all(b"!").unwrap();
        net.client.read_exact(&mut [0]).unwrap();
        assert!(begin.elapsed() >= 2 * DELAY, "{:?}", begin.elapsed());
        let (sent, received) = (net.cable.sent(), net.cable.received());
        assert!(sent.came > 2 && received.came > 2, "{sent:?} {received:?}");
        assert_eq!((sent.lost, received.lost), (0, 0));
    });
}

#[test]
fn what_is_lost_is_sent_again() {
    isolated("what_is_lost_is_sent_again", || {
        let mut path = Path::new(Duration::from_millis(1));
        (path.loss, path.late, path.late_by) = (10_000, 10_000, Duration::from_millis(2));
        let net = Net::new(&path);
        net.download(4 << 20);
        let received = net.cable.received();
        assert!(received.lost > 0 && received.late > 0, "{received:?}");
    });
}

#[test]
fn a_queue_overflows_and_a_rate_is_kept() {
    isolated("a_queue_overflows_and_a_rate_is_kept", || {
        let mut path = Path::new(Duration::from_millis(5));
        (path.rate, path.queue) = (Some(4 << 20), 32 << 10);
        let net = Net::new(&path);
        let begin = Instant::now();
        net.download(4 << 20);
        // The queue's bytes do not wait for their turn here.
        let least = Duration::from_millis(950);
        assert!(begin.elapsed() > least, "{:?}", begin.elapsed());
        let received = net.cable.received();
        assert!(received.overflowed > 0, "{received:?}");
    });
}
