//! A TLS session has one owner, whatever becomes of its move: two that went on with it would use nonces twice.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream as StdStream};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConnection, KeyLog, StreamOwned};
use tcpmig::driver::journal::File;
use tcpmig::driver::{Destination, Ending, Mover, Options, Reason, Report};
use tcpmig::handover::{Code, HandoverId, Message, Refusal};
use tcpmig::session::{Carrier, Carriers, Departed, FactsOf, Parts, Rebuilt, Way};
use tcpmig::tls::{Negotiated, Tls, TlsStream};
use tcpmig_format::{FourTuple, LayerReader, SecretBytes};
use tcpmig_lock::Locker;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use crate::scene::{Moved, OnB, Scene};
use crate::support::{Fake, Family, Net, PATIENCE, Running, Site, kernel_test, until};
use crate::tls::{client_config, server_config};

/// Who goes on with sessions now, on all hosts together, by the client's address.
#[derive(Default)]
struct Owners {
    live: Mutex<HashMap<SocketAddr, usize>>,
    /// How often one began here or went on.
    begun: AtomicUsize,
    /// Two had one.
    were_two: AtomicBool,
}

impl Owners {
    fn count(&self) -> usize {
        self.live.lock().unwrap().values().sum()
    }

    fn begun(&self) -> usize {
        self.begun.load(Ordering::Relaxed)
    }
}

/// One who goes on with a session.
struct Owner(Arc<Owners>, SocketAddr);

impl Owner {
    fn new(owners: &Arc<Owners>, tcp: &TcpStream) -> io::Result<Self> {
        let client = tcp.peer_addr()?;
        let mut live = owners.live.lock().unwrap();
        let count = live.entry(client).or_default();
        *count += 1;
        if *count > 1 {
            owners.were_two.store(true, Ordering::Relaxed);
        }
        owners.begun.fetch_add(1, Ordering::Relaxed);
        Ok(Self(owners.clone(), client))
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        *self.0.live.lock().unwrap().get_mut(&self.1).unwrap() -= 1;
    }
}

/// TLS, of which each session has an owner.
#[derive(Clone)]
struct Owned {
    tls: Tls,
    owners: Arc<Owners>,
}

struct OwnedStream {
    tls: TlsStream,
    owner: Owner,
}

impl Carriers for Owned {
    type Carrier = OwnedStream;

    async fn accept(&self, tcp: TcpStream) -> io::Result<OwnedStream> {
        let owner = Owner::new(&self.owners, &tcp)?;
        let tls = self.tls.accept(tcp).await?;
        Ok(OwnedStream { tls, owner })
    }

    fn check(&self, layers: &mut LayerReader<'_>) -> Result<Option<FactsOf<Self>>, Refusal> {
        self.tls.check(layers)
    }

    fn rebuild(
        &self,
        tcp: TcpStream,
        unwritten: SecretBytes,
        layers: &mut LayerReader<'_>,
    ) -> Result<Rebuilt<OwnedStream>, Refusal> {
        let owner = Owner::new(&self.owners, &tcp).expect("the client is known");
        let rebuilt = self.tls.rebuild(tcp, unwritten, layers)?;
        Ok(Rebuilt {
            carrier: OwnedStream {
                tls: rebuilt.carrier,
                owner,
            },
            unwritten: rebuilt.unwritten,
        })
    }
}

impl Carrier for OwnedStream {
    type Facts = Negotiated;

    fn tcp(&self) -> &TcpStream {
        self.tls.tcp()
    }

    fn facts(&self) -> Option<Negotiated> {
        self.tls.facts()
    }

    fn check(&self) -> io::Result<()> {
        self.tls.check()
    }

    fn into_parts(self) -> io::Result<Parts> {
        let Self { tls, owner } = self;
        let parts = tls.into_parts();
        drop(owner);
        parts
    }
}

impl AsyncRead for OwnedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_read(cx, buffer)
    }
}

impl AsyncWrite for OwnedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}

/// A client that asks, and a session that moves.
struct Case {
    scene: Scene<Owned>,
    owners: Arc<Owners>,
    client: StreamOwned<ClientConnection, StdStream>,
    asked: usize,
}

impl Case {
    fn new(on_b: &OnB) -> Self {
        let (authority, config) = server_config();
        let owners = Arc::new(Owners::default());
        let carriers = Owned {
            tls: Tls::new(config),
            owners: owners.clone(),
        };
        let scene = Scene::over([carriers.clone(), carriers], on_b, Duration::from_secs(5));
        let connect = || StdStream::connect("198.18.0.80:8080").unwrap();
        let tcp = scene.net.peer.run(connect).unwrap();
        tcp.set_read_timeout(Some(PATIENCE)).unwrap();
        let name = ServerName::try_from("server.example").unwrap();
        let client = ClientConnection::new(client_config(&authority).into(), name).unwrap();
        let mut case = Self {
            scene,
            owners,
            client: StreamOwned::new(client, tcp),
            asked: 0,
        };
        case.is_answered_by("a");
        case
    }

    fn asks(&mut self) {
        self.asked += 1;
        let request = b"GET /who HTTP/1.1\r\nhost: server.example\r\n\r\n";
        self.client.write_all(request).unwrap();
        self.client.flush().unwrap();
    }

    fn answer_of(&mut self, host: &str) {
        let (mut answer, mut buffer) = (String::new(), [0; 1000]);
        let end = format!("\r\n\r\n{host} {} \n", self.asked);
        while !answer.ends_with(&end) {
            let len = self.client.read(&mut buffer).expect("an answer");
            assert!(len > 0, "the session has ended after {answer:?}");
            answer.push_str(std::str::from_utf8(&buffer[..len]).unwrap());
            assert!(answer.len() < 1000, "{answer:?} instead of {end:?}");
        }
    }

    fn is_answered_by(&mut self, host: &str) {
        self.asks();
        self.answer_of(host);
        assert_eq!(self.owners.count(), 1);
    }

    /// A target that says that it is prepared, is told to commit and is gone; asked again, it waits to be told, and then
    /// says that.
    fn is_in_doubt(&mut self, says: fn(HandoverId) -> Message) -> Doubtful {
        let (asked, is_asked) = mpsc::channel();
        let (go, goes) = oneshot::channel();
        let local = self.client.sock.peer_addr().unwrap();
        let flow = FourTuple::new(local, self.client.sock.local_addr().unwrap()).unwrap();
        let target = self.scene.on_other(move |here| async move {
            // It stands for the connection: without it the host would answer the client with RST.
            here.keep(here.locker.lock(&[flow], PATIENCE * 2).unwrap());
            let mut fake = Fake::new(&here);
            let mut talk = fake.exchange().await;
            let id = talk.take().await;
            let prepared = Message::Prepared { id, rebuild_us: 1 };
            talk.say(prepared).await;
            talk.commit(id).await;
            fake.hang_up();
            let mut talk = fake.committed(id).await;
            asked.send(()).unwrap();
            goes.await.unwrap();
            talk.say(says(id)).await;
            talk.end().await;
        });
        let moving = self.scene.begin_move();
        is_asked.recv_timeout(PATIENCE).expect("it is asked again");
        assert_eq!(self.owners.count(), 0, "in doubt");
        Doubtful { moving, target, go }
    }

    fn ends(self) {
        assert!(!self.owners.were_two.load(Ordering::Relaxed));
        drop(self.client);
        until("nobody has the session", || self.owners.count() == 0);
    }
}

struct Doubtful {
    moving: Running<Moved>,
    target: Running<()>,
    go: oneshot::Sender<()>,
}

impl Doubtful {
    fn settle(self) -> Moved {
        self.go.send(()).unwrap();
        let moved = self.moving.wait();
        self.target.wait();
        moved
    }
}

kernel_test!(a_session_that_moves_has_one_owner, || {
    let mut case = Case::new(&OnB::Visits);
    for hop in 1..=6 {
        case.scene.hop();
        case.is_answered_by(["a", "b"][hop % 2]);
        assert_eq!(case.owners.begun(), 1 + hop);
    }
    case.ends();
});

kernel_test!(a_session_that_is_refused_goes_on_where_it_was, || {
    // The state of the session is of another version there.
    let mut case = Case::new(&OnB::NewVisits);
    for refused in 1..=3 {
        assert!(case.scene.stays().contains("version 1"));
        case.is_answered_by("a");
        assert_eq!(case.owners.begun(), 1 + refused, "nobody else had it");
    }
    case.ends();
});

kernel_test!(
    a_session_in_doubt_has_no_owner_until_it_is_given_back,
    || {
        let mut case = Case::new(&OnB::Nothing);
        let doubtful = case.is_in_doubt(|id| Message::Aborted {
            id,
            code: Code::Other,
            reason: "it came too late".to_owned(),
        });
        case.asks();
        assert_eq!(case.owners.count(), 0);
        let why = doubtful.settle().unwrap_err().to_string();
        assert!(why.contains("too late"), "{why}");
        case.answer_of("a");
        assert_eq!(case.owners.begun(), 2);
        case.ends();
    }
);

kernel_test!(a_session_that_lives_at_the_target_has_no_owner_here, || {
    let mut case = Case::new(&OnB::Nothing);
    let doubtful = case.is_in_doubt(|id| Message::Active {
        id,
        rebuild_us: 1,
        activate_us: 1,
    });
    doubtful.settle().unwrap();
    assert_eq!((case.owners.count(), case.owners.begun()), (0, 1));
    case.ends();
});

kernel_test!(a_session_that_ended_at_the_target_is_not_taken_back, || {
    let mut case = Case::new(&OnB::Nothing);
    let doubtful = case.is_in_doubt(|id| Message::Lost {
        id,
        reason: "the process was killed".to_owned(),
    });
    let why = doubtful.settle().unwrap_err().to_string();
    assert!(why.contains("killed"), "{why}");
    assert_eq!((case.owners.count(), case.owners.begun()), (0, 1));
    case.ends();
});

/// A way whose moves are called off as soon as they begin.
#[derive(Clone)]
struct CalledOff(Mover);

impl Way for CalledOff {
    type Destination = Destination;
    type Report = Report;
    type Cause = Reason;

    async fn depart(&self, parts: Parts, to: &Destination) -> Departed<Report, Reason> {
        let moving = self.0.move_out(parts.socket, parts.layers, to);
        moving.cancel();
        match moving.await.ending {
            Ending::Kept {
                socket,
                layers,
                reason,
            } => Departed::Kept {
                parts: Parts { socket, layers },
                cause: reason,
            },
            other => Departed::Lost(format!("{other:?}")),
        }
    }
}

kernel_test!(a_session_whose_move_is_cancelled_goes_on, || {
    let mut case = Case::new(&OnB::Visits);
    for cancelled in 1..=4 {
        let moving = case.scene.move_by(|here| CalledOff(here.mover()));
        let why = moving.wait().unwrap_err().to_string();
        assert!(why.contains("cancelled"), "{why}");
        case.is_answered_by("a");
        assert_eq!(case.owners.begun(), 1 + cancelled);
    }
    case.scene.hop();
    case.is_answered_by("b");
    case.ends();
});

/// Collects the secrets of sessions.
#[derive(Debug, Default)]
struct Secrets(Mutex<Vec<Vec<u8>>>);

impl KeyLog for Secrets {
    fn log(&self, _: &str, _: &[u8], secret: &[u8]) {
        self.0.lock().unwrap().push(secret.to_vec());
    }
}

impl Secrets {
    /// Whether one is in there, in whatever form.
    fn are_in(&self, bytes: &[u8]) -> bool {
        let text = String::from_utf8_lossy(bytes).to_lowercase();
        let has = |part: &[u8]| bytes.windows(part.len()).any(|window| window == part);
        self.0.lock().unwrap().iter().any(|secret| {
            // A part of it is too much.
            let part = &secret[..8];
            let hex: String = part.iter().map(|byte| format!("{byte:02x}")).collect();
            let list = format!("{part:?}");
            has(part) || text.contains(&hex) || text.contains(list.trim_matches(['[', ']']))
        })
    }
}

/// Where a host logs.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

kernel_test!(no_secret_is_in_a_journal_a_log_or_an_error, || {
    let secrets = Arc::new(Secrets::default());
    let (authority, config) = server_config();
    let tls = Tls::new(config);
    let net = Net::new();
    let (a, b) = Site::pair(&net, &Options::default());
    let log = Log::default();
    for site in [&a, &b] {
        let log = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_writer(move || log.clone());
        site.call(|here| async move {
            here.keep(tracing::subscriber::set_default(subscriber.finish()));
        });
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |host| folder.path().join(host);
    let [on_a, on_b] = ["a", "b"].map(|host| Arc::new(File::open(&path(host)).unwrap()));
    b.serve_with(on_b);

    let mut config = client_config(&authority);
    config.key_log = secrets.clone();
    let (peer, server) = net.connect(Family::V4);
    let name = ServerName::try_from("server.example").unwrap();
    let client = ClientConnection::new(config.into(), name).unwrap();
    let mut client = StreamOwned::new(client, peer);
    let accepting = a.begin({
        let tls = tls.clone();
        |_| async move {
            server.set_nonblocking(true).unwrap();
            let tcp = TcpStream::from_std(server).unwrap();
            let accepted = tls.accept(tcp).await.unwrap();
            let shown = format!("{tls:?} {accepted:?} {:?}", accepted.facts());
            let parts = accepted.into_parts().unwrap();
            (format!("{shown} {parts:?}"), parts)
        }
    });
    while client.conn.is_handshaking() {
        client.conn.complete_io(&mut client.sock).unwrap();
    }
    let (mut shown, mut parts) = accepting.wait();
    for serves in [false, true] {
        let journal = on_a.clone();
        let outcome = a.call(move |here| async move {
            let mover = here.mover().with_journal(journal);
            let mut to = here.other();
            if !serves {
                to.name = "somebody else".to_owned();
            }
            mover.move_out(parts.socket, parts.layers, &to).await
        });
        shown += &format!("{outcome:?}");
        if let Ending::Kept { socket, layers, .. } = outcome.ending {
            assert!(!serves, "{shown}");
            parts = Parts { socket, layers };
        } else {
            break;
        }
    }
    let arrived = b.arrival();
    shown += &format!("{arrived:?}");
    b.call(|_| async move {
        let mut layers = LayerReader::new(&arrived.layers);
        let tcp = StdStream::from(arrived.socket);
        tcp.set_nonblocking(true).unwrap();
        let tcp = TcpStream::from_std(tcp).unwrap();
        let rebuilt = tls.rebuild(tcp, arrived.unwritten, &mut layers).unwrap();
        let mut stream = rebuilt.carrier;
        stream.write_all(b"here").await.unwrap();
        stream.flush().await.unwrap();
    });
    client.read_exact(&mut [0; 4]).unwrap();

    let all = secrets.0.lock().unwrap().concat();
    assert!(secrets.are_in(&all));
    let journals = ["a", "b"].map(|host| std::fs::read(path(host)).unwrap());
    let log = log.0.lock().unwrap();
    for (what, bytes, said) in [
        ("journal", &journals[0], "host-b"),
        ("journal", &journals[1], "host-a"),
        ("log", &*log, "TRACE"),
        ("output", &shown.into_bytes(), "Moved"),
    ] {
        let text = String::from_utf8_lossy(bytes);
        assert!(text.contains(said), "no {said:?} in the {what}: {text}");
        assert!(!secrets.are_in(bytes), "a secret is in the {what}: {text}");
    }
});
