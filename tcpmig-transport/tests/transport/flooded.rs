//! Hosts that connect while others knock without end: strangers that hear nothing, ones at the host's own address, ones
//! that show their address and then fall silent.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use bytes::Bytes;
use tcpmig_transport::keys::Authority;
use tcpmig_transport::{Endpoint, Exchange, Knocks, Peer, TransportError, TransportLimits, Trust};

use crate::flood::{Flood, Kind, Knocker, retry, stranger};
use crate::support::{TARGET, authorities, authority, host_at, identity, loopback};

/// Hosts that connect during a flood.
const HOSTS: usize = 20;
/// No test takes that long.
const PATIENCE: Duration = Duration::from_secs(300);

async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("done in time")
}

/// Waits for what others do.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let held = tokio::time::timeout(PATIENCE, waiting).await;
    held.unwrap_or_else(|_| panic!("not in time: {what}"));
}

/// What the hosts of these tests allow: more time than a busy machine takes.
fn patient() -> TransportLimits {
    let mut limits = TransportLimits::default();
    limits.handshake = Duration::from_secs(60);
    limits
}

/// A host on which others knock, which lets everybody in who may and answers each frame with itself.
struct Knocked {
    authority: Authority,
    target: Endpoint,
    address: SocketAddr,
}

fn knocked(limits: TransportLimits) -> Knocked {
    let authority = authority();
    let target = host_at(loopback(), &authority, TARGET, limits);
    let address = target.local_addr().expect("bound");
    tokio::spawn({
        let target = target.clone();
        async move {
            while let Some(peer) = target.accept().await {
                if let Ok(peer) = peer {
                    tokio::spawn(answer(peer));
                }
            }
        }
    });
    Knocked {
        authority,
        target,
        address,
    }
}

async fn answer(peer: Peer) {
    while let Some(Ok(mut exchange)) = peer.accept().await {
        while let Ok(Some(frame)) = exchange.recv().await {
            if exchange.send(frame).await.is_err() {
                return;
            }
        }
    }
}

impl Knocked {
    fn host(&self, number: usize) -> Endpoint {
        let name = format!("source{number}.example");
        host_at(loopback(), &self.authority, &name, patient())
    }

    async fn connect(&self, host: &Endpoint) -> Result<Peer, TransportError> {
        in_time(host.connect(self.address, TARGET)).await
    }

    fn flood(&self, kind: Kind) -> Flood {
        Flood::begin(kind, self.address, TARGET).expect("sockets")
    }

    fn knocks(&self) -> Knocks {
        self.target.knocks()
    }

    /// All hosts connect, one after the other, and a connection from before goes on, while the flood does.
    async fn all_connect(&self, flood: &Flood, (before, exchange): (&Peer, &mut Exchange)) {
        let mut failed = Vec::new();
        for number in 0..HOSTS {
            let sent = flood.sent();
            let source = self.host(number);
            match self.connect(&source).await {
                Ok(peer) => {
                    let mut exchange = in_time(peer.open()).await.expect("opened");
                    there_and_back(&mut exchange).await;
                }
                Err(error) => failed.push(format!("{number}: {error}")),
            }
            there_and_back(exchange).await;
            until("the flood goes on", || flood.sent() >= sent + 100).await;
        }
        assert!(!before.is_closed());
        let knocks = self.knocks();
        assert!(failed.is_empty(), "{failed:#?} {knocks:?}");
    }
}

async fn there_and_back(exchange: &mut Exchange) {
    let frame = Bytes::from_static(b"there and back");
    in_time(exchange.send(frame.clone())).await.expect("sent");
    let back = in_time(exchange.recv()).await.expect("received");
    assert_eq!(back, Some(frame));
}

/// A connection from before the flood.
async fn established(knocked: &Knocked) -> (Endpoint, Peer, Exchange) {
    let source = host_at(loopback(), &knocked.authority, "before.example", patient());
    let peer = knocked.connect(&source).await.expect("let in");
    let mut exchange = peer.open().await.expect("opened");
    there_and_back(&mut exchange).await;
    (source, peer, exchange)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_connect_while_strangers_that_hear_nothing_knock() {
    let mut limits = TransportLimits::default();
    limits.handshake = Duration::from_secs(20);
    let knocked = knocked(limits.clone());
    let (_source, before, mut exchange) = established(&knocked).await;
    let flood = knocked.flood(Kind::deaf(200, 750));
    until("more knock than may at once", || {
        knocked.knocks().retried > 200
    })
    .await;
    knocked.all_connect(&flood, (&before, &mut exchange)).await;

    // Hardly more than the few that may begin without showing their address.
    let knocks = knocked.knocks();
    assert!(
        knocks.most_under_way <= limits.retry_above + 2,
        "{knocks:?}"
    );
    // And what of them ended within the last seconds, of which QUIC keeps the name.
    assert!(
        knocks.connections <= 3 * limits.retry_above + HOSTS + 1,
        "{knocks:?}"
    );
    drop(flood);
    until("nothing is left", || knocked.knocks().under_way == 0).await;
    // No round trip more when it is over.
    let retried = knocked.knocks().retried;
    let source = knocked.host(HOSTS);
    knocked.connect(&source).await.expect("let in");
    assert_eq!(knocked.knocks().retried, retried);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_connect_while_their_own_address_knocks() {
    let knocked = knocked(patient());
    let (_source, before, mut exchange) = established(&knocked).await;
    let flood = knocked.flood(Kind {
        from: vec![Ipv4Addr::LOCALHOST; 50],
        rate: 750,
        listens: false,
    });
    until("more knock than may at once", || {
        knocked.knocks().retried > 200
    })
    .await;
    knocked.all_connect(&flood, (&before, &mut exchange)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_connect_while_others_show_their_address_and_fall_silent() {
    // As many as take all places that they can get; those are more than the hosts that may connect.
    let mut limits = TransportLimits::default();
    limits.max_connections = HOSTS + 1;
    limits.max_handshakes = 64;
    limits.max_handshakes_per_address = 8;
    limits.handshake = Duration::from_secs(20);
    let knocked = knocked(limits.clone());
    let (_source, before, mut exchange) = established(&knocked).await;
    let flood = knocked.flood(Kind {
        from: (0..12).flat_map(|i| [stranger(i); 8]).collect(),
        rate: 750,
        listens: true,
    });
    until("they have their places", || {
        let knocks = knocked.knocks();
        knocks.ignored > 100 && knocks.made_way > 0
    })
    .await;
    knocked.all_connect(&flood, (&before, &mut exchange)).await;
    let knocks = knocked.knocks();
    let most = limits.max_handshakes + limits.retry_above;
    assert!(knocks.most_under_way <= most, "{knocks:?}");
    let connections = 2 * limits.max_handshakes + limits.max_connections;
    assert!(knocks.connections <= connections, "{knocks:?}");
    drop(flood);
    until("nothing is left", || knocked.knocks().under_way == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_gets_no_more_than_its_share() {
    let mut limits = patient();
    limits.retry_above = 0;
    limits.max_handshakes_per_address = 5;
    let knocked = knocked(limits.clone());
    let (_source, before, mut exchange) = established(&knocked).await;
    let flood = knocked.flood(Kind {
        from: vec![stranger(0); 40],
        rate: 750,
        listens: true,
    });
    until("its share is full", || knocked.knocks().ignored > 100).await;
    knocked.all_connect(&flood, (&before, &mut exchange)).await;
    // The other one is the host that connects.
    let knocks = knocked.knocks();
    assert!(knocks.most_under_way <= 5 + 1, "{knocks:?}");
}

#[tokio::test]
async fn few_hosts_connect_without_another_round_trip() {
    let knocked = knocked(patient());
    for number in 0..8 {
        let source = knocked.host(number);
        knocked.connect(&source).await.expect("let in");
    }
    let knocks = knocked.knocks();
    assert_eq!((knocks.retried, knocks.ignored), (0, 0), "{knocks:?}");
    assert_eq!(knocks.admitted, 8, "{knocks:?}");
    until("handshakes leave nothing", || {
        knocked.knocks().under_way == 0
    })
    .await;
}

#[tokio::test]
async fn many_that_connect_at_once_all_connect() {
    let knocked = knocked({
        let mut limits = patient();
        limits.crowded_handshake = PATIENCE;
        limits
    });
    let sources: Vec<Endpoint> = (0..60).map(|number| knocked.host(number)).collect();
    let mut connecting = tokio::task::JoinSet::new();
    for source in sources.clone() {
        let address = knocked.address;
        connecting.spawn(async move { source.connect(address, TARGET).await });
    }
    let connected = in_time(connecting.join_all()).await;
    for peer in connected {
        peer.expect("let in");
    }
}

/// Sends a first packet and waits for the Retry that it draws.
async fn asked(knocker: &Knocker, socket: &tokio::net::UdpSocket) -> (Vec<u8>, Vec<u8>) {
    let first = knocker.initial(&knocker.fresh_id(), &[]);
    socket.send(&first).await.expect("sent");
    let mut datagram = vec![0; 2048];
    let len = in_time(socket.recv(&mut datagram)).await.expect("answered");
    // It is less than what drew it.
    assert!(len < first.len() / 10, "{len}");
    retry(&datagram[..len]).expect("a Retry")
}

#[tokio::test]
async fn a_token_outlives_the_credentials() {
    let mut limits = TransportLimits::default();
    limits.retry_above = 0;
    let knocked = knocked(limits);
    let socket = tokio::net::UdpSocket::bind(loopback())
        .await
        .expect("bound");
    socket.connect(knocked.address).await.expect("connected");
    let knocker = Knocker::new(TARGET);
    let (server, token) = asked(&knocker, &socket).await;
    assert_eq!(knocked.knocks().admitted, 0);
    let issued = knocked.authority.issue(TARGET).expect("issued");
    let trust = Trust::anyone_signed_by(authorities(&knocked.authority));
    let reloaded = knocked.target.reload(&identity(&issued), &trust);
    reloaded.expect("usable");
    let second = knocker.initial(&server, &token);
    socket.send(&second).await.expect("sent");
    until("it is admitted", || knocked.knocks().admitted == 1).await;
    assert_eq!(knocked.knocks().retried, 1);
}

#[tokio::test]
async fn a_token_is_of_no_use_at_another_address() {
    let mut limits = TransportLimits::default();
    limits.retry_above = 0;
    let knocked = knocked(limits);
    let socket = tokio::net::UdpSocket::bind(loopback())
        .await
        .expect("bound");
    socket.connect(knocked.address).await.expect("connected");
    let knocker = Knocker::new(TARGET);
    let (server, token) = asked(&knocker, &socket).await;
    let elsewhere = UdpSocket::bind((stranger(0), 0)).expect("bound");
    let stolen = knocker.initial(&server, &token);
    elsewhere.send_to(&stolen, knocked.address).expect("sent");
    // Packets are looked at in the order in which they come.
    asked(&knocker, &socket).await;
    let knocks = knocked.knocks();
    assert_eq!((knocks.admitted, knocks.retried), (0, 2), "{knocks:?}");
}

#[tokio::test]
async fn answers_have_a_rate() {
    let mut limits = TransportLimits::default();
    limits.retry_above = 0;
    limits.answers_per_second = 100;
    let knocked = knocked(limits);
    let flood = knocked.flood(Kind::deaf(100, 1000));
    until("more knock than are answered", || {
        knocked.knocks().ignored > 1000
    })
    .await;
    let knocks = knocked.knocks();
    assert_eq!(knocks.admitted, 0, "{knocks:?}");
    drop(flood);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_has_fallen_silent_makes_way_without_an_error() {
    let mut limits = TransportLimits::default();
    limits.max_handshakes = 1;
    limits.retry_above = 0;
    limits.crowded_handshake = Duration::from_millis(100);
    limits.handshake = Duration::from_secs(3600);
    let authority = authority();
    let target = host_at(loopback(), &authority, TARGET, limits);
    let address = target.local_addr().expect("bound");
    let accepting = tokio::spawn({
        let target = target.clone();
        async move { target.accept().await }
    });
    let flood = Kind {
        from: vec![stranger(0)],
        rate: 100,
        listens: true,
    };
    let flood = Flood::begin(flood, address, TARGET).expect("sockets");
    until("one makes way for the next", || {
        target.knocks().made_way > 1
    })
    .await;
    drop(flood);
    let source = host_at(loopback(), &authority, "source.example", patient());
    in_time(source.connect(address, TARGET))
        .await
        .expect("let in");
    let first = in_time(accepting).await.expect("no panic").expect("open");
    assert_eq!(first.expect("let in").name(), "source.example");
}
