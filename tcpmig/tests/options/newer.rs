//! Images of connections that lived on a newer kernel than the one that they come to.

use std::net::TcpStream;
use std::os::fd::AsFd;

use socket2::{Domain, Socket, Type};
use tcpmig::options::Unsupported;
use tcpmig::restore::{Prepared, RestoreError};
use tcpmig_format::{Image, SocketOptions, TcpImage, TimestampUnit};
use tcpmig_sys::info::tcp_info;
use tcpmig_sys::{Error, sockopt};

use crate::scene::{activate, arrive, build, leave, locker, with_options};
use crate::support::{Family, Net, PATIENCE, both_ways, kernel_test};

kernel_test!(what_every_newer_socket_says_is_taken_everywhere, || {
    let net = Net::new();
    let (peer, server) = net.connect(Family::V4);
    let image = with_options(leave(&net.a, server), |options| {
        options.tx_rehash = Some(true);
        options.rto_max = Some(120_000);
        options.rto_min = Some(200_000);
        options.delayed_ack_max = Some(200_000);
    });
    net.point_peer_at_b();
    both_ways(&peer, &arrive(&net.b, image));
});

/// Whether this kernel knows an option, asked of a new socket.
fn knows<T>(get: fn(std::os::fd::BorrowedFd<'_>) -> Result<T, Error>) -> bool {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    match get(socket.as_fd()) {
        Ok(_) => true,
        Err(Error::Unsupported { .. }) => false,
        Err(error) => panic!("{error}"),
    }
}

fn is_taken_or_refused(known: bool, text: &str, change: fn(&mut SocketOptions)) {
    let net = Net::new();
    let (peer, server) = net.connect(Family::V4);
    let image = with_options(leave(&net.a, server), change);
    net.point_peer_at_b();
    let locker_b = locker(&net.b);
    if !known {
        match build(&net.b, image.clone()) {
            Err(RestoreError::Option(option)) => {
                assert!(option.to_string().starts_with(text), "{option}");
            }
            other => panic!("{other:?}"),
        }
    }
    let lenient = net
        .b
        .run(|| Prepared::build_with(image, &locker_b, PATIENCE, Unsupported::Warn));
    let restored = activate(lenient.unwrap().unwrap());
    let named: Vec<_> = restored.not_set.iter().map(ToString::to_string).collect();
    assert_eq!(named.len(), usize::from(!known), "{named:?}");
    both_ways(&peer, &TcpStream::from(restored.socket));
}

kernel_test!(
    what_a_newer_socket_was_told_is_set_or_refused_by_name,
    || {
        let rto_max = |options: &mut SocketOptions| options.rto_max = Some(5000);
        is_taken_or_refused(knows(sockopt::rto_max), "TCP_RTO_MAX_MS=5000:", rto_max);
        let rehash = |options: &mut SocketOptions| options.tx_rehash = Some(false);
        is_taken_or_refused(knows(sockopt::tx_rehash), "SO_TXREHASH=0:", rehash);
        // Set when nothing can be refused any more, so it has to be found out before.
        let peek = |options: &mut SocketOptions| options.peek_offset = Some(0);
        is_taken_or_refused(knows(sockopt::peek_offset), "SO_PEEK_OFF=0:", peek);
    }
);

fn with_microseconds(mut image: Image) -> Image {
    let mut tcp = image.tcp().unwrap().parts().clone();
    tcp.negotiated.timestamps.as_mut().unwrap().unit = TimestampUnit::Microseconds;
    image.connection_mut().unwrap().tcp = Some(TcpImage::new(tcp).unwrap());
    image
}

kernel_test!(a_clock_of_microseconds_goes_on_or_is_refused, || {
    let net = Net::new();
    let (peer, server) = net.connect(Family::V4);
    let image = with_microseconds(leave(&net.a, server));
    net.point_peer_at_b();
    match build(&net.b, image) {
        Ok(prepared) => {
            let moved = TcpStream::from(activate(prepared).socket);
            assert!(tcp_info(moved.as_fd()).unwrap().timestamps_in_microseconds);
            both_ways(&peer, &moved);
        }
        Err(error) => {
            let text = "the unit of timestamps (microseconds need Linux 6.7) is milliseconds";
            assert!(error.to_string().contains(text), "{error}");
        }
    }
});
