//! Connections of a VRF are bound to its device.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsFd;

use socket2::{Domain, Socket, Type};
use tcpmig_sys::lab::Host;
use tcpmig_sys::sockopt;

use crate::scene::moves;
use crate::support::{END, Net, PATIENCE, both_ways, until};
use crate::{feature_test, not_applicable};

/// Puts `eth0` of a host into a VRF with these addresses.
fn into_vrf(host: &Host, addresses: &[&str]) {
    let mut lines =
        "link add blue type vrf table 10\nlink set blue up\nlink set eth0 master blue\n".to_owned();
    for address in addresses {
        lines += &format!("addr replace {address} dev eth0 nodad\n");
    }
    host.ip(&lines).unwrap();
}

/// A connection from the peer to this address of the VRF of host A: the peer's end and the server's.
fn connect(net: &Net, service: IpAddr) -> (TcpStream, TcpStream) {
    let at = SocketAddr::new(service, 7080);
    let listen = || {
        let listener = Socket::new(Domain::for_address(at), Type::STREAM, None).unwrap();
        sockopt::set_bound_device(listener.as_fd(), "blue").unwrap();
        // The addresses of IPv6 come back a moment after a device has changed its master.
        until("the address is there", || listener.bind(&at.into()).is_ok());
        listener.listen(1).unwrap();
        listener
    };
    let listener = net.a.run(listen).unwrap();
    let connect = || TcpStream::connect_timeout(&at, PATIENCE);
    let peer = net.peer.run(connect).unwrap().unwrap();
    (peer, listener.accept().unwrap().0.into())
}

feature_test!(a_connection_of_a_vrf_moves_into_the_one_of_its_name, || {
    for service in ["198.18.0.80", "2001:2::80"] {
        let net = Net::without_service_on_b();
        if let Err(error) = net.a.ip("link add probe type vrf table 9\nlink del probe") {
            return not_applicable("VRF", error);
        }
        into_vrf(
            &net.a,
            &[
                "198.18.0.1/24",
                "198.18.0.80/24",
                "2001:2::1/64",
                "2001:2::80/64",
            ],
        );
        let (peer, server) = connect(&net, service.parse().unwrap());
        // Not before: host B would answer for the service's address.
        into_vrf(
            &net.b,
            &[
                "198.18.0.2/24",
                "198.18.0.80/32",
                "2001:2::2/64",
                "2001:2::80/128",
            ],
        );
        let ends = net.peer.count(END);
        let device = |socket: &TcpStream| sockopt::bound_device(socket.as_fd()).unwrap();
        assert_eq!(device(&server).as_deref(), Some("blue"));
        let moved = moves(&net, server);
        assert_eq!(device(&moved).as_deref(), Some("blue"));
        both_ways(&peer, &moved);
        assert_eq!(ends.packets(), 0, "RST or FIN at the peer");
    }
});
