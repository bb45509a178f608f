//! IPv6 flow labels that an application chose.

use std::net::{Ipv6Addr, SocketAddrV6, TcpListener, TcpStream};
use std::os::fd::AsFd;

use socket2::{Domain, Protocol, Socket, Type};
use tcpmig::options::Unsupported;
use tcpmig::restore::{Prepared, RestoreError};
use tcpmig_sys::lab::Host;
use tcpmig_sys::sockopt::{self, FlowLabel};

use crate::scene::{activate, arrive, build, leave, locker};
use crate::support::{END, Net, PATIENCE, both_ways, kernel_test};

const LABEL: u32 = 0x1_2345;
const EXCLUSIVE: u8 = 1;
const ANY: u8 = 255;

/// A connection that a host opens with a flow label.
fn open(host: &Host, from: &str, to: SocketAddrV6, share: u8) -> TcpStream {
    let from: Ipv6Addr = from.parse().unwrap();
    let open = || {
        let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP)).unwrap();
        socket
            .bind(&SocketAddrV6::new(from, 0, 0, 0).into())
            .unwrap();
        let leased = FlowLabel::Leased {
            label: LABEL,
            share,
        };
        sockopt::set_flow_label(socket.as_fd(), leased, *to.ip()).unwrap();
        sockopt::set_flow_info_send(socket.as_fd(), true).unwrap();
        let to = SocketAddrV6::new(*to.ip(), to.port(), LABEL.to_be(), 0);
        socket.connect_timeout(&to.into(), PATIENCE).unwrap();
        TcpStream::from(socket)
    };
    host.run(open).unwrap()
}

fn listen(host: &Host, at: &str) -> (TcpListener, SocketAddrV6) {
    let address = SocketAddrV6::new(at.parse().unwrap(), 0, 0, 0);
    let listener = host.run(|| TcpListener::bind(address).unwrap()).unwrap();
    let std::net::SocketAddr::V6(address) = listener.local_addr().unwrap() else {
        panic!("an address of IPv6");
    };
    (listener, address)
}

/// A connection from host A, which chooses the label, to the peer.
fn labelled(net: &Net, share: u8) -> (TcpStream, TcpStream) {
    let (listener, to) = listen(&net.peer, "2001:2::9");
    let ours = open(&net.a, "2001:2::80", to, share);
    let (peer, _) = listener.accept().unwrap();
    (peer, ours)
}

/// Of the packets with data; those that wake the peer after a restore are made by hand and have none.
const OTHERS: &str = "ip6 saddr 2001:2::80 tcp flags & psh != 0 ip6 flowlabel != 0x12345";

kernel_test!(a_leased_flow_label_moves, || {
    for share in [EXCLUSIVE, 2, 3, ANY] {
        let net = Net::new();
        let (peer, ours) = labelled(&net, share);
        let leased = FlowLabel::Leased {
            label: LABEL,
            share,
        };
        assert_eq!(sockopt::flow_label(ours.as_fd()).unwrap(), Some(leased));
        let image = leave(&net.a, ours);
        net.point_peer_at_b();
        let others = net.peer.count(OTHERS);
        let moved = arrive(&net.b, image.clone());
        assert_eq!(sockopt::flow_label(moved.as_fd()).unwrap(), Some(leased));
        assert!(sockopt::flow_info_send(moved.as_fd()).unwrap());
        both_ways(&peer, &moved);
        assert_eq!(others.packets(), 0, "packets with another label");
        let ends = net.peer.count(END);
        let again = leave(&net.b, moved);
        assert_eq!(again.ip(), image.ip());
        assert_eq!(ends.packets(), 0, "RST or FIN at the peer");
    }
});

kernel_test!(
    a_flow_label_that_another_leased_is_refused_or_left_out,
    || {
        let net = Net::new();
        let (peer, ours) = labelled(&net, EXCLUSIVE);
        let image = leave(&net.a, ours);
        // Somebody on host B has it for himself, to the same destination.
        let (_listener, to) = listen(&net.peer, "2001:2::9");
        let _other = open(&net.b, "2001:2::2", to, EXCLUSIVE);
        match build(&net.b, image.clone()) {
            Err(RestoreError::Option(option)) => {
                assert_eq!(option.option, "IPV6_FLOWLABEL_MGR");
                assert_eq!(option.value, "0x12345");
            }
            other => panic!("{other:?}"),
        }
        net.point_peer_at_b();
        let locks = locker(&net.b);
        let prepared = net
            .b
            .run(|| Prepared::build_with(image, &locks, PATIENCE, Unsupported::Warn))
            .unwrap();
        let restored = activate(prepared.unwrap());
        let names: Vec<_> = restored.not_set.iter().map(|one| one.option).collect();
        assert_eq!(names, ["IPV6_FLOWLABEL_MGR"]);
        let moved = TcpStream::from(restored.socket);
        assert_eq!(sockopt::flow_label(moved.as_fd()).unwrap(), None);
        both_ways(&peer, &moved);
    }
);

kernel_test!(a_reflected_flow_label_moves, || {
    let net = Net::new();
    for host in [&net.a, &net.b] {
        // Else the kernel allows no label to be reflected.
        host.set("net/ipv6/flowlabel_consistency", "0").unwrap();
    }
    let (listener, to) = listen(&net.a, "2001:2::80");
    let reflect = FlowLabel::Reflected { label: 0 };
    sockopt::set_flow_label(listener.as_fd(), reflect, Ipv6Addr::UNSPECIFIED).unwrap();
    let peer = open(&net.peer, "2001:2::9", to, ANY);
    let (server, _) = listener.accept().unwrap();
    let reflected = Some(FlowLabel::Reflected { label: LABEL });
    assert_eq!(sockopt::flow_label(server.as_fd()).unwrap(), reflected);
    let image = leave(&net.a, server);
    net.point_peer_at_b();
    let others = net.peer.count(OTHERS);
    let moved = arrive(&net.b, image.clone());
    assert_eq!(sockopt::flow_label(moved.as_fd()).unwrap(), reflected);
    assert!(!sockopt::flow_info_send(moved.as_fd()).unwrap());
    both_ways(&peer, &moved);
    assert_eq!(others.packets(), 0, "packets with another label");
    assert_eq!(leave(&net.b, moved).ip(), image.ip());
});
