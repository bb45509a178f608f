//! Connections moved between hosts of a lab, on the real kernel.
#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};

use support::{Family, Net, family, kernel_test, nft, pattern, until};
use tcpmig_sys::ends::Ends;
use tcpmig_sys::info::{State, tcp_info};
use tcpmig_sys::lab::calls;
use tcpmig_sys::options::{self, KnownOption, Seen};
use tcpmig_sys::repair::{self, ClosedSocket, FrozenSocket, QueueStart, Snapshot, write_unsent};
use tcpmig_sys::{Error, NotMigratable, fcntl, sockopt};

/// Rebuilds a snapshot on the calling thread's host.
fn rebuild(snapshot: &Snapshot, local: SocketAddr, remote: SocketAddr) -> OwnedFd {
    let closed = ClosedSocket::open(local.is_ipv6()).unwrap();
    let bound = closed.bind(local).unwrap();
    let mut restoring = bound
        .connect(
            remote,
            snapshot.queue_start(),
            snapshot.negotiated.mss_clamp,
        )
        .unwrap();
    restoring
        .negotiated(&snapshot.negotiated, snapshot.timestamp)
        .unwrap();
    restoring
        .fill_receive_queue(&snapshot.receive_queue)
        .unwrap();
    let (sent, unsent) = snapshot.sent_and_unsent();
    restoring.fill_send_queue(sent, unsent.len()).unwrap();
    restoring.window(snapshot.window).unwrap();
    restoring
        .verify(&snapshot.rebuilt_numbers(), &snapshot.negotiated)
        .unwrap();
    nft("flush ruleset");
    let fd = restoring.activate(true).unwrap();
    assert_eq!(write_unsent(fd.as_fd(), unsent).unwrap(), unsent.len());
    fd
}

/// Moves a connection with `queued` bytes waiting each way from host A to host B.
fn moves_with_queues(net: &Net, v6: bool, queued: usize) {
    let (mut peer, server) = net.connect(family(v6));
    let server: OwnedFd = server.into();
    let Ends { local, remote } = Ends::of(server.as_fd()).unwrap();

    // Fill the receive queue until the kernel says that it is there, then the send queue
    // with the peer's acknowledgements cut off.
    let up = pattern(1, queued);
    let down = pattern(2, queued);
    let mut writer = peer.try_clone().unwrap();
    let upload = std::thread::spawn({
        let up = up.clone();
        move || writer.write_all(&up)
    });
    support::until("the upload fills the receive queue", || {
        let len = sockopt::receive_queue_len(server.as_fd()).unwrap() as usize;
        len == queued || (queued > 1 << 20 && len > 1 << 20)
    });
    net.a
        .run(|| nft("table inet t { chain i { type filter hook prerouting priority raw; meta l4proto tcp drop; }; }"))
        .unwrap();
    let mut stream: TcpStream = server.into();
    stream.set_nonblocking(true).unwrap();
    let mut written = 0;
    while written < down.len() {
        match stream.write(&down[written..]) {
            Ok(n) => written += n,
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => break,
            Err(e) => panic!("{e}"),
        }
    }
    assert!(written == queued || written > 1 << 20);
    // One window left the host, and no acknowledgement comes back; the rest stays unsent.
    net.a
        .run(|| nft("table inet t { chain o { type filter hook output priority raw; meta l4proto tcp drop; }; }"))
        .unwrap();

    let frozen = FrozenSocket::freeze(stream.into()).unwrap();
    let snapshot = frozen.read().unwrap();
    assert_eq!(snapshot.send_queue, down[..written]);
    assert_eq!(snapshot.receive_queue, up[..snapshot.receive_queue.len()]);
    assert_eq!(frozen.numbers().unwrap(), snapshot.numbers);
    assert!(snapshot.unsent < written, "part of the send queue was sent");
    assert_eq!(snapshot.unsent > 0, written >= 100_000);

    net.b
        .run(|| nft("table inet t { chain o { type filter hook output priority raw; meta l4proto tcp drop; }; }"))
        .unwrap();
    frozen.discard().unwrap();
    net.point_peer_at_b();
    let restored = net.b.run(|| rebuild(&snapshot, local, remote)).unwrap();
    let mut restored: TcpStream = restored.into();
    restored.set_nonblocking(false).unwrap();
    assert_eq!(
        tcp_info(restored.as_fd()).unwrap().state,
        State::Established
    );
    assert_eq!(sockopt::reuse_addr(restored.as_fd()).unwrap(), 1);
    assert_eq!(sockopt::buffer_lock(restored.as_fd()).unwrap() & 2, 0);

    let mut got = vec![0; written];
    peer.read_exact(&mut got).unwrap();
    assert!(
        got == down[..written],
        "the peer reads other bytes than were written"
    );
    let mut got = vec![0; up.len()];
    restored.read_exact(&mut got).unwrap();
    assert!(
        got == up,
        "the application reads other bytes than the peer wrote"
    );
    upload.join().unwrap().unwrap();
    both_ways(&peer, &restored);
}

fn both_ways(a: &TcpStream, b: &TcpStream) {
    for round in 0..10_u8 {
        for (mut from, mut to) in [(a, b), (b, a)] {
            let sent = pattern(u64::from(round), 1000);
            from.write_all(&sent).unwrap();
            let mut got = vec![0; sent.len()];
            to.read_exact(&mut got).unwrap();
            assert!(got == sent);
        }
    }
}

kernel_test!(an_ipv4_connection_moves_with_empty_queues, || {
    moves_with_queues(&Net::new(), false, 1);
});

kernel_test!(an_ipv4_connection_moves_with_its_queues, || {
    moves_with_queues(&Net::new(), false, 100_000);
});

kernel_test!(an_ipv6_connection_moves_with_its_queues, || {
    moves_with_queues(&Net::new(), true, 100_000);
});

kernel_test!(queues_of_several_mebibytes_move, || {
    moves_with_queues(&Net::new(), false, 6 << 20);
    moves_with_queues(&Net::new(), true, 6 << 20);
});

kernel_test!(dropping_a_frozen_connection_thaws_it, || {
    let net = Net::new();
    for reuse in [0, 1] {
        let (mut peer, mut server) = net.connect(Family::V4);
        sockopt::set_reuse_addr(server.as_fd(), reuse).unwrap();
        let twin = server.try_clone().unwrap();
        peer.write_all(b"before").unwrap();
        let frozen = FrozenSocket::freeze(twin.into()).unwrap();
        let refused = server.read(&mut [0; 16]).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
        drop(frozen);
        assert!(!sockopt::repair(server.as_fd()).unwrap());
        assert_eq!(sockopt::reuse_addr(server.as_fd()).unwrap(), reuse);
        let mut got = [0; 6];
        server.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"before");
        both_ways(&peer, &server);
    }
});

kernel_test!(discarding_sends_nothing, || {
    let net = Net::new();
    let (mut peer, server) = net.connect(Family::V4);
    net.peer
        .run(|| nft("table inet t { counter n { }; chain i { type filter hook prerouting priority raw; tcp flags & (fin | rst) != 0 counter name n; }; }"))
        .unwrap();
    // With unread data and with a second descriptor, which would otherwise keep it.
    peer.write_all(b"unread").unwrap();
    support::until("the data arrives", || {
        sockopt::receive_queue_len(server.as_fd()).unwrap() == 6
    });
    let twin = server.try_clone().unwrap();
    FrozenSocket::freeze(server.into())
        .unwrap()
        .discard()
        .unwrap();
    assert_eq!(tcp_info(twin.as_fd()).unwrap().state, State::Close);
    drop(twin);
    // Another connection between the same hosts shows that packets would have arrived by now.
    let (other, end) = net.connect(Family::V4);
    both_ways(&other, &end);
    assert_eq!(tcp_info(peer.as_fd()).unwrap().state, State::Established);
    let counted = net.peer.run(|| nft("list counter inet t n")).unwrap();
    assert!(counted.contains("packets 0 "), "{counted}");
});

kernel_test!(what_cannot_be_moved_is_refused_untouched, || {
    let net = Net::new();
    let refusal = |fd: OwnedFd| match FrozenSocket::freeze(fd) {
        Err(error) => match error.error {
            Error::NotMigratable(reason) => (error.fd, reason),
            other => panic!("{other}"),
        },
        Ok(frozen) => panic!("{frozen:?} was frozen"),
    };
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    assert_eq!(refusal(udp.into()).1, NotMigratable::NotTcp);
    let file = std::fs::File::open("/dev/null").unwrap();
    assert_eq!(refusal(file.into()).1, NotMigratable::NotTcp);

    net.a
        .run(|| {
            let listener = TcpListener::bind("198.18.0.80:9").unwrap();
            let (fd, reason) = refusal(listener.into());
            assert_eq!(reason, NotMigratable::Listening);
            assert!(!sockopt::repair(fd.as_fd()).unwrap());
            let mptcp = socket2::Socket::new(
                socket2::Domain::IPV4,
                socket2::Type::STREAM,
                Some(socket2::Protocol::MPTCP),
            )
            .unwrap();
            assert_eq!(refusal(mptcp.into()).1, NotMigratable::Mptcp);
        })
        .unwrap();

    let (mut peer, mut server) = net.connect(Family::V4);
    peer.write_all(b"ab").unwrap();
    socket2::SockRef::from(&peer)
        .send_out_of_band(b"!")
        .unwrap();
    support::until("the urgent byte arrives", || {
        repair::check(server.as_fd()).is_err()
    });
    let (fd, reason) = refusal(server.try_clone().unwrap().into());
    assert_eq!(reason, NotMigratable::Urgent);
    drop(fd);
    let mut got = [0; 2];
    server.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"ab");

    // No connection was ever opened, or it was refused.
    let tcp = || socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let fresh = net.peer.run(tcp).unwrap();
    let (_, reason) = refusal(fresh.into());
    assert_eq!(reason, NotMigratable::State(State::Close));
    let refused = net.peer.run(tcp).unwrap();
    refused.set_nonblocking(true).unwrap();
    let nobody: std::net::SocketAddr = "198.18.0.80:9".parse().unwrap();
    refused.connect(&nobody.into()).unwrap_err();
    support::until("the connection is refused", || {
        tcp_info(refused.as_fd()).unwrap().state == State::Close
    });
    let (fd, reason) = refusal(refused.into());
    assert_eq!(reason, NotMigratable::State(State::Close));
    let error = sockopt::take_error(fd.as_fd()).unwrap().unwrap();
    assert_eq!(error.raw_os_error(), Some(libc::ECONNREFUSED));

    // Somebody else's repair is left on.
    let (_peer, server) = net.connect(Family::V4);
    sockopt::set_repair(server.as_fd(), sockopt::Repair::On).unwrap();
    let (fd, reason) = refusal(server.into());
    assert_eq!(reason, NotMigratable::InRepairMode);
    assert!(sockopt::repair(fd.as_fd()).unwrap());
});

// What one answer of the kernel tells has to be what each option says when it is asked.
kernel_test!(
    what_the_kernel_tells_at_once_is_what_the_options_say,
    || {
        let net = Net::new();
        for v6 in [false, true] {
            let (_peer, server) = net.connect(family(v6));
            let server: OwnedFd = server.into();
            let fd = server.as_fd();
            let compare = || {
                let Seen {
                    ends,
                    bound_device,
                    filter,
                    told,
                    ..
                } = options::check_further(fd).unwrap();
                assert_eq!(ends, Ends::of(fd).unwrap());
                assert_eq!(bound_device, sockopt::bound_device(fd).unwrap());
                assert_eq!(filter, sockopt::filter(fd).unwrap());
                let mut values = Vec::new();
                for option in options::all() {
                    if let Some(value) = told.value(option) {
                        let is = if option.value == Some(options::Kind::Flag) {
                            u32::from(sockopt::get::<bool>(fd, option).unwrap())
                        } else {
                            sockopt::get::<i32>(fd, option).unwrap().cast_unsigned()
                        };
                        assert_eq!(value, is, "{}", option.name);
                        values.push(value);
                    }
                }
                // The kernel told them: the socket was not asked.
                let (switches, calls) = calls::made(|| {
                    [
                        told.transparent(fd, v6).unwrap(),
                        told.freebind(fd, v6).unwrap(),
                        told.read_shut(fd).unwrap(),
                    ]
                });
                let (numbers, more) = calls::made(|| {
                    [
                        told.mark(fd).unwrap(),
                        told.receive_buffer(fd).unwrap(),
                        told.send_buffer(fd).unwrap(),
                    ]
                });
                let (congestion, most) = calls::made(|| told.congestion(fd).unwrap());
                let asked = [calls, more, most].concat();
                let is_transparent = match v6 {
                    true => sockopt::transparent_v6(fd),
                    false => sockopt::transparent(fd),
                };
                let is_freebind = match v6 {
                    true => sockopt::freebind_v6(fd),
                    false => sockopt::freebind(fd),
                };
                let shut = fcntl::read_shut(fd).unwrap();
                assert_eq!(
                    switches,
                    [is_transparent.unwrap(), is_freebind.unwrap(), shut]
                );
                assert_eq!(
                    numbers,
                    [
                        sockopt::mark(fd).unwrap(),
                        sockopt::receive_buffer(fd).unwrap(),
                        sockopt::send_buffer(fd).unwrap()
                    ]
                );
                assert_eq!(congestion, sockopt::congestion(fd).unwrap());
                // A direction that is shut is looked at again: a FIN may have come meanwhile.
                assert_eq!(asked.is_empty(), !shut, "{asked:?}");
                (values, switches, numbers, congestion)
            };
            let before = net.a.run(compare).unwrap();
            if v6 {
                sockopt::set_transparent_v6(fd, true).unwrap();
                sockopt::set_freebind_v6(fd, true).unwrap();
            } else {
                sockopt::set_transparent(fd, true).unwrap();
                sockopt::set_freebind(fd, true).unwrap();
            }
            for (name, value) in [
                ("IP_TOS", 0x28),
                ("IPV6_TCLASS", 0x2c),
                ("IP_RECVERR", 1),
                ("IP_BIND_ADDRESS_NO_PORT", 1),
            ] {
                let option = KnownOption::of(name);
                if option.value == Some(options::Kind::Flag) {
                    sockopt::set(fd, option, value != 0).unwrap();
                } else if v6 || option.level != options::Level::Ipv6 {
                    sockopt::set(fd, option, value).unwrap();
                }
            }
            sockopt::set_mark(fd, 7).unwrap();
            sockopt::set_receive_buffer(fd, 100_000).unwrap();
            sockopt::set_send_buffer(fd, 50_000).unwrap();
            sockopt::set_congestion(fd, "reno").unwrap();
            fcntl::shut_read(fd).unwrap();
            let after = net.a.run(compare).unwrap();
            assert_eq!(before.0.len(), after.0.len());
            assert!(before.0.iter().zip(&after.0).all(|(was, is)| was != is));
            assert_eq!((before.1, after.1), ([false; 3], [true; 3]));
            assert!(before.2.iter().zip(&after.2).all(|(was, is)| was != is));
        }
    }
);

kernel_test!(the_same_connection_cannot_live_here_twice, || {
    let net = Net::new();
    let (peer, server) = net.connect(Family::V4);
    let Ends { local, remote } = Ends::of(server.as_fd()).unwrap();
    net.a
        .run(|| {
            let bound = ClosedSocket::open(false).unwrap().bind(local).unwrap();
            let start = QueueStart {
                snd_una: 1,
                copied_seq: 1,
            };
            let error = bound.connect(remote, start, 1460).unwrap_err();
            assert_eq!(error.errno(), Some(libc::EADDRNOTAVAIL));
            assert!(error.to_string().contains("lives here already"), "{error}");
        })
        .unwrap();
    both_ways(&peer, &server);
});

kernel_test!(a_restored_connection_sends_full_segments_at_once, || {
    let net = Net::new();
    let (_peer, server) = net.connect(Family::V4);
    let before = tcp_info(server.as_fd()).unwrap().snd_mss;
    let Ends { local, remote } = Ends::of(server.as_fd()).unwrap();
    let frozen = FrozenSocket::freeze(server.into()).unwrap();
    let snapshot = frozen.read().unwrap();
    frozen.discard().unwrap();
    let restored = net.a.run(|| rebuild(&snapshot, local, remote)).unwrap();
    assert_eq!(tcp_info(restored.as_fd()).unwrap().snd_mss, before);
});

kernel_test!(a_descriptor_can_be_taken_from_a_paused_process, || {
    use std::os::fd::AsRawFd;
    let net = Net::new();
    let (mut peer, server) = net.connect(Family::V4);
    // `cat` inherits the connection as its standard input.
    let mut child = std::process::Command::new("cat")
        .stdin(OwnedFd::from(server))
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let process = tcpmig_sys::process::take::Process::open(child.id()).unwrap();
    let taken = process.descriptor(0).unwrap();
    let holders = || tcpmig_sys::process::pause::Holders::of(taken.as_fd()).unwrap();
    // What another test starts has copies of all descriptors until it is another program.
    until("cat alone has it", || holders().pids().eq([child.id()]));
    let mut holders = holders();
    let paused = holders.pause().unwrap();
    assert!(taken.as_raw_fd() > 2);
    let frozen = FrozenSocket::freeze(taken).unwrap();
    assert_eq!(frozen.numbers().unwrap().state, State::Established);
    drop(frozen);
    drop(paused);
    peer.write_all(b"goes on").unwrap();
    peer.shutdown(std::net::Shutdown::Write).unwrap();
    until("cat ends", || child.try_wait().unwrap().is_some());
    assert!(process.descriptor(0).is_err());
});
