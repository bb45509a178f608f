//! Connections that are shared, end, and come back.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tcpmig_transport::{Endpoint, Peer, TransportError, TransportLimits};
use tokio::runtime::Runtime;

use crate::support::{
    SOURCE, TARGET, authority, bytes, host, host_at, hosts, identity, in_time, loopback, trust,
};

/// A host in a runtime of its own, which can end without a word as a crashed process does.
struct Process(Runtime);

impl Process {
    /// Starts a host that answers every frame with itself.
    fn start(bind: impl FnOnce() -> Endpoint + Send + 'static) -> (Self, SocketAddr) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let (sender, receiver) = std::sync::mpsc::channel();
        runtime.spawn(async move {
            let endpoint = bind();
            sender
                .send(endpoint.local_addr().expect("bound"))
                .expect("awaited");
            while let Some(peer) = endpoint.accept().await {
                tokio::spawn(answer(peer.expect("let in")));
            }
        });
        (Self(runtime), receiver.recv().expect("started"))
    }

    fn crash(self) {
        self.0.shutdown_timeout(Duration::from_secs(10));
    }
}

async fn answer(peer: Peer) {
    while let Some(Ok(mut exchange)) = peer.accept().await {
        tokio::spawn(async move {
            while let Ok(Some(frame)) = exchange.recv().await {
                exchange.send(frame).await?;
            }
            exchange.finish().await
        });
    }
}

async fn ask(peer: &Peer) -> Result<Option<Bytes>, TransportError> {
    let mut exchange = peer.open().await?;
    exchange.send(bytes(100)).await?;
    exchange.recv().await
}

#[tokio::test]
async fn the_warm_connection_is_shared() {
    let authority = authority();
    let (source, target) = (host(&authority, SOURCE), host(&authority, TARGET));
    let address = target.local_addr().expect("bound");
    let (first, second, accepted) = in_time(async {
        tokio::join!(
            source.connect(address, TARGET),
            source.connect(address, TARGET),
            target.accept()
        )
    })
    .await;
    let (first, second) = (first.expect("connected"), second.expect("connected"));
    let third = source.connect(address, "Target.Example").await;
    let accepted = accepted.expect("open").expect("let in");
    for (i, peer) in [first, second, third.expect("connected")]
        .iter()
        .enumerate()
    {
        let mut exchange = peer.open().await.expect("opened");
        exchange.send(bytes(i)).await.expect("sent");
        let mut exchange = in_time(accepted.accept())
            .await
            .expect("open")
            .expect("came");
        let frame = in_time(exchange.recv()).await.expect("received");
        assert_eq!(frame, Some(bytes(i)));
    }
}

#[tokio::test]
async fn a_closed_peer_tells_why_and_is_connected_anew() {
    let hosts = in_time(hosts(loopback(), TransportLimits::default())).await;
    let address = hosts.target.local_addr().expect("bound");
    hosts.to_source.close("maintenance");
    let ended = in_time(hosts.to_target.closed()).await;
    assert!(
        matches!(&ended, TransportError::Closed { reason } if reason == "maintenance"),
        "{ended}"
    );
    assert!(in_time(hosts.to_target.accept()).await.is_none());
    let (again, accepted) = in_time(async {
        tokio::join!(hosts.source.connect(address, TARGET), hosts.target.accept())
    })
    .await;
    assert!(!again.expect("connected").is_closed());
    accepted.expect("open").expect("let in");
}

#[tokio::test]
async fn a_closed_endpoint_accepts_and_connects_no_more() {
    let hosts = in_time(hosts(loopback(), TransportLimits::default())).await;
    let address = hosts.source.local_addr().expect("bound");
    let waiting = tokio::spawn({
        let target = hosts.target.clone();
        async move { target.accept().await.is_none() }
    });
    in_time(hosts.target.close("bye")).await;
    assert!(in_time(waiting).await.expect("no panic"));
    let connected = hosts.target.connect(address, SOURCE).await;
    assert!(matches!(connected, Err(TransportError::Closed { .. })));
    let ended = in_time(hosts.to_target.closed()).await;
    assert!(matches!(&ended, TransportError::Closed { reason } if reason == "bye"));
}

#[tokio::test]
async fn a_peer_that_vanished_is_idle_within_the_limit() {
    let idle = Duration::from_millis(600);
    let mut limits = TransportLimits::default();
    limits.idle = idle;
    limits.keep_alive = Duration::from_millis(100);
    let authority = authority();
    let source = host_at(loopback(), &authority, SOURCE, limits.clone());
    let (process, address) =
        Process::start(move || host_at(loopback(), &authority, TARGET, limits));
    let peer = in_time(source.connect(address, TARGET))
        .await
        .expect("connected");
    in_time(ask(&peer)).await.expect("answered");
    tokio::task::spawn_blocking(|| process.crash())
        .await
        .expect("ended");
    // The port stays taken, so that nothing answers.
    let _silent = UdpSocket::bind(address).expect("free");

    let start = Instant::now();
    let mut exchange = peer.open().await.expect("not known yet");
    let error = in_time(exchange.recv()).await.expect_err("vanished");
    assert!(matches!(error, TransportError::Idle { .. }), "{error}");
    // The limit counts from the first packet sent after the last one received.
    assert!(start.elapsed() < 3 * idle, "{:?}", start.elapsed());
    let ended = peer.accept().await.expect("not closed by either side");
    assert!(matches!(ended, Err(TransportError::Idle { .. })));
}

#[tokio::test]
async fn keep_alives_hold_a_connection_without_traffic() {
    let mut limits = TransportLimits::default();
    limits.idle = Duration::from_millis(400);
    limits.keep_alive = Duration::from_millis(50);
    let hosts = in_time(hosts(loopback(), limits)).await;
    let ended = tokio::time::timeout(Duration::from_millis(1200), hosts.to_target.closed()).await;
    assert!(ended.is_err(), "{ended:?}");
}

#[tokio::test]
async fn a_peer_that_restarted_with_another_key_is_connected_anew_before_it_is_idle() {
    let authority = authority();
    let source = host(&authority, SOURCE);
    let authority = std::sync::Arc::new(authority);
    let bind = |addr| {
        let authority = authority.clone();
        // A new certificate and key each time.
        move || host_at(addr, &authority, TARGET, TransportLimits::default())
    };
    let (process, address) = Process::start(bind(loopback()));
    let peer = in_time(source.connect(address, TARGET))
        .await
        .expect("connected");
    in_time(ask(&peer)).await.expect("answered");
    tokio::task::spawn_blocking(|| process.crash())
        .await
        .expect("ended");
    let (process, _) = Process::start(bind(address));
    let start = Instant::now();
    let again = async {
        loop {
            let peer = source.connect(address, TARGET).await.expect("connected");
            let asked = tokio::time::timeout(Duration::from_millis(200), ask(&peer));
            if let Ok(Ok(Some(_))) = asked.await {
                return;
            }
        }
    };
    in_time(again).await;
    // Well before the idle limit of 30 s, by which it would be noticed in any case.
    assert!(start.elapsed() < Duration::from_secs(15));
    assert!(!peer.is_closed(), "it was not noticed by a reset");
    tokio::task::spawn_blocking(|| process.crash())
        .await
        .expect("ended");
}

#[tokio::test]
async fn a_restarted_peer_is_noticed_at_once_and_connected_anew() {
    let authority = authority();
    let source = host(&authority, SOURCE);
    // The same key before and after: the restarted host is recognised by it.
    let (identity, trust) = (
        identity(&authority.issue(TARGET).expect("issued")),
        trust(&authority),
    );
    let bind = move |addr| {
        let (identity, trust) = (identity.clone(), trust.clone());
        move || Endpoint::bind(addr, &identity, &trust, TransportLimits::default()).expect("bound")
    };
    let (process, address) = Process::start(bind(loopback()));
    let old = in_time(source.connect(address, TARGET))
        .await
        .expect("connected");
    in_time(ask(&old)).await.expect("answered");
    tokio::task::spawn_blocking(|| process.crash())
        .await
        .expect("ended");
    let (process, _) = Process::start(bind(address));

    let start = Instant::now();
    let error = in_time(ask(&old)).await.expect_err("unknown there");
    assert!(matches!(error, TransportError::Restarted { .. }), "{error}");
    // Long before the idle limit of 30 s.
    assert!(start.elapsed() < Duration::from_secs(5));
    let new = in_time(source.connect(address, TARGET))
        .await
        .expect("connected");
    assert_eq!(
        in_time(ask(&new)).await.expect("answered"),
        Some(bytes(100))
    );
    tokio::task::spawn_blocking(|| process.crash())
        .await
        .expect("ended");
}
