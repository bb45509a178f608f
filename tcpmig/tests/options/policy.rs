//! Options that the target cannot honour.

use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};

use tcpmig::capture::{Frozen, Plan};
use tcpmig::driver::policy::Rules;
use tcpmig::driver::{Ending, Options};
use tcpmig::handover::{HandoverId, Message};
use tcpmig::options::{NotSet, Unsupported};
use tcpmig::restore::{Prepared, RestoreError, Restored};
use tcpmig_format::Image;
use tcpmig_sys::lab::Host;
use tcpmig_sys::{Error, sockopt};

use crate::addresses::{link_local, take_link_local_to_b};
use crate::scene::{activate, arrive, build, leave, locker, with_options};
use crate::support::{
    END, Family, Net, PATIENCE, Site, Talk, both_ways, flow, kept, kernel_test, until,
};

const MISSING: &str = "elsewhere";
const NO_CONGESTION: &str = "TCP_CONGESTION=elsewhere: this host does not have it (ENOENT)";
const NO_DEVICE: &str = "SO_BINDTODEVICE=eth0: this host has no such device (ENODEV)";

fn with_missing_congestion(image: Image) -> Image {
    with_options(image, |options| {
        options.congestion = Some(MISSING.to_owned());
    })
}

fn build_leniently(host: &Host, image: Image) -> Result<Prepared, RestoreError> {
    let locker = locker(host);
    host.run(|| Prepared::build_with(image, &locker, PATIENCE, Unsupported::Warn))
        .unwrap()
}

fn refused(host: &Host, image: Image) -> NotSet {
    match build(host, image) {
        Err(RestoreError::Option(option)) => option,
        other => panic!("{other:?}"),
    }
}

fn texts(restored: &Restored) -> Vec<String> {
    restored.not_set.iter().map(ToString::to_string).collect()
}

kernel_test!(a_missing_congestion_control_refuses_or_is_left_out, || {
    for family in [Family::V4, Family::V6] {
        let net = Net::new();
        let (peer, server) = net.connect(family);
        let ends = net.peer.count(END);
        let image = with_missing_congestion(leave(&net.a, server));
        net.point_peer_at_b();
        let option = refused(&net.b, image.clone());
        assert_eq!(option.option, "TCP_CONGESTION");
        assert_eq!(option.value, MISSING);
        assert_eq!(option.to_string(), NO_CONGESTION);

        let restored = activate(build_leniently(&net.b, image).unwrap());
        assert_eq!(texts(&restored), [NO_CONGESTION]);
        let moved = TcpStream::from(restored.socket);
        assert_ne!(sockopt::congestion(moved.as_fd()).unwrap(), MISSING);
        both_ways(&peer, &moved);
        assert_eq!(ends.packets(), 0, "RST or FIN at the peer");
    }
});

kernel_test!(several_missing_options_are_all_named, || {
    let net = Net::new();
    let (peer, server) = net.connect(Family::V4);
    let mut image = with_missing_congestion(leave(&net.a, server));
    image.ip_mut().unwrap().bound_device = Some(MISSING.to_owned());
    net.point_peer_at_b();
    let restored = activate(build_leniently(&net.b, image).unwrap());
    let no_device = "SO_BINDTODEVICE=elsewhere: this host has no such device (ENODEV)";
    assert_eq!(texts(&restored), [no_device, NO_CONGESTION]);
    both_ways(&peer, &TcpStream::from(restored.socket));
});

/// Host B, whose device has another name.
fn renamed() -> Net {
    let net = Net::new();
    net.b
        .ip("link set eth0 down
             link set eth0 name nic0
             link set nic0 up
             addr replace 198.18.0.2/24 dev nic0
             addr replace 2001:2::2/64 dev nic0 nodad")
        .unwrap();
    net.b.wait_for("nic0").unwrap();
    net
}

kernel_test!(
    a_handover_to_a_host_without_the_device_is_refused_by_name,
    || {
        let net = renamed();
        let (a, b) = Site::pair(&net, &Options::default());
        b.serve_on(Rules::new().device("eth0"));
        let (peer, server) = net.connect(Family::V4);
        let ends = net.peer.count(END);
        let flow = flow(&server);
        sockopt::set_bound_device(server.as_fd(), "eth0").unwrap();
        let (server, reason) = kept(a.move_out(server, None).wait());
        assert!(reason.contains(NO_DEVICE), "{reason}");
        both_ways(&peer, &server);
        b.no_arrival();
        until("the target unlocks", || b.entries(flow).is_empty());
        assert_eq!(ends.packets(), 0, "RST or FIN at the peer");
    }
);

kernel_test!(
    a_handover_to_a_host_without_the_device_leaves_it_out_by_choice,
    || {
        for family in [Family::V4, Family::V6] {
            let net = renamed();
            let mut options = Options::default();
            options.unsupported = Unsupported::Warn;
            let (a, b) = Site::pair(&net, &options);
            b.serve_on(Rules::new().device("eth0"));
            let (peer, server) = net.connect(family);
            let ends = net.peer.count(END);
            sockopt::set_bound_device(server.as_fd(), "eth0").unwrap();
            let outcome = a.move_out(server, None).wait();
            assert!(matches!(outcome.ending, Ending::Moved), "{outcome:?}");
            let arrived = b.arrival();
            let names: Vec<_> = arrived.not_set.iter().map(ToString::to_string).collect();
            assert_eq!(names, [NO_DEVICE]);
            let moved = TcpStream::from(arrived.socket);
            assert_eq!(sockopt::bound_device(moved.as_fd()).unwrap(), None);
            both_ways(&peer, &moved);
            assert_eq!(ends.packets(), 0, "RST or FIN at the peer");
        }
    }
);

kernel_test!(
    an_offer_with_a_missing_congestion_control_is_refused_by_name,
    || {
        let net = Net::new();
        let (a, b) = Site::pair(&net, &Options::default());
        b.serve();
        let (peer, server) = net.connect(Family::V4);
        let socket: OwnedFd = server.into();
        let (socket, answer) = a.call(|here| async move {
            let plan = Plan::read(socket.as_fd()).unwrap();
            let lease = here.options.lease;
            let mut frozen = Frozen::freeze(socket, plan, &*here.locker, lease).unwrap();
            let image = with_missing_congestion(frozen.capture(None).unwrap());
            let mut talk = Talk::with_other(&here).await;
            let id = HandoverId::random().unwrap();
            let image = image.encode().unwrap().into();
            let answer = talk.give(id, image).await;
            (frozen.keep().unwrap(), answer)
        });
        let Message::Refused { reason, .. } = answer else {
            panic!("{answer:?}");
        };
        assert_eq!(reason, NO_CONGESTION);
        both_ways(&peer, &socket.into());
    }
);

kernel_test!(no_policy_leaves_out_the_scope_of_an_address, || {
    let net = Net::new();
    let (peer, server) = link_local(&net);
    let image = leave(&net.a, server);
    take_link_local_to_b(&net);
    let mut elsewhere = image.clone();
    elsewhere.ip_mut().unwrap().scope = Some(MISSING.to_owned());
    match build_leniently(&net.b, elsewhere) {
        Err(RestoreError::Socket(Error::Call { call, .. })) => assert_eq!(call, "if_nametoindex"),
        other => panic!("{other:?}"),
    }
    both_ways(&peer, &arrive(&net.b, image));
});

// Busy polling is for those who may do so on the host itself.
kernel_test!(
    busy_polling_moves_with_the_privilege_and_is_refused_without,
    || {
        let net = Net::new();
        let (peer, server) = net.connect(Family::V4);
        let probe = net.b.run(|| std::net::UdpSocket::bind("127.0.0.1:0"));
        let probe = probe.unwrap().unwrap();
        let polls = sockopt::set_busy_poll(probe.as_fd(), 50);
        let prefers = sockopt::set_prefer_busy_poll(probe.as_fd(), true);
        let may = [
            ("SO_BUSY_POLL=50", polls),
            ("SO_PREFER_BUSY_POLL=1", prefers),
        ];
        let denied: Vec<String> = may
            .into_iter()
            .filter_map(|(named, may)| match may {
                Ok(()) => None,
                Err(Error::NoPermission { .. }) => {
                    Some(format!("{named}: this process may not set it (EPERM)"))
                }
                Err(error) => panic!("{named}: {error}"),
            })
            .collect();
        let image = with_options(leave(&net.a, server), |options| {
            options.busy_poll = Some(50);
            options.prefer_busy_poll = Some(true);
        });
        net.point_peer_at_b();
        if let Some(first) = denied.first() {
            assert_eq!(refused(&net.b, image.clone()).to_string(), *first);
        }
        let restored = activate(build_leniently(&net.b, image).unwrap());
        assert_eq!(texts(&restored), denied);
        let moved = TcpStream::from(restored.socket);
        if denied.is_empty() {
            assert_eq!(sockopt::busy_poll(moved.as_fd()).unwrap(), 50);
            assert!(sockopt::prefer_busy_poll(moved.as_fd()).unwrap());
        }
        both_ways(&peer, &moved);
    }
);

// A buffer that the application asked for, larger than the target lets anybody ask for.
kernel_test!(
    a_buffer_above_the_limit_moves_with_the_privilege_and_is_reported_without,
    || {
        const BYTES: u32 = 64 << 20;
        let net = Net::new();
        let (peer, server) = net.connect(Family::V4);
        let probe = net
            .b
            .run(|| std::net::UdpSocket::bind("127.0.0.1:0"))
            .unwrap()
            .unwrap();
        let may = sockopt::force_receive_buffer(probe.as_fd(), 1 << 20);
        let image = with_options(leave(&net.a, server), |options| {
            options.buffer_lock = Some(3);
            options.receive_buffer = Some(BYTES);
            options.send_buffer = Some(BYTES);
        });
        net.point_peer_at_b();
        let restored = activate(build(&net.b, image).unwrap());
        let fd = restored.socket.as_fd();
        let sizes = [
            sockopt::send_buffer(fd).unwrap(),
            sockopt::receive_buffer(fd).unwrap(),
        ];
        match may {
            Ok(()) => {
                assert_eq!(texts(&restored), [""; 0]);
                assert_eq!(sizes, [BYTES; 2]);
            }
            Err(_) => {
                assert_eq!(
                    texts(&restored),
                    [
                        "SO_SNDBUF=67108864: above net.core.wmem_max of this host (EPERM)",
                        "SO_RCVBUF=67108864: above net.core.rmem_max of this host (EPERM)"
                    ]
                );
                assert!(sizes.iter().all(|&size| size < BYTES), "{sizes:?}");
            }
        }
        assert_eq!(sockopt::buffer_lock(fd).unwrap(), 3);
        both_ways(&peer, &TcpStream::from(restored.socket));
    }
);
