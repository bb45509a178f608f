//! Hosts that do not keep to the rules, made of QUIC itself: who has no certificate, speaks something else, tries early
//! data, repeats what another one said, or never comes to an end.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use quinn::crypto::rustls::QuicClientConfig;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tcpmig_transport::keys::{Authority, Issued};
use tcpmig_transport::{Endpoint, Exchange, Peer, TransportError, TransportLimits};
use tokio::net::UdpSocket;

use crate::support::{
    Hosts, SOURCE, TARGET, authority, bytes, host, host_at, hosts, in_time, loopback,
};

/// A host of quinn alone. It resumes sessions and sends early data if it is let.
fn raw(authority: &Authority, certificate: Option<&Issued>, alpn: &[u8]) -> quinn::Endpoint {
    let mut roots = RootCertStore::empty();
    for ca in CertificateDer::pem_slice_iter(authority.ca_pem().as_bytes()) {
        roots.add(ca.expect("PEM")).expect("an authority");
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(roots);
    let mut config = match certificate {
        Some(issued) => {
            let chain = CertificateDer::pem_slice_iter(issued.cert_pem.as_bytes());
            let chain = chain.map(|one| one.expect("PEM")).collect();
            let key = PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).expect("PEM");
            config.with_client_auth_cert(chain, key).expect("a pair")
        }
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    config.enable_early_data = true;
    let config = QuicClientConfig::try_from(config).expect("TLS 1.3");
    let mut endpoint = quinn::Endpoint::client(loopback()).expect("bound");
    endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(config)));
    endpoint
}

fn address(endpoint: &Endpoint) -> SocketAddr {
    endpoint.local_addr().expect("bound")
}

/// What the target says of a host that connects, and how the connection ends for that.
async fn turned_away(raw: &quinn::Endpoint, target: &Endpoint) -> (TransportError, String) {
    let connecting = raw.connect(address(target), TARGET).expect("started");
    let ended = async {
        match connecting.await {
            Ok(connection) => connection.closed().await.to_string(),
            Err(error) => error.to_string(),
        }
    };
    let (accepted, ended) = in_time(async { tokio::join!(target.accept(), ended) }).await;
    (accepted.expect("open").expect_err("turned away"), ended)
}

#[tokio::test]
async fn a_host_without_a_certificate_is_not_let_in() {
    let authority = authority();
    let target = host(&authority, TARGET);
    let raw = raw(&authority, None, b"tcpmig/1");
    let (error, ended) = turned_away(&raw, &target).await;
    assert!(
        matches!(error, TransportError::UntrustedCertificate { .. }),
        "{error}"
    );
    assert!(ended.to_lowercase().contains("certificate"), "{ended}");
}

#[tokio::test]
async fn a_host_that_speaks_something_else_is_not_let_in() {
    let authority = authority();
    let target = host(&authority, TARGET);
    let issued = authority.issue(SOURCE).expect("issued");
    for alpn in [&b"tcpmig/2"[..], b"h3"] {
        let (error, ended) = turned_away(&raw(&authority, Some(&issued), alpn), &target).await;
        assert!(matches!(error, TransportError::Protocol { .. }), "{error}");
        assert!(ended.contains("protocol"), "{ended}");
    }
}

/// A host of quinn that is let in.
async fn let_in(raw: &quinn::Endpoint, target: &Endpoint) -> (quinn::Connection, Peer) {
    let connecting = raw.connect(address(target), TARGET).expect("started");
    let (connection, peer) = in_time(async { tokio::join!(connecting, target.accept()) }).await;
    (
        connection.expect("connected"),
        peer.expect("open").expect("let in"),
    )
}

#[tokio::test]
async fn nobody_gets_a_ticket_for_early_data() {
    let authority = authority();
    let target = host(&authority, TARGET);
    let issued = authority.issue(SOURCE).expect("issued");
    let raw = raw(&authority, Some(&issued), b"tcpmig/1");
    for _ in 0..3 {
        let (connection, peer) = let_in(&raw, &target).await;
        // The welcome is there: a ticket would have come before it.
        let mut welcome = in_time(connection.accept_uni()).await.expect("welcome");
        in_time(welcome.read_to_end(100)).await.expect("welcome");
        peer.close("again");
        in_time(connection.closed()).await;
        let connecting = raw.connect(address(&target), TARGET).expect("started");
        let Err(connecting) = connecting.into_0rtt() else {
            panic!("early data was possible");
        };
        let (connection, peer) = in_time(async { tokio::join!(connecting, target.accept()) }).await;
        peer.expect("open").expect("let in").close("again");
        in_time(connection.expect("connected").closed()).await;
    }
}

/// Passes datagrams between a host that connects and `target`, and keeps those of the former.
async fn record(target: SocketAddr) -> (SocketAddr, Arc<Mutex<Vec<Vec<u8>>>>) {
    let relay = UdpSocket::bind(loopback()).await.expect("bound");
    let address = relay.local_addr().expect("bound");
    let kept = Arc::new(Mutex::new(Vec::new()));
    let keep = kept.clone();
    tokio::spawn(async move {
        let (mut datagram, mut source) = (vec![0; 65_536], None);
        while let Ok((len, from)) = relay.recv_from(&mut datagram).await {
            let to = if from == target {
                source
            } else {
                source = Some(from);
                keep.lock().expect("whole").push(datagram[..len].to_vec());
                Some(target)
            };
            if let Some(to) = to {
                let _ = relay.send_to(&datagram[..len], to).await;
            }
        }
    });
    (address, kept)
}

#[tokio::test]
async fn what_another_host_said_is_of_no_use_when_it_is_repeated() {
    let authority = authority();
    let mut limits = TransportLimits::default();
    limits.handshake = Duration::from_secs(1);
    let target = host_at(loopback(), &authority, TARGET, limits);
    let source = host(&authority, SOURCE);
    let (relay, kept) = record(address(&target)).await;
    let (peer, accepted) =
        in_time(async { tokio::join!(source.connect(relay, TARGET), target.accept()) }).await;
    let (peer, accepted) = (
        peer.expect("connected"),
        accepted.expect("open").expect("let in"),
    );
    let mut exchange = peer.open().await.expect("opened");
    exchange.send(bytes(100)).await.expect("sent");
    let mut there = in_time(accepted.accept())
        .await
        .expect("open")
        .expect("came");
    in_time(there.recv()).await.expect("a frame");
    // The target has to have forgotten the connection, or it would drop what it knows.
    accepted.close("over");
    in_time(peer.closed()).await;
    drop((exchange, there, peer, accepted));
    in_time(source.close("over")).await;
    let again = UdpSocket::bind(loopback()).await.expect("bound");
    let kept = std::mem::take(&mut *kept.lock().expect("whole"));
    let mut turned_away = 0;
    let refusing = async {
        loop {
            let accepted = target.accept().await.expect("open");
            let error = accepted.expect_err("nobody is let in");
            if matches!(error, TransportError::HandshakeTimeout { .. }) {
                turned_away += 1;
                return;
            }
        }
    };
    let repeating = async {
        // Until the connection has drained its first datagram belongs to that one.
        loop {
            for datagram in &kept {
                again
                    .send_to(datagram, address(&target))
                    .await
                    .expect("sent");
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    in_time(async {
        tokio::select! {
            () = refusing => {}
            () = repeating => {}
        }
    })
    .await;
    assert_eq!(turned_away, 1);
}

fn short(frame: Duration, max_unfinished: usize) -> TransportLimits {
    let mut limits = TransportLimits::default();
    limits.frame = frame;
    limits.max_unfinished = max_unfinished;
    limits
}

/// A stream to the target on which anything can be written, and its other end.
async fn stream(limits: TransportLimits) -> (quinn::SendStream, Exchange, Keep) {
    let authority = authority();
    let target = host_at(loopback(), &authority, TARGET, limits);
    let issued = authority.issue(SOURCE).expect("issued");
    let raw = raw(&authority, Some(&issued), b"tcpmig/1");
    let (connection, peer) = let_in(&raw, &target).await;
    let (mut stream, receive) = connection.open_bi().await.expect("opened");
    // A whole frame of one byte, so that the target knows of it.
    stream.write_all(&[0, 0, 0, 1, 7]).await.expect("written");
    let mut exchange = in_time(peer.accept()).await.expect("open").expect("came");
    let frame = in_time(exchange.recv()).await.expect("a frame");
    assert_eq!(frame.as_deref(), Some(&[7][..]));
    (
        stream,
        exchange,
        Keep(raw, connection, peer, target, receive),
    )
}

/// What has to live as long as the stream.
#[expect(dead_code, reason = "it is held, not used")]
struct Keep(
    quinn::Endpoint,
    quinn::Connection,
    Peer,
    Endpoint,
    quinn::RecvStream,
);

#[tokio::test]
async fn a_frame_that_never_ends_is_ended() {
    let limit = Duration::from_millis(500);
    let (mut stream, mut exchange, _keep) = stream(short(limit, 1 << 20)).await;
    let dribbling = async {
        stream.write_all(&[0, 1, 0, 0]).await?;
        loop {
            stream.write_all(&[0]).await?;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        #[expect(unreachable_code, reason = "gives the block its type")]
        Ok::<_, quinn::WriteError>(())
    };
    // Receiving again and again does not begin the time anew.
    let receiving = async {
        loop {
            let once = tokio::time::timeout(Duration::from_millis(30), exchange.recv());
            if let Ok(Err(error)) = once.await {
                return error;
            }
        }
    };
    let (written, error) = in_time(async { tokio::join!(dribbling, receiving) }).await;
    assert!(
        matches!(error, TransportError::FrameTimeout { got, .. } if got < 65_536),
        "{error}"
    );
    let stopped = written.expect_err("it is told to stop");
    assert!(
        matches!(stopped, quinn::WriteError::Stopped(_)),
        "{stopped}"
    );
}

#[tokio::test]
async fn a_frame_that_ends_in_the_middle_of_its_length_is_ended() {
    let (mut stream, mut exchange, _keep) =
        stream(short(Duration::from_millis(300), 1 << 20)).await;
    stream.write_all(&[0, 0]).await.expect("written");
    let error = in_time(exchange.recv()).await.expect_err("it never ends");
    assert!(
        matches!(error, TransportError::FrameTimeout { got: 2, .. }),
        "{error}"
    );
}

#[tokio::test]
async fn a_pause_between_frames_has_no_limit() {
    let (mut stream, mut exchange, _keep) = stream(short(Duration::from_millis(50), 1 << 20)).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    stream.write_all(&[0, 0, 0, 1, 9]).await.expect("written");
    let frame = in_time(exchange.recv()).await.expect("in time");
    assert_eq!(frame.as_deref(), Some(&[9][..]));
}

#[tokio::test]
async fn unfinished_frames_of_all_exchanges_are_limited_together() {
    let hosts = hosts(loopback(), short(Duration::from_secs(60), 3_000_000)).await;
    let begin = async |hosts: &Hosts| {
        let (mut here, mut there) = hosts.exchange().await;
        // More than half of what is allowed, and not all of the frame: its future is dropped.
        let frame = Bytes::from(vec![0; 40 << 20]);
        let _ = tokio::time::timeout(Duration::ZERO, here.send(frame)).await;
        let received = in_time(there.recv()).await;
        (here, received)
    };
    let (mut here, received) = begin(&hosts).await;
    let error = received.expect_err("it is more than all may have");
    assert!(
        matches!(error, TransportError::TooMuch { limit: 3_000_000 }),
        "{error}"
    );
    let stopped = in_time(here.send(bytes(1))).await.expect_err("stopped");
    assert!(stopped.to_string().contains("unfinished"), "{stopped}");
    // What the ended one had is free again.
    let (mut here, mut there) = hosts.exchange().await;
    let frame = bytes(2_900_000);
    let (sent, received) =
        in_time(async { tokio::join!(here.send(frame.clone()), there.recv()) }).await;
    sent.expect("sent");
    assert_eq!(received.expect("in the limit"), Some(frame));
}

#[tokio::test]
async fn a_host_opens_no_more_exchanges_than_it_may() {
    let mut limits = TransportLimits::default();
    limits.max_exchanges = 3;
    let hosts = in_time(hosts(loopback(), limits)).await;
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(hosts.exchange().await);
    }
    let mut fourth = Box::pin(hosts.to_target.open());
    for _ in 0..5 {
        let (here, there) = &mut open[0];
        let round = async {
            here.send(bytes(9)).await.expect("sent");
            there.recv().await.expect("received");
            there.send(bytes(9)).await.expect("sent");
            here.recv().await.expect("received");
        };
        tokio::select! {
            biased;
            _ = &mut fourth => panic!("a fourth was opened"),
            () = in_time(round) => {}
        }
    }
    let (mut here, mut there) = open.pop().expect("three");
    here.finish().await.expect("finished");
    there.finish().await.expect("finished");
    assert_eq!(in_time(here.recv()).await.expect("finished"), None);
    assert_eq!(in_time(there.recv()).await.expect("finished"), None);
    drop((here, there));
    in_time(fourth).await.expect("there is room again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_hosts_connect_at_once_than_may() {
    let authority = authority();
    let mut limits = TransportLimits::default();
    limits.max_connections = 3;
    limits.handshake = Duration::from_secs(25);
    let target = host_at(loopback(), &authority, TARGET, limits.clone());
    let (target_address, mut connecting) = (address(&target), tokio::task::JoinSet::new());
    let serving = tokio::spawn(async move {
        let mut peers = Vec::new();
        while let Some(peer) = target.accept().await {
            peers.extend(peer);
        }
    });
    for i in 0..12 {
        let source = host_at(
            loopback(),
            &authority,
            &format!("source{i}.example"),
            limits.clone(),
        );
        connecting.spawn(async move {
            let connected = source.connect(target_address, TARGET).await;
            (source, connected)
        });
    }
    let ended = in_time(connecting.join_all()).await;
    let connected = ended.iter().filter(|(_, connected)| connected.is_ok());
    assert_eq!(connected.count(), 3);
    for refused in ended.iter().filter_map(|(_, ended)| ended.as_ref().err()) {
        match refused {
            TransportError::Rejected { reason, .. } => {
                assert!(reason.contains("connections"), "{reason}");
            }
            other => panic!("{other:?}"),
        }
    }
    serving.abort();
}

#[tokio::test]
async fn no_more_hosts_connect_than_may() {
    let authority = authority();
    let mut limits = TransportLimits::default();
    limits.max_connections = 2;
    let target = host_at(loopback(), &authority, TARGET, limits);
    let serving = tokio::spawn({
        let target = target.clone();
        async move {
            let mut peers = Vec::new();
            while let Some(peer) = target.accept().await {
                peers.extend(peer);
            }
        }
    });
    let sources: Vec<Endpoint> = (0..3)
        .map(|i| host(&authority, &format!("source{i}.example")))
        .collect();
    let mut connected = Vec::new();
    for source in &sources[..2] {
        let peer = in_time(source.connect(address(&target), TARGET)).await;
        connected.push(peer.expect("let in"));
    }
    let refused = in_time(sources[2].connect(address(&target), TARGET)).await;
    match refused {
        Err(TransportError::Rejected { reason, .. }) => {
            assert!(reason.contains("connections"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    // Those that are there are not disturbed, and one that goes makes room.
    assert!(connected.iter().all(|peer| !peer.is_closed()));
    connected.pop().expect("two").close("over");
    in_time(async {
        while sources[2].connect(address(&target), TARGET).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    in_time(target.close("over")).await;
    in_time(serving).await.expect("no panic");
}
