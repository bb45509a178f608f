//! The new process: it gets the listeners, and then what the old one has.

use std::collections::HashMap;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use tcpmig_format::{FourTuple, Image, Layer, Limits};
use tokio::sync::mpsc;

use super::UpgradeError;
use super::frame::{self, Frame, Kind, VERSION};
use super::socket::same_user;
use crate::handover::Refusal;
use crate::session::{Arrival, Parts};

/// How long the old process may take to greet.
const GREETED_WITHIN: Duration = Duration::from_secs(10);

type Check = Arc<dyn Fn(&[Layer]) -> Result<(), Refusal> + Send + Sync>;

/// A new version of a server, in contact with the old one.
///
/// Until [`Successor::ready`] the old process goes on as if nothing had happened; dropping this leaves it so.
pub struct Successor {
    stream: UnixStream,
    process: u32,
    listeners: Vec<(String, OwnedFd)>,
    check: Check,
}

impl std::fmt::Debug for Successor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Successor")
            .field("process", &self.process)
            .field("listeners", &self.listeners)
            .finish_non_exhaustive()
    }
}

impl Successor {
    /// Connects to the old process, if one waits at this path. `check` says of a session's layers whether this version
    /// can go on with them, before the old process gives it up; it must not wait, and is called on a thread of its own.
    ///
    /// # Errors
    ///
    /// [`UpgradeError`]; the old process, if there is one, goes on.
    pub async fn connect(
        path: impl AsRef<Path>,
        check: impl Fn(&[Layer]) -> Result<(), Refusal> + Send + Sync + 'static,
    ) -> Result<Option<Self>, UpgradeError> {
        let path = path.as_ref().to_owned();
        let connecting = tokio::task::spawn_blocking(move || greeted(&path, Arc::new(check)));
        match connecting.await {
            Ok(connected) => connected,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Err(UpgradeError::Gone),
            },
        }
    }

    /// The old process.
    #[must_use]
    pub fn process(&self) -> u32 {
        self.process
    }

    /// The listener that the old process has by this name; none if it has none, or if it was taken before.
    pub fn listener(&mut self, name: &str) -> Option<TcpListener> {
        self.descriptor(name).map(TcpListener::from)
    }

    /// The same, whatever kind of socket it is.
    pub fn descriptor(&mut self, name: &str) -> Option<OwnedFd> {
        let at = self.listeners.iter().position(|(known, _)| known == name)?;
        Some(self.listeners.swap_remove(at).1)
    }

    /// Says that this process accepts from now on. The old one stops, and gives away what it has.
    ///
    /// # Errors
    ///
    /// [`UpgradeError::Call`] if the old process has ended.
    pub async fn ready(self) -> Result<Arrivals, UpgradeError> {
        let (sender, arrivals) = mpsc::unbounded_channel();
        let waiting = Arc::new(());
        frame::send(&self.stream, Kind::Ready, 0, None, b"")?;
        let mut taking = Taking {
            stream: self.stream,
            check: self.check,
            offered: HashMap::new(),
            arrivals: sender,
            waiting: Arc::downgrade(&waiting),
            hurries: false,
        };
        let take = move || {
            if let Err(error) = taking.run() {
                tracing::warn!(process = self.process, %error, "the old version gives nothing more");
            }
        };
        let thread = thread::Builder::new()
            .name("upgrade".to_owned())
            .spawn(take);
        thread.map_err(UpgradeError::call("start a thread"))?;
        Ok(Arrivals { arrivals, waiting })
    }
}

fn greeted(path: &Path, check: Check) -> Result<Option<Successor>, UpgradeError> {
    let stream = match UnixStream::connect(path) {
        Ok(stream) => stream,
        // Nobody waits there, or nobody any longer.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(UpgradeError::call("connect to the old process")(error)),
    };
    let process = same_user(&stream)?;
    stream
        .set_write_timeout(Some(GREETED_WITHIN))
        .and_then(|()| stream.set_read_timeout(Some(GREETED_WITHIN)))
        .map_err(UpgradeError::call("prepare the socket"))?;
    frame::send(&stream, Kind::Hello, VERSION.into(), None, b"")?;
    let mut listeners = Vec::new();
    loop {
        let frame = match frame::receive(&stream)? {
            Some(frame) if frame.kind == Kind::Listener => frame,
            Some(frame) if frame.kind == Kind::Welcome => {
                if frame.number != u64::from(VERSION) {
                    return Err(UpgradeError::Version(frame.number as u16));
                }
                break;
            }
            Some(_) => return Err(UpgradeError::Unexpected("a frame out of its order")),
            None => return Err(UpgradeError::Gone),
        };
        let listener = frame.descriptor.ok_or(UpgradeError::Unexpected(
            "a listener without its descriptor: this process has no room for more",
        ))?;
        listeners.push((
            String::from_utf8_lossy(&frame.payload).into_owned(),
            listener,
        ));
    }
    // Sessions come when they come.
    stream
        .set_read_timeout(None)
        .map_err(UpgradeError::call("prepare the socket"))?;
    Ok(Some(Successor {
        stream,
        process,
        listeners,
        check,
    }))
}

/// How many sessions may have come and wait to be served.
const MOST_WAITING: usize = 64;
/// How long a server may take until one of so many is served.
const BEGUN_WITHIN: Duration = Duration::from_secs(1);
/// How often it is looked whether one is.
const BEGUN: Duration = Duration::from_micros(500);

/// What the old process gives away.
#[derive(Debug)]
pub struct Arrivals {
    arrivals: mpsc::UnboundedReceiver<Arrival>,
    /// Those that came and are not served yet have one each. They are counted without a server of `http` too, which alone asks here.
    #[cfg_attr(not(feature = "http"), expect(dead_code, reason = "it is counted"))]
    waiting: Arc<()>,
}

impl Arrivals {
    /// Those of a process that takes over from nobody.
    #[must_use]
    pub fn none() -> Self {
        let (_, arrivals) = mpsc::unbounded_channel();
        Self {
            arrivals,
            waiting: Arc::default(),
        }
    }

    /// The next session; none when the old process has no more, or has ended. Cancel-safe.
    pub async fn next(&mut self) -> Option<Arrival> {
        self.arrivals.recv().await
    }

    /// Whether something came that no server has begun to serve.
    #[cfg(feature = "http")]
    pub(super) fn are_waiting(&self) -> bool {
        Arc::strong_count(&self.waiting) > 1
    }
}

/// Takes sessions, on a thread of its own.
struct Taking {
    stream: UnixStream,
    check: Check,
    /// Those that can go on here, if the old process says so.
    offered: HashMap<u64, Arrival>,
    arrivals: mpsc::UnboundedSender<Arrival>,
    /// Those that came and are not served yet have one each.
    waiting: Weak<()>,
    /// It waits for nobody any more.
    hurries: bool,
}

impl Taking {
    /// Until there are no more. What was offered and not ordered is dropped: it lives in the old process.
    fn run(&mut self) -> Result<(), UpgradeError> {
        loop {
            let Some(frame) = frame::receive(&self.stream)? else {
                return Err(UpgradeError::Gone);
            };
            match frame.kind {
                Kind::Session => {
                    let number = frame.number;
                    match self.look_at(frame) {
                        Ok(arrival) => {
                            self.offered.insert(number, arrival);
                            self.let_others_begin();
                            frame::send(&self.stream, Kind::Taken, number, None, b"")?;
                        }
                        Err(refusal) => {
                            let why = refusal.reason.as_bytes();
                            frame::send(&self.stream, Kind::Refused, number, None, why)?;
                        }
                    }
                }
                Kind::Commit => {
                    let arrival = self.offered.remove(&frame.number);
                    let mut arrival = arrival.ok_or(UpgradeError::Unexpected(
                        "an order for a session that was not offered",
                    ))?;
                    arrival._waits = self.waiting.upgrade();
                    if self.arrivals.send(arrival).is_err() {
                        // This server does not take anything any longer.
                        return Ok(());
                    }
                }
                Kind::Abort => drop(self.offered.remove(&frame.number)),
                Kind::Finished => return Ok(()),
                _ => return Err(UpgradeError::Unexpected("a frame out of its order")),
            }
        }
    }

    /// Sessions stand still from when the old process stops serving them: while too many wait to be served here it goes on with the rest. A
    /// server that begins with none of them, because it wants to have all of them first, is not waited for.
    fn let_others_begin(&mut self) {
        let begin = Instant::now();
        while !self.hurries && self.waiting.strong_count() > MOST_WAITING {
            if begin.elapsed() > BEGUN_WITHIN {
                self.hurries = true;
            }
            thread::sleep(BEGUN);
        }
    }

    /// Whether a session can go on here.
    fn look_at(&self, frame: Frame) -> Result<Arrival, Refusal> {
        let refused = |reason: &str| Refusal::from(reason.to_owned());
        let socket = frame.descriptor.ok_or_else(|| {
            refused("the new process has no room for more descriptors (RLIMIT_NOFILE)")
        })?;
        let image = Image::decode(&frame.payload, &Limits::DEFAULT);
        let image = image.map_err(|error| Refusal::from(error.to_string()))?;
        (self.check)(&image.layers)?;
        let stream = TcpStream::from(socket);
        let flow = stream
            .local_addr()
            .and_then(|local| Ok((local, stream.peer_addr()?)));
        let (local, remote) = flow.map_err(|error| refused(&format!("its addresses: {error}")))?;
        let flow =
            FourTuple::new(local, remote).map_err(|error| Refusal::from(error.to_string()))?;
        let parts = Parts {
            socket: stream.into(),
            layers: image.layers,
        };
        Ok(Arrival::new(parts, flow))
    }
}
