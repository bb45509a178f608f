//! Two versions of a server in one process, and ends of the link that are scripted.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use tcpmig_format::{Image, Layer};

use super::frame::{self, Kind, VERSION};
use super::*;
use crate::handover::Refusal;
use crate::session::{Departed, Parts, Way};

/// How long anything may take that has to happen.
const PATIENCE: Duration = Duration::from_secs(60);

/// A folder of its own, and the path of a socket in it.
struct Place {
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self {
            path: folder.path().join("app.sock"),
            _folder: folder,
        }
    }
}

fn layers(payload: &[u8]) -> Vec<Layer> {
    vec![Layer::new("org.example.chat", 1, payload)]
}

/// Takes every session of this kind and version.
fn check(layers: &[Layer]) -> Result<(), Refusal> {
    match layers {
        [layer] if (layer.kind.as_str(), layer.version) == ("org.example.chat", 1) => Ok(()),
        [layer] => Err(Refusal::from(layer.unconsumed().to_string())),
        _ => Err(Refusal::from("one layer is expected".to_owned())),
    }
}

/// A connection: the peer's end and the server's.
fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    let (server, _) = listener.accept().unwrap();
    (peer, server)
}

fn parts(server: TcpStream, payload: &[u8]) -> Parts {
    Parts {
        socket: server.into(),
        layers: layers(payload),
    }
}

/// Both versions, in contact.
async fn both(place: &Place) -> (Next, Arrivals, Predecessor) {
    let mut predecessor = Predecessor::bind(&place.path).unwrap();
    let path = place.path.clone();
    let connecting = tokio::spawn(async move {
        let successor = Successor::connect(path, check).await.unwrap().unwrap();
        assert_eq!(successor.process(), std::process::id());
        successor.ready().await.unwrap()
    });
    let next = predecessor.next().await;
    (next, connecting.await.unwrap(), predecessor)
}

/// An old version, and a new one that does as it is told: greeted, and ready.
async fn scripted(place: &Place, within: Duration) -> (Next, UnixStream, Predecessor) {
    let mut predecessor = Predecessor::bind(&place.path)
        .unwrap()
        .answer_within(within);
    let path = place.path.clone();
    let greeting = tokio::task::spawn_blocking(move || {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        frame::send(&stream, Kind::Hello, VERSION.into(), None, b"").unwrap();
        assert_eq!(
            frame::receive(&stream).unwrap().unwrap().kind,
            Kind::Welcome
        );
        frame::send(&stream, Kind::Ready, 0, None, b"").unwrap();
        stream
    });
    let next = predecessor.next().await;
    (next, greeting.await.unwrap(), predecessor)
}

/// The server's end still works.
fn lives(peer: &mut TcpStream, parts: Parts) {
    assert_eq!(parts.layers, layers(b"state"));
    TcpStream::from(parts.socket).write_all(b"here").unwrap();
    let mut bytes = [0; 4];
    peer.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes, *b"here");
}

#[tokio::test]
async fn sessions_go_over_with_all_that_was_not_read() {
    let place = Place::new();
    let (next, mut arrivals, predecessor) = both(&place).await;
    let mut peers = Vec::new();
    for number in 0..20_u8 {
        let (mut peer, server) = connection();
        peer.write_all(&[number; 3]).unwrap();
        let departed = next.depart(parts(server, &[number; 9]), &()).await;
        assert!(matches!(departed, Departed::Moved(())), "{departed:?}");
        peers.push(peer);
    }
    next.finish().await.unwrap();
    // What comes next goes elsewhere: this version has ended.
    drop(predecessor);
    for (number, peer) in peers.iter_mut().enumerate() {
        let number = number as u8;
        let arrival = arrivals.next().await.unwrap();
        assert_eq!(arrival.layers, layers(&[number; 9]));
        assert_eq!(arrival.flow.remote(), peer.local_addr().unwrap());
        let mut server = TcpStream::from(arrival.socket);
        let mut bytes = [0; 3];
        server.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes, [number; 3]);
        server.write_all(b"!").unwrap();
        peer.read_exact(&mut [0]).unwrap();
    }
    assert!(arrivals.next().await.is_none());
    assert!(!place.path.exists());
}

#[tokio::test]
async fn many_sessions_go_over_at_once() {
    const COUNT: usize = 1500;
    tcpmig_sys::process::descriptors::reserve(4 * COUNT as u32).unwrap();
    let place = Place::new();
    let (next, mut arrivals, _predecessor) = both(&place).await;
    let mut peers = Vec::new();
    let mut departing = tokio::task::JoinSet::new();
    for _ in 0..COUNT {
        let (peer, server) = connection();
        peers.push(peer);
        let next = next.clone();
        departing.spawn(async move { next.depart(parts(server, b"state"), &()).await });
    }
    while let Some(departed) = departing.join_next().await {
        assert!(matches!(departed.unwrap(), Departed::Moved(())));
    }
    next.finish().await.unwrap();
    let mut arrived = 0;
    while let Some(arrival) = arrivals.next().await {
        TcpStream::from(arrival.socket).write_all(b"!").unwrap();
        arrived += 1;
    }
    assert_eq!(arrived, COUNT);
    for peer in &mut peers {
        peer.read_exact(&mut [0]).unwrap();
    }
}

#[tokio::test]
async fn what_the_next_version_does_not_know_stays() {
    let place = Place::new();
    let (next, mut arrivals, _predecessor) = both(&place).await;
    let (mut peer, server) = connection();
    let newer = Parts {
        socket: server.into(),
        layers: vec![Layer::new("org.example.chat", 2, &b"state"[..])],
    };
    let Departed::Kept { parts, cause } = next.depart(newer, &()).await else {
        panic!("it is kept");
    };
    let reason = r#"nothing here consumes the layer "org.example.chat" version 2"#;
    assert_eq!(cause, NotTaken::Refused(reason.to_owned()));
    lives(
        &mut peer,
        Parts {
            layers: layers(b"state"),
            ..parts
        },
    );
    // The next one is another matter.
    let (_peer, server) = connection();
    let departed = next.depart(self::parts(server, b"x"), &()).await;
    assert!(matches!(departed, Departed::Moved(())));
    assert!(arrivals.next().await.is_some());
    assert!(!next.is_gone());
}

#[tokio::test]
async fn whatever_happens_before_the_order_the_session_stays() {
    for answers in [false, true] {
        let place = Place::new();
        let (next, stream, _predecessor) = scripted(&place, PATIENCE).await;
        let (mut peer, server) = connection();
        let crashing = tokio::task::spawn_blocking(move || {
            let session = frame::receive(&stream).unwrap().unwrap();
            assert_eq!(session.kind, Kind::Session);
            assert!(session.descriptor.is_some());
            if answers {
                // The order cannot be written: nobody reads any longer.
                stream.shutdown(Shutdown::Read).unwrap();
                frame::send(&stream, Kind::Taken, session.number, None, b"").unwrap();
            }
        });
        let departed = next.depart(parts(server, b"state"), &()).await;
        crashing.await.unwrap();
        let Departed::Kept { parts, cause } = departed else {
            panic!("it is kept: {departed:?}");
        };
        assert_eq!(cause, NotTaken::Gone);
        assert!(next.is_gone());
        lives(&mut peer, parts);
        assert!(matches!(next.finish().await, Err(UpgradeError::Gone)));
    }
}

#[tokio::test]
async fn a_next_version_that_hangs_is_left_alone() {
    let place = Place::new();
    let within = Duration::from_millis(200);
    let (next, stream, mut predecessor) = scripted(&place, within).await;
    let (mut peer, server) = connection();
    let departed = next.depart(parts(server, b"state"), &()).await;
    let Departed::Kept { parts, cause } = departed else {
        panic!("it is kept: {departed:?}");
    };
    assert_eq!(cause, NotTaken::Silent(within));
    assert!(next.is_gone());
    lives(&mut peer, parts);
    // When it wakes up it finds that it has nothing: an offer, and the end.
    let session = frame::receive(&stream).unwrap().unwrap();
    assert_eq!(session.kind, Kind::Session);
    assert!(frame::receive(&stream).unwrap().is_none());
    // Another one can take over.
    let path = place.path.clone();
    let connecting = tokio::spawn(async move {
        let successor = Successor::connect(path, check).await.unwrap().unwrap();
        successor.ready().await.unwrap()
    });
    let next = predecessor.next().await;
    let mut arrivals = connecting.await.unwrap();
    let (_peer, server) = connection();
    let departed = next.depart(self::parts(server, b"x"), &()).await;
    assert!(matches!(departed, Departed::Moved(())));
    assert!(arrivals.next().await.is_some());
}

#[tokio::test]
async fn an_answer_that_comes_too_late_is_answered_with_abort() {
    let place = Place::new();
    let (next, stream, _predecessor) = scripted(&place, PATIENCE).await;
    // Nobody has offered it, or nobody does any longer.
    frame::send(&stream, Kind::Taken, 7, None, b"").unwrap();
    let hearing = tokio::task::spawn_blocking(move || (frame::receive(&stream), stream));
    let (heard, _stream) = hearing.await.unwrap();
    let frame = heard.unwrap().unwrap();
    assert_eq!((frame.kind, frame.number), (Kind::Abort, 7));
    assert!(!next.is_gone());
}

#[tokio::test]
async fn without_an_order_the_next_version_touches_nothing() {
    let place = Place::new();
    let listener = std::os::unix::net::UnixListener::bind(&place.path).unwrap();
    let path = place.path.clone();
    let connecting = tokio::spawn(async move {
        let successor = Successor::connect(path, check).await.unwrap().unwrap();
        successor.ready().await.unwrap()
    });
    let (mut peer, server) = connection();
    let (mut second, kept) = connection();
    let old = tokio::task::spawn_blocking(move || {
        let (stream, _) = listener.accept().unwrap();
        let heard = |kind| assert_eq!(frame::receive(&stream).unwrap().unwrap().kind, kind);
        heard(Kind::Hello);
        frame::send(&stream, Kind::Welcome, VERSION.into(), None, b"").unwrap();
        heard(Kind::Ready);
        let mut image = Image::default();
        image.layers = layers(b"state");
        let bytes = image.encode().unwrap();
        for (number, socket) in [(1, &server), (2, &kept)] {
            frame::send(&stream, Kind::Session, number, Some(socket.as_fd()), &bytes).unwrap();
            heard(Kind::Taken);
        }
        frame::send(&stream, Kind::Abort, 1, None, b"").unwrap();
        // The second is neither ordered nor aborted when this process ends.
        (server, kept)
    });
    let mut arrivals = connecting.await.unwrap();
    let (server, kept) = old.await.unwrap();
    assert!(arrivals.next().await.is_none());
    for (peer, server) in [(&mut peer, server), (&mut second, kept)] {
        lives(peer, parts(server, b"state"));
    }
}

#[tokio::test]
async fn a_listener_goes_over_with_its_queue() {
    let place = Place::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let predecessor = Predecessor::bind(&place.path).unwrap();
    let mut predecessor = predecessor.listener("http", &listener).unwrap();
    let waiting = TcpStream::connect(address).unwrap();
    let path = place.path.clone();
    let connecting = tokio::spawn(async move {
        let mut successor = Successor::connect(path, check).await.unwrap().unwrap();
        assert!(successor.listener("other").is_none());
        let listener = successor.listener("http").unwrap();
        assert!(successor.listener("http").is_none());
        (listener, successor.ready().await.unwrap())
    });
    let next = predecessor.next().await;
    let (taken, _arrivals) = connecting.await.unwrap();
    next.finish().await.unwrap();
    drop((listener, predecessor));
    let (accepted, _) = taken.accept().unwrap();
    assert_eq!(accepted.peer_addr().unwrap(), waiting.local_addr().unwrap());
    let later = TcpStream::connect(address).unwrap();
    let (accepted, _) = taken.accept().unwrap();
    assert_eq!(accepted.peer_addr().unwrap(), later.local_addr().unwrap());
}

#[tokio::test]
async fn a_process_that_ends_while_it_starts_changes_nothing() {
    let place = Place::new();
    let mut predecessor = Predecessor::bind(&place.path).unwrap();
    let path = place.path.clone();
    let attempts = tokio::spawn(async move {
        // Not a word; bytes of something else; another version; gone before it is ready.
        drop(UnixStream::connect(&path).unwrap());
        UnixStream::connect(&path)
            .unwrap()
            .write_all(b"GET / HTTP/1.1\r\n\r\n")
            .unwrap();
        let newer = path.clone();
        let answer = tokio::task::spawn_blocking(move || {
            let stream = UnixStream::connect(newer).unwrap();
            frame::send(&stream, Kind::Hello, 2, None, b"").unwrap();
            frame::receive(&stream).unwrap().unwrap()
        });
        let answer = answer.await.unwrap();
        assert_eq!(
            (answer.kind, answer.number),
            (Kind::Welcome, VERSION.into())
        );
        drop(Successor::connect(&path, check).await.unwrap().unwrap());
        let successor = Successor::connect(&path, check).await.unwrap().unwrap();
        successor.ready().await.unwrap()
    });
    let next = tokio::time::timeout(PATIENCE, predecessor.next())
        .await
        .unwrap();
    let mut arrivals = attempts.await.unwrap();
    let (_peer, server) = connection();
    let departed = next.depart(parts(server, b"state"), &()).await;
    assert!(matches!(departed, Departed::Moved(())));
    assert!(arrivals.next().await.is_some());
}

#[tokio::test]
async fn the_first_version_finds_nobody() {
    let place = Place::new();
    assert!(
        Successor::connect(&place.path, check)
            .await
            .unwrap()
            .is_none()
    );
    // Nor where a process was killed that waited there.
    drop(std::os::unix::net::UnixListener::bind(&place.path).unwrap());
    assert!(place.path.exists());
    assert!(
        Successor::connect(&place.path, check)
            .await
            .unwrap()
            .is_none()
    );
    let first = Predecessor::bind(&place.path).unwrap();
    let metadata = std::fs::metadata(&place.path).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    // A newer one has the name; the end of the older one leaves it that.
    let second = Predecessor::bind(&place.path).unwrap();
    drop(first);
    assert!(place.path.exists());
    drop(second);
    assert!(!place.path.exists());
}

#[tokio::test]
async fn a_file_that_is_no_socket_stays() {
    let place = Place::new();
    std::fs::write(&place.path, "mine").unwrap();
    let error = Predecessor::bind(&place.path).unwrap_err().to_string();
    assert!(error.contains("not a socket"), "{error}");
    assert_eq!(std::fs::read_to_string(&place.path).unwrap(), "mine");
    let folder = place.path.parent().unwrap();
    assert_eq!(std::fs::read_dir(folder).unwrap().count(), 1);
}
