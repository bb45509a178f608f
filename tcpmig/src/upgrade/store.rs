//! Sessions at rest outlive a crash of their server, in the descriptor store of systemd.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tcpmig_format::{FourTuple, Image, Layer, LayerReader, Limits};
use tcpmig_sys::files;
use tcpmig_sys::info::{State, tcp_info};
use tcpmig_sys::process;
use tcpmig_sys::sockopt::{receive_queue_len, send_queue_len};

use super::UpgradeError;
use super::systemd::{Notify, Passed};
use crate::http::{Handle, NotMoved};
use crate::session::{Arrival, Departed, Parts, Way};

/// The layer that says how far a connection was read and written; it lies on top.
const KIND: &str = "tcpmig-read-and-written";
const VERSION: u32 = 1;
/// What the names of descriptors begin with: sockets, and what runs on them.
const NAMES: [&str; 2] = ["tcpmig-socket-", "tcpmig-state-"];

/// The descriptor store of systemd, with sessions in it.
///
/// A session is put in by being [noted](Store::note): systemd then keeps a duplicate of its socket, and beside it, in memory, what the server knew
/// at that moment. If the server crashes, and is started again, [`Store::open`] gives it the sessions back.
///
/// # What survives
///
/// | | |
/// |---|---|
/// | a session of which nothing was read and to which nothing was written since it was noted | goes on from the state that was noted, with all that its peer has sent since and all that the peer has not fetched |
/// | a request that had been read and not begun when its session was noted | may be begun twice, if it was not answered before the crash |
/// | one that was read or written since | is closed: what the server knew of it is gone with it |
/// | one over TLS | is not noted: its secrets are not given to anybody but the next owner |
/// | what waits to be accepted | survives with a listener that systemd has (a socket unit) |
/// | all of it, over a restart of the machine or a stop of the service | does not survive: systemd closes what it keeps (`FileDescriptorStorePreserve=` lets it live through a stop) |
///
/// Which of them it is the kernel says, which counts what a socket has read and written; so a state that is older than its connection is never taken
/// for the current one. A response in the middle, an SSE stream or a WebSocket that is at rest when it is noted survives as well.
///
/// The unit needs `FileDescriptorStoreMax=`, twice as many as there are sessions, and `NotifyAccess=main`.
///
/// # What it costs
///
/// A session that is noted is taken apart as for a move, and put together again: the handler of a WebSocket returns and is called again. Note a session when
/// what you know of it has changed and it comes to rest, not after each byte.
#[derive(Debug, Clone)]
pub struct Store(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    notify: Notify,
    kept: Mutex<HashMap<FourTuple, Kept>>,
    next: AtomicU64,
}

/// What systemd keeps of a session.
#[derive(Debug)]
struct Kept {
    number: u64,
    state: File,
    /// Somebody waits for its end.
    is_followed: bool,
}

/// Why a session was not noted; it goes on, and what was noted before holds.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NotNoted {
    /// It is over, busy, or cannot be taken apart.
    #[error("the session is not at rest: {0}")]
    NotAtRest(String),
    /// It runs over TLS.
    #[error(
        "the session has secrets (the layer {0:?}), which are not given to the descriptor store"
    )]
    Secret(String),
    /// It cannot be kept.
    #[error(transparent)]
    Kept(#[from] Arc<UpgradeError>),
}

impl Store {
    /// Tells systemd by this, and takes what it has kept: sessions that go on, for
    /// [`Server::arrived`](crate::http::Server::arrived), after which they should be noted again. Those that do not go on are closed.
    ///
    /// # Errors
    ///
    /// [`UpgradeError`]: systemd cannot be told.
    pub fn open(notify: Notify, passed: &mut Passed) -> Result<(Self, Vec<Arrival>), UpgradeError> {
        let mut pairs = HashMap::<u64, [Option<OwnedFd>; 2]>::new();
        let mut others = Vec::new();
        for (name, descriptor) in passed.0.drain(..) {
            let number = |kind: usize| Some((kind, name.strip_prefix(NAMES[kind])?.parse().ok()?));
            match number(0).or_else(|| number(1)) {
                Some((kind, number)) => pairs.entry(number).or_default()[kind] = Some(descriptor),
                None => others.push((name, descriptor)),
            }
        }
        passed.0 = others;
        // The next version of this server has other numbers, and so has the next process: it begins later, and notes fewer than one in a
        // microsecond.
        let next = process::monotonic().as_micros() as u64;
        let next = pairs.keys().max().map_or(next, |last| next.max(last + 1));
        let (mut kept, mut arrivals) = (HashMap::new(), Vec::new());
        for (number, pair) in pairs {
            match taken(pair) {
                Ok((arrival, state)) => {
                    let is_followed = false;
                    let one = Kept {
                        number,
                        state,
                        is_followed,
                    };
                    kept.insert(arrival.flow, one);
                    arrivals.push(arrival);
                }
                Err(why) => {
                    tracing::info!(number, %why, "a session does not survive the crash of its server");
                    forget(&notify, number)?;
                }
            }
        }
        let shared = Shared {
            notify,
            kept: Mutex::new(kept),
            next: AtomicU64::new(next),
        };
        Ok((Self(Arc::new(shared)), arrivals))
    }

    /// How systemd is told.
    #[must_use]
    pub fn notify(&self) -> &Notify {
        &self.0.notify
    }

    /// How many sessions are in it.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.lock().len()
    }

    /// Notes what is known of a session, at its next safe point. It is forgotten when it does not live here any longer. Needs a tokio runtime.
    ///
    /// # Errors
    ///
    /// [`NotNoted`]; the session goes on.
    pub async fn note(&self, session: &Handle) -> Result<(), NotNoted> {
        let flow = match session.move_to(&Noting(self.0.clone()), &()).await {
            Err(NotMoved::Kept(Noted(noted))) => noted?,
            Err(other) => return Err(NotNoted::NotAtRest(other.to_string())),
            Ok(never) => match never {},
        };
        let is_new = self
            .0
            .lock()
            .get_mut(&flow)
            .is_some_and(|kept| !std::mem::replace(&mut kept.is_followed, true));
        if is_new {
            let (session, shared) = (session.clone(), self.0.clone());
            tokio::spawn(async move {
                session.gone().await;
                let kept = shared.lock().remove(&flow);
                if let Some(kept) = kept
                    && let Err(error) = forget(&shared.notify, kept.number)
                {
                    tracing::warn!(%error, "systemd keeps a session that is over");
                }
            });
        }
        Ok(())
    }
}

/// Has systemd close what it keeps of a session.
fn forget(notify: &Notify, number: u64) -> Result<(), UpgradeError> {
    NAMES
        .iter()
        .try_for_each(|name| notify.remove(&format!("{name}{number}")))
}

/// A session that was kept.
fn taken([socket, state]: [Option<OwnedFd>; 2]) -> Result<(Arrival, File), String> {
    let (Some(socket), Some(state)) = (socket, state) else {
        return Err("one of its descriptors was not kept".to_owned());
    };
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let mut state = File::from(state);
    let mut bytes = Vec::new();
    state
        .rewind()
        .and_then(|()| state.read_to_end(&mut bytes))
        .map_err(|error| text(&error))?;
    let image = Image::decode(&bytes, &Limits::DEFAULT).map_err(|error| text(&error))?;
    let mut layers = image.layers;
    let noted = layers.pop().ok_or("nothing was noted of it")?;
    let numbers = LayerReader::new(std::slice::from_ref(&noted)).next_of(KIND);
    if numbers.is_none_or(|noted| noted.version != VERSION) {
        return Err(noted.unconsumed().to_string());
    }
    let now = read_and_written(&socket).map_err(|error| text(&error))?;
    if noted.payload[..] != now.layer().payload[..] {
        return Err("it was used after it had been noted".to_owned());
    }
    let flow = flow(&socket).map_err(|error| text(&error))?;
    Ok((Arrival::new(Parts { socket, layers }, flow), state))
}

fn flow(socket: &OwnedFd) -> Result<FourTuple, UpgradeError> {
    let ends = || -> io::Result<FourTuple> {
        let stream = TcpStream::from(socket.try_clone()?);
        let flow = FourTuple::new(stream.local_addr()?, stream.peer_addr()?);
        flow.map_err(io::Error::other)
    };
    ends().map_err(UpgradeError::call("ask for the addresses of a connection"))
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, HashMap<FourTuple, Kept>> {
        // A panic elsewhere leaves whole values only.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, parts: &Parts) -> Result<FourTuple, NotNoted> {
        if let Some(layer) = parts.layers.iter().find(|layer| is_secret(layer)) {
            return Err(NotNoted::Secret(layer.kind.clone()));
        }
        self.keep(parts)
            .map_err(|error| NotNoted::Kept(Arc::new(error)))
    }

    fn keep(&self, parts: &Parts) -> Result<FourTuple, UpgradeError> {
        let now = read_and_written(&parts.socket)?;
        let mut image = Image::default();
        image.layers.clone_from(&parts.layers);
        image.layers.push(now.layer());
        let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
        let bytes = image
            .encode()
            .map_err(|error| UpgradeError::call("encode the session")(invalid(error)))?;
        let flow = flow(&parts.socket)?;
        let mut kept = self.lock();
        if let Some(kept) = kept.get_mut(&flow) {
            return write(&mut kept.state, &bytes).map(|()| flow);
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let mut state = files::in_memory("tcpmig-state")?;
        write(&mut state, &bytes)?;
        let [socket_name, state_name] = NAMES.map(|name| format!("{name}{number}"));
        self.notify.store(&state_name, &[state.as_fd()])?;
        if let Err(error) = self.notify.store(&socket_name, &[parts.socket.as_fd()]) {
            // The other error is the one to tell.
            let _ = forget(&self.notify, number);
            return Err(error);
        }
        kept.insert(
            flow,
            Kept {
                number,
                state,
                is_followed: false,
            },
        );
        Ok(flow)
    }
}

/// Makes these bytes all that is in a file. A process that is killed in the middle leaves something that cannot be decoded.
fn write(state: &mut File, bytes: &[u8]) -> Result<(), UpgradeError> {
    let written = state
        .set_len(0)
        .and_then(|()| state.rewind())
        .and_then(|()| state.write_all(bytes));
    written.map_err(UpgradeError::call("note the session"))
}

#[cfg_attr(
    not(feature = "tls"),
    expect(unused_variables, reason = "nothing else is secret")
)]
fn is_secret(layer: &Layer) -> bool {
    #[cfg(feature = "tls")]
    let is_secret = [crate::tls::KIND, crate::tls::CLIENT_KIND].contains(&&*layer.kind);
    #[cfg(not(feature = "tls"))]
    let is_secret = false;
    is_secret
}

/// How many bytes a process has read from a socket and written to it since its connection began.
#[derive(Debug, PartialEq, Eq)]
struct ReadAndWritten {
    read: u64,
    written: u64,
}

impl ReadAndWritten {
    fn layer(&self) -> Layer {
        let numbers = [self.read.to_be_bytes(), self.written.to_be_bytes()];
        Layer::new(KIND, VERSION, numbers.concat())
    }
}

/// How often to look while packets come and go.
const LOOKS: usize = 1000;

fn read_and_written(socket: &OwnedFd) -> Result<ReadAndWritten, UpgradeError> {
    let fd = socket.as_fd();
    for _ in 0..LOOKS {
        let before = tcp_info(fd)?;
        if before.state != State::Established {
            return Err(UpgradeError::Unexpected(
                "a connection that its peer has ended",
            ));
        }
        let unread = u64::from(receive_queue_len(fd)?);
        let unacknowledged = u64::from(send_queue_len(fd)?);
        let after = tcp_info(fd)?;
        let counts = |info: &tcpmig_sys::info::Info| (info.bytes_received, info.bytes_acked);
        if counts(&before) == counts(&after) {
            return Ok(ReadAndWritten {
                read: after.bytes_received.wrapping_sub(unread),
                written: after.bytes_acked.wrapping_add(unacknowledged),
            });
        }
    }
    Err(UpgradeError::Unexpected(
        "a connection that does not come to rest",
    ))
}

/// Notes sessions that are told to depart, and keeps them.
#[derive(Clone)]
struct Noting(Arc<Shared>);

/// What became of that.
#[derive(Debug, thiserror::Error)]
#[error("the session was looked at")]
struct Noted(Result<FourTuple, NotNoted>);

impl Way for Noting {
    type Destination = ();
    type Report = std::convert::Infallible;
    type Cause = Noted;

    async fn depart(&self, parts: Parts, (): &()) -> Departed<Self::Report, Noted> {
        let cause = Noted(self.0.note(&parts));
        Departed::Kept { parts, cause }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::net::UnixDatagram;

    use tcpmig_sys::process::passing::receive_message;

    use super::*;

    /// A store, and who is told.
    fn store(passed: Vec<(String, OwnedFd)>) -> (Store, Vec<Arrival>, UnixDatagram) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let told = UnixDatagram::bind(&path).unwrap();
        told.set_nonblocking(true).unwrap();
        let notify = Notify::to(&path).unwrap();
        let (store, arrivals) = Store::open(notify, &mut Passed::of(passed)).unwrap();
        (store, arrivals, told)
    }

    /// What was said, and the descriptors that came.
    fn said(told: &UnixDatagram) -> Vec<(String, Vec<OwnedFd>)> {
        let mut message = [0; 1000];
        let mut said = Vec::new();
        while let Ok((len, descriptors)) = receive_message(told, &mut message) {
            said.push((
                String::from_utf8_lossy(&message[..len]).into_owned(),
                descriptors,
            ));
        }
        said
    }

    fn session(kind: &str) -> (TcpStream, Parts) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let socket = listener.accept().unwrap().0.into();
        let layers = vec![Layer::new(kind, 1, &b"state"[..])];
        (peer, Parts { socket, layers })
    }

    #[cfg(feature = "tls")]
    #[test]
    fn secrets_are_not_given_away() {
        let (store, _, told) = store(Vec::new());
        for kind in [crate::tls::KIND, crate::tls::CLIENT_KIND] {
            let (_peer, parts) = session(kind);
            let refused = store.0.note(&parts).unwrap_err();
            assert!(refused.to_string().contains(kind), "{refused}");
        }
        assert!(said(&told).is_empty());
        assert_eq!(store.count(), 0);
    }

    /// A session survives as it was noted, or not at all.
    #[test]
    fn a_state_that_is_older_than_its_connection_is_not_taken() {
        let (here, _, told) = store(Vec::new());
        let (mut peer, parts) = session("org.example.chat");
        here.0.note(&parts).unwrap();
        let kept: Vec<(String, OwnedFd)> = said(&told)
            .into_iter()
            .map(|(text, mut descriptors)| {
                let name = text.split_once("FDNAME=").unwrap().1.to_owned();
                (name, descriptors.pop().unwrap())
            })
            .collect();
        assert_eq!(kept.len(), 2);
        let after_a_crash = || {
            let kept = kept.iter();
            let kept = kept.map(|(name, fd)| (name.clone(), fd.try_clone().unwrap()));
            let (_, arrivals, told) = store(kept.collect());
            (arrivals, said(&told).len())
        };
        let comes_back = || {
            let (arrivals, removed) = after_a_crash();
            assert_eq!((arrivals.len(), removed), (1, 0));
            assert_eq!(arrivals[0].layers, parts.layers);
        };
        let is_gone = || {
            let (arrivals, removed) = after_a_crash();
            assert_eq!((arrivals.len(), removed), (0, 2));
        };
        comes_back();
        // What the peer sends, and fetches, is not for the server to know.
        peer.write_all(b"question").unwrap();
        comes_back();
        let mut server = TcpStream::from(parts.socket.try_clone().unwrap());
        server.read_exact(&mut [0; 8]).unwrap();
        is_gone();
        here.0.note(&parts).unwrap();
        comes_back();
        server.write_all(b"answer").unwrap();
        is_gone();
        here.0.note(&parts).unwrap();
        comes_back();
        // One of its descriptors alone is nothing.
        let (_, arrivals, told) = store(vec![(kept[0].0.clone(), kept[0].1.try_clone().unwrap())]);
        assert_eq!((arrivals.len(), said(&told).len()), (0, 2));
        drop(peer);
        server.read_exact(&mut [0]).unwrap_err();
        is_gone();
    }
}
