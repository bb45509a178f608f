//! Making endpoints and connections, and what stands in the way.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use tcpmig_transport::{Endpoint, TransportError, TransportLimits};

use crate::support::{
    SOURCE, TARGET, authority, host, host_at, identity, in_time, loopback, trust,
};

#[tokio::test]
async fn nobody_there_is_unreachable() {
    let mut limits = TransportLimits::default();
    limits.handshake = Duration::from_millis(300);
    let source = host_at(loopback(), &authority(), SOURCE, limits);
    let silent = UdpSocket::bind(loopback()).expect("bound");
    let address = silent.local_addr().expect("bound");
    let connected = in_time(source.connect(address, TARGET)).await;
    assert!(matches!(connected, Err(TransportError::Unreachable { .. })));
    let other_family = "[::1]:9".parse().expect("valid");
    let connected = in_time(source.connect(other_family, TARGET)).await;
    assert!(matches!(connected, Err(TransportError::Unreachable { .. })));
}

#[tokio::test]
async fn a_host_that_does_not_accept_is_unreachable() {
    // It answers packets only while `accept` runs, which is never called.
    let authority = authority();
    let mut limits = TransportLimits::default();
    limits.handshake = Duration::from_millis(300);
    let source = host_at(loopback(), &authority, SOURCE, limits);
    let target = host(&authority, TARGET);
    let connected = in_time(source.connect(target.local_addr().expect("bound"), TARGET)).await;
    assert!(matches!(connected, Err(TransportError::Unreachable { .. })));
}

/// Passes the first datagram of a connecting host on to `target`, and none of its later ones; all
/// that comes back is passed on.
async fn muffle(target: SocketAddr) -> SocketAddr {
    let relay = tokio::net::UdpSocket::bind(loopback())
        .await
        .expect("bound");
    let address = relay.local_addr().expect("bound");
    tokio::spawn(async move {
        let mut datagram = vec![0; 65_536];
        let (len, source) = relay.recv_from(&mut datagram).await?;
        relay.send_to(&datagram[..len], target).await?;
        loop {
            let (len, from) = relay.recv_from(&mut datagram).await?;
            if from == target {
                relay.send_to(&datagram[..len], source).await?;
            }
        }
        #[expect(unreachable_code, reason = "gives the block its type")]
        Ok::<_, std::io::Error>(())
    });
    address
}

#[tokio::test]
async fn a_host_that_falls_silent_delays_no_other_and_times_out() {
    let authority = authority();
    let mut limits = TransportLimits::default();
    limits.handshake = Duration::from_millis(1500);
    let target = host_at(loopback(), &authority, TARGET, limits.clone());
    let silent = host_at(loopback(), &authority, "silent.example", limits);
    let source = host(&authority, SOURCE);
    let address = target.local_addr().expect("bound");
    let muffled = muffle(address).await;

    let falling_silent = tokio::spawn(async move { silent.connect(muffled, TARGET).await });
    let first = tokio::spawn({
        let target = target.clone();
        async move { target.accept().await }
    });
    let (connected, first) =
        in_time(async { tokio::join!(source.connect(address, TARGET), first) }).await;
    connected.expect("let in");
    let first = first.expect("no panic").expect("open").expect("let in");
    assert_eq!(first.name(), SOURCE);

    let second = in_time(target.accept()).await.expect("open");
    assert!(matches!(
        second,
        Err(TransportError::HandshakeTimeout { .. })
    ));
    let connected = in_time(falling_silent).await.expect("no panic");
    assert!(
        matches!(connected, Err(TransportError::HandshakeTimeout { .. })),
        "{connected:?}"
    );
}

#[tokio::test]
async fn an_ipv6_wildcard_serves_ipv4_under_its_own_address() {
    let authority = authority();
    let wildcard = "[::]:0".parse().expect("valid");
    let target = host_at(wildcard, &authority, TARGET, TransportLimits::default());
    let source = host(&authority, SOURCE);
    let port = target.local_addr().expect("bound").port();
    let (connected, accepted) = in_time(async {
        tokio::join!(
            source.connect(SocketAddr::from(([127, 0, 0, 1], port)), TARGET),
            target.accept()
        )
    })
    .await;
    connected.expect("let in");
    let accepted = accepted.expect("open").expect("let in");
    assert_eq!(accepted.address(), source.local_addr().expect("bound"));
}

#[tokio::test]
async fn a_socket_that_is_bound_already_is_used() {
    let authority = authority();
    let issued = authority.issue(SOURCE).expect("issued");
    let socket = UdpSocket::bind(loopback()).expect("bound");
    let address = socket.local_addr().expect("bound");
    let endpoint = Endpoint::from_socket(
        socket,
        &identity(&issued),
        &trust(&authority),
        TransportLimits::default(),
    )
    .expect("usable");
    assert_eq!(endpoint.local_addr().expect("bound"), address);
}

#[test]
fn outside_of_a_runtime_is_an_error() {
    let authority = authority();
    let issued = authority.issue(SOURCE).expect("issued");
    let bound = Endpoint::bind(
        loopback(),
        &identity(&issued),
        &trust(&authority),
        TransportLimits::default(),
    );
    assert!(matches!(bound, Err(TransportError::Socket { .. })));
}

#[tokio::test]
async fn limits_that_quic_cannot_express_are_refused() {
    let authority = authority();
    let issued = authority.issue(SOURCE).expect("issued");
    let wrong: [fn(&mut TransportLimits); 7] = [
        |limits| {
            (limits.idle, limits.keep_alive) = (Duration::from_secs(1), Duration::from_secs(1));
        },
        |limits| limits.handshake = Duration::ZERO,
        |limits| limits.handshake = Duration::MAX,
        |limits| limits.idle = Duration::MAX,
        |limits| limits.max_handshakes = 0,
        |limits| limits.max_handshakes_per_address = 0,
        |limits| limits.crowded_handshake = Duration::ZERO,
    ];
    for make_wrong in wrong {
        let mut limits = TransportLimits::default();
        make_wrong(&mut limits);
        let bound = Endpoint::bind(loopback(), &identity(&issued), &trust(&authority), limits);
        assert!(matches!(bound, Err(TransportError::Limit { .. })));
    }
    let taken = UdpSocket::bind(loopback()).expect("bound");
    let bound = Endpoint::bind(
        taken.local_addr().expect("bound"),
        &identity(&issued),
        &trust(&authority),
        TransportLimits::default(),
    );
    assert!(matches!(bound, Err(TransportError::Bind { .. })));
}
