//! What cannot be moved is kept before a word is said to the target.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};

use tcpmig::driver::{Ending, Options, Reason};
use tcpmig_sys::{Error, NotMigratable, repair};

use crate::support::{Family, Keys, Net, Site, both_ways, flow, kernel_test, until};

/// Host A at work, and a socket where the target would be.
struct Ears {
    a: Site,
    target: UdpSocket,
    tester: UdpSocket,
}

impl Ears {
    fn new(net: &Net) -> Self {
        let bind = |address: &str| UdpSocket::bind(address).unwrap();
        let target = net.b.run(|| bind("198.18.0.2:7077")).unwrap();
        let tester = net.a.run(|| bind("198.18.0.1:0")).unwrap();
        Self {
            a: Site::of_a(net, &Keys::new(), &Options::default()),
            target,
            tester,
        }
    }

    /// The socket is kept because of this, and the target hears nothing.
    fn keeps(&self, socket: impl Into<OwnedFd>, because: NotMigratable) -> OwnedFd {
        let outcome = self.a.move_out(socket, None).wait();
        let Ending::Kept { socket, reason, .. } = outcome.ending else {
            panic!("{outcome:?}");
        };
        let Reason::Capture(error) = &reason else {
            panic!("{reason:?}");
        };
        assert!(error.is_not_migratable());
        let tcpmig::capture::CaptureError::Socket(Error::NotMigratable(reason)) = error else {
            panic!("{error:?}");
        };
        assert_eq!(*reason, because);
        // What was sent before this datagram would be here before it.
        let to = self.target.local_addr().unwrap();
        self.tester.send_to(b"only this", to).unwrap();
        let mut heard = [0; 2000];
        let len = self.target.recv(&mut heard).unwrap();
        assert_eq!(&heard[..len], b"only this");
        socket
    }
}

kernel_test!(a_listener, || {
    let net = Net::new();
    let ears = Ears::new(&net);
    let listener = net.a.run(|| TcpListener::bind("198.18.0.80:0")).unwrap();
    let listener = listener.unwrap();
    let at = listener.local_addr().unwrap();
    let kept = ears.keeps(listener, NotMigratable::Listening);
    // It still listens.
    let peer = net.peer.run(|| TcpStream::connect(at)).unwrap().unwrap();
    let (server, _) = TcpListener::from(kept).accept().unwrap();
    both_ways(&peer, &server);
});

kernel_test!(a_udp_socket, || {
    let net = Net::new();
    let ears = Ears::new(&net);
    let udp = net.a.run(|| UdpSocket::bind("198.18.0.80:0")).unwrap();
    ears.keeps(udp.unwrap(), NotMigratable::NotTcp);
});

kernel_test!(a_file, || {
    let net = Net::new();
    let ears = Ears::new(&net);
    let file = std::fs::File::open("/dev/null").unwrap();
    ears.keeps(file, NotMigratable::NotTcp);
});

kernel_test!(a_connection_with_urgent_data, || {
    let net = Net::new();
    let ears = Ears::new(&net);
    let (mut peer, server) = net.connect(Family::V4);
    peer.write_all(b"ab").unwrap();
    let socket = socket2::SockRef::from(&peer);
    socket.send_out_of_band(b"!").unwrap();
    until("the urgent byte arrives", || {
        repair::check(server.as_fd()).is_err()
    });
    let flow = flow(&server);
    let mut server = TcpStream::from(ears.keeps(server, NotMigratable::Urgent));
    assert_eq!(ears.a.entries(flow), []);
    let mut got = [0; 2];
    server.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"ab");
    both_ways(&peer, &server);
});
