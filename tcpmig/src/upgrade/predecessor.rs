//! The old process: it waits for the next version, and gives away what it has.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, mpsc as queue};
use std::thread;
use std::time::Duration;

use tcpmig_format::{Image, SecretBytes};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{interval, sleep, timeout};

use super::frame::{self, Frame, Kind, VERSION};
use super::socket::{SocketFile, same_user};
use super::{NotTaken, UpgradeError};
use crate::session::{Departed, Parts, Way};

/// How long a new process may take for an answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// How long a session stays before another attempt to give it away.
#[cfg(feature = "http")]
const AGAIN: Duration = Duration::from_millis(20);
/// How many sessions stand still at a time, on their way to the new process.
#[cfg(feature = "http")]
const AT_ONCE: usize = 64;
/// How often it is looked whether the next version would come here.
const LOOKED: Duration = Duration::from_secs(1);
/// How long nobody is accepted after an attempt to do so has failed.
const FAILED: Duration = Duration::from_millis(100);

/// Waits for the next version of this server, at a Unix socket. Dropping it removes the socket.
#[derive(Debug)]
pub struct Predecessor {
    socket: UnixListener,
    listeners: Arc<Mutex<Vec<(String, OwnedFd)>>>,
    answer_within: Duration,
    ready: (mpsc::UnboundedSender<Next>, mpsc::UnboundedReceiver<Next>),
    file: SocketFile,
    /// It was said that nobody finds this one.
    is_lost: bool,
}

impl Predecessor {
    /// Waits at this path from now on, in place of an older process that did: it keeps what connected to it before.
    ///
    /// The folder should be writable by this user only, as `/run/user/UID` or systemd's `RuntimeDirectory=` are. Needs a tokio
    /// runtime with input and output.
    ///
    /// # Errors
    ///
    /// [`UpgradeError::Call`]: the socket cannot be made, or something that is not a socket has that name. Nothing is left behind.
    pub fn bind(path: impl AsRef<Path>) -> Result<Self, UpgradeError> {
        let (listener, file) = SocketFile::bind(path.as_ref())?;
        let socket = listener
            .set_nonblocking(true)
            .and_then(|()| UnixListener::from_std(listener))
            .map_err(UpgradeError::call("register the socket"))?;
        Ok(Self {
            socket,
            listeners: Arc::default(),
            answer_within: ANSWER_WITHIN,
            ready: mpsc::unbounded_channel(),
            file,
            is_lost: false,
        })
    }

    /// Passes a duplicate of this listener, by this name, to whoever takes over.
    ///
    /// # Errors
    ///
    /// [`UpgradeError::Call`] if there are no more descriptors.
    pub fn listener(self, name: &str, listener: &impl AsFd) -> Result<Self, UpgradeError> {
        let duplicate = listener.as_fd().try_clone_to_owned();
        let duplicate = duplicate.map_err(UpgradeError::call("duplicate the listener"))?;
        lock(&self.listeners).push((name.to_owned(), duplicate));
        Ok(self)
    }

    /// How long a new process may take to answer for one session; 10 s without this. One that takes longer hangs, and is left
    /// alone.
    #[must_use]
    pub fn answer_within(mut self, time: Duration) -> Self {
        self.answer_within = time;
        self
    }

    /// The next version of this server, when it is ready to take over. It accepts already: stop accepting, and give it what
    /// you have. Cancel-safe.
    ///
    /// Attempts that fail (another user, another version of the protocol, a process that ends while it starts) are in the log,
    /// and change nothing. If such a process had taken the path for itself, this one is found there again.
    pub async fn next(&mut self) -> Next {
        let mut looks = interval(LOOKED);
        loop {
            tokio::select! {
                _ = looks.tick() => self.come_back().await,
                Some(next) = self.ready.1.recv() => return next,
                accepted = self.socket.accept() => match accepted {
                    Ok((stream, _)) => self.greet(stream),
                    Err(error) => {
                        tracing::warn!(%error, "the next version cannot connect");
                        sleep(FAILED).await;
                    }
                },
            }
        }
    }

    /// Takes the path again if whoever had taken it is dead.
    async fn come_back(&mut self) {
        if self.file.is_there() {
            return;
        }
        let path = self.file.path().to_owned();
        let is_dead = tokio::net::UnixStream::connect(&path)
            .await
            .is_err_and(|error| {
                matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                )
            });
        if !is_dead {
            return;
        }
        match Self::bind(&path) {
            Ok(Self { socket, file, .. }) => {
                (self.socket, self.file, self.is_lost) = (socket, file, false);
                tracing::info!(path = %path.display(), "a process that was to take over is dead, and its socket is replaced");
            }
            Err(error) if !self.is_lost => {
                self.is_lost = true;
                tracing::warn!(%error, "the next version finds nobody, until this can be mended");
            }
            Err(_) => {}
        }
    }

    /// On a thread of its own: it may take its time.
    fn greet(&self, stream: tokio::net::UnixStream) {
        let (listeners, ready) = (self.listeners.clone(), self.ready.0.clone());
        let within = self.answer_within;
        let greet = move || {
            let greeted = stream
                .into_std()
                .and_then(|stream| stream.set_nonblocking(false).map(|()| stream))
                .map_err(UpgradeError::call("prepare the socket"))
                .and_then(|stream| {
                    greet(&stream, &listeners, within).map(|process| (stream, process))
                })
                .and_then(|(stream, process)| Next::start(stream, process, within));
            match greeted {
                Ok(next) => {
                    tracing::info!(
                        process = next.0.process,
                        "the next version is ready to take over"
                    );
                    // Nobody is interested if the server ends now.
                    let _ = ready.send(next);
                }
                Err(error) => tracing::warn!(%error, "a process does not take over"),
            }
        };
        if let Err(error) = thread::Builder::new()
            .name("upgrade".to_owned())
            .spawn(greet)
        {
            tracing::warn!(%error, "the next version cannot be greeted");
        }
    }
}

/// Tells a new process what is listened on, and waits until it is ready; which process it is.
fn greet(
    stream: &UnixStream,
    listeners: &Mutex<Vec<(String, OwnedFd)>>,
    within: Duration,
) -> Result<u32, UpgradeError> {
    let process = same_user(stream)?;
    let limit = |time| {
        stream
            .set_write_timeout(Some(within))
            .and_then(|()| stream.set_read_timeout(time))
            .map_err(UpgradeError::call("prepare the socket"))
    };
    limit(Some(within))?;
    let hello = expect(stream, Kind::Hello, within)?;
    if hello.number != u64::from(VERSION) {
        // It is told which version this is.
        frame::send(stream, Kind::Welcome, VERSION.into(), None, b"")?;
        return Err(UpgradeError::Version(hello.number as u16));
    }
    for (name, listener) in lock(listeners).iter() {
        frame::send(
            stream,
            Kind::Listener,
            0,
            Some(listener.as_fd()),
            name.as_bytes(),
        )?;
    }
    frame::send(stream, Kind::Welcome, VERSION.into(), None, b"")?;
    // It may take as long as it wants to start.
    limit(None)?;
    expect(stream, Kind::Ready, within)?;
    Ok(process)
}

/// A frame that has to be of this kind.
fn expect(stream: &UnixStream, kind: Kind, within: Duration) -> Result<Frame, UpgradeError> {
    match frame::receive(stream) {
        Ok(Some(frame)) if frame.kind == kind => Ok(frame),
        Ok(Some(_)) => Err(UpgradeError::Unexpected("a frame out of its order")),
        Ok(None) => Err(UpgradeError::Gone),
        Err(error) if is_late(&error) => Err(UpgradeError::Silent(within)),
        Err(error) => Err(error),
    }
}

fn is_late(error: &UpgradeError) -> bool {
    let kind = match error {
        UpgradeError::Call { source, .. } => source.kind(),
        UpgradeError::Passing(error) => match error.errno() {
            Some(number) => io::Error::from_raw_os_error(number).kind(),
            None => return false,
        },
        _ => return false,
    };
    kind == io::ErrorKind::WouldBlock
}

/// What the thread that writes is to send.
enum Order {
    /// A session, unless it is no longer to be passed.
    Session(u64, Weak<OwnedFd>, SecretBytes),
    /// Whoever asked is told when it is written.
    Told(Kind, u64, oneshot::Sender<()>),
    Abort(u64),
}

/// The next version of this server, which takes what it is given: a [`Way`] to it.
#[derive(Debug, Clone)]
pub struct Next(Arc<Link>);

#[derive(Debug)]
struct Link {
    process: u32,
    stream: UnixStream,
    orders: queue::Sender<Order>,
    answers: Mutex<HashMap<u64, oneshot::Sender<Result<(), String>>>>,
    next: AtomicU64,
    gone: AtomicBool,
    within: Duration,
}

impl std::fmt::Debug for Order {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Order")
    }
}

/// A panic elsewhere leaves whole values only.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Next {
    fn start(stream: UnixStream, process: u32, within: Duration) -> Result<Self, UpgradeError> {
        let clone = || {
            stream
                .try_clone()
                .map_err(UpgradeError::call("duplicate the socket"))
        };
        let (reads, writes) = (clone()?, clone()?);
        let (orders, ordered) = queue::channel();
        let link = Arc::new(Link {
            process,
            stream,
            orders,
            answers: Mutex::default(),
            next: AtomicU64::new(1),
            gone: AtomicBool::new(false),
            within,
        });
        let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
            let thread = thread::Builder::new().name(name.to_owned()).spawn(work);
            thread
                .map(drop)
                .map_err(UpgradeError::call("start a thread"))
        };
        // Neither keeps the link: when nobody has it any longer the socket is shut down, which ends both.
        let weak = Arc::downgrade(&link);
        spawn("upgrade read", Box::new(move || read(&reads, &weak)))?;
        let weak = Arc::downgrade(&link);
        spawn(
            "upgrade write",
            Box::new(move || write(&writes, &ordered, &weak)),
        )?;
        Ok(Self(link))
    }

    /// The process that takes over.
    #[must_use]
    pub fn process(&self) -> u32 {
        self.0.process
    }

    /// Whether it has ended or hangs: what it was not ordered to take stays here. Go on as before, and wait for another.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.0.gone.load(Ordering::Acquire)
    }

    /// Gives it all sessions of this server, and what an even older version still brings here: give that to `serve`, which has
    /// [`Server::arrived`] called for it in a task, as ever. It tries again what could not move at once, and says at the end that nothing else will come.
    ///
    /// Stop accepting before. When it returns without an error nothing is left here.
    ///
    /// [`Server::arrived`]: crate::http::Server::arrived
    ///
    /// # Errors
    ///
    /// [`UpgradeError::Gone`]: the new process has ended, or hangs. What it did not take goes on here: accept again, and wait for
    /// another one.
    #[cfg(feature = "http")]
    pub async fn take_all<S, K>(
        self,
        server: &crate::http::Server<S, K>,
        arrivals: &mut super::Arrivals,
        mut serve: impl FnMut(crate::session::Arrival),
    ) -> Result<(), UpgradeError> {
        let mut more = true;
        loop {
            if self.is_gone() {
                return Err(UpgradeError::Gone);
            }
            if !more && !arrivals.are_waiting() && server.count() == 0 {
                return self.finish().await;
            }
            for (peer, moved) in server.move_all(&self, &(), AT_ONCE).await {
                if let Err(why) = moved {
                    tracing::debug!(%peer, %why, "a session stays for now");
                }
            }
            tokio::select! {
                arrival = arrivals.next(), if more => match arrival {
                    Some(arrival) => serve(arrival),
                    None => more = false,
                },
                () = sleep(AGAIN) => {}
            }
        }
    }

    /// Says that nothing else will come.
    ///
    /// # Errors
    ///
    /// [`UpgradeError::Gone`]: the new process has ended, and nobody but this one listens.
    pub async fn finish(self) -> Result<(), UpgradeError> {
        self.0
            .tell(Kind::Finished, 0)
            .await
            .map_err(|_| UpgradeError::Gone)
    }
}

impl Link {
    /// What was not committed stays here, whatever the other end does.
    fn give_up(&self) {
        self.gone.store(true, Ordering::Release);
        // The other end sees that it ends; both threads here do as well.
        let _ = self.stream.shutdown(Shutdown::Both);
        // Whoever waits for an answer is told that none will come.
        lock(&self.answers).clear();
    }

    /// Sends something, and waits until it is written.
    async fn tell(&self, kind: Kind, number: u64) -> Result<(), NotTaken> {
        let (sender, written) = oneshot::channel();
        self.order(Order::Told(kind, number, sender))?;
        written.await.map_err(|_| NotTaken::Gone)
    }

    fn order(&self, order: Order) -> Result<(), NotTaken> {
        if self.gone.load(Ordering::Acquire) {
            return Err(NotTaken::Gone);
        }
        self.orders.send(order).map_err(|_| NotTaken::Gone)
    }

    /// Has a session taken. It lives there afterwards, or nowhere but here.
    async fn pass(&self, socket: &Arc<OwnedFd>, image: SecretBytes) -> Result<(), NotTaken> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        lock(&self.answers).insert(number, sender);
        let passed = async {
            self.order(Order::Session(number, Arc::downgrade(socket), image))?;
            match timeout(self.within, answer).await {
                Ok(Ok(answer)) => answer.map_err(NotTaken::Refused),
                Ok(Err(_)) => Err(NotTaken::Gone),
                Err(_) => Err(NotTaken::Silent(self.within)),
            }
        };
        match passed.await {
            Ok(()) => self.tell(Kind::Commit, number).await,
            Err(why) => {
                lock(&self.answers).remove(&number);
                if let NotTaken::Silent(_) = why {
                    tracing::warn!(
                        process = self.process,
                        "the next version does not answer; it is left alone"
                    );
                    self.give_up();
                }
                Err(why)
            }
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.give_up();
    }
}

/// Reads answers until the other end is gone.
fn read(stream: &UnixStream, link: &Weak<Link>) {
    loop {
        let frame = frame::receive(stream);
        let Some(link) = link.upgrade() else { return };
        let answer = match frame {
            Ok(Some(Frame {
                kind: Kind::Taken,
                number,
                ..
            })) => (number, Ok(())),
            Ok(Some(Frame {
                kind: Kind::Refused,
                number,
                payload,
                ..
            })) => (number, Err(String::from_utf8_lossy(&payload).into_owned())),
            other => {
                let why = match other {
                    Ok(Some(_)) => UpgradeError::Unexpected("a frame out of its order"),
                    Ok(None) => UpgradeError::Gone,
                    Err(error) => error,
                };
                if !link.gone.load(Ordering::Acquire) {
                    tracing::debug!(process = link.process, error = %why, "the link to the next version ends");
                }
                return link.give_up();
            }
        };
        let (number, answer) = answer;
        let waits = lock(&link.answers).remove(&number);
        if waits.is_none_or(|waits| waits.send(answer).is_err()) {
            // It stays here.
            let _ = link.orders.send(Order::Abort(number));
        }
    }
}

/// Writes what is ordered until nobody orders anything any longer, or nobody reads it.
fn write(stream: &UnixStream, ordered: &queue::Receiver<Order>, link: &Weak<Link>) {
    while let Ok(order) = ordered.recv() {
        // Dropped behind what follows: who is told that it was not written finds the link gone.
        let mut unwritten = None;
        let written = match order {
            Order::Session(number, socket, image) => match socket.upgrade() {
                Some(socket) => {
                    frame::send(stream, Kind::Session, number, Some(socket.as_fd()), &image)
                }
                None => Ok(()),
            },
            Order::Told(kind, number, told) => {
                let written = frame::send(stream, kind, number, None, b"");
                if written.is_ok() {
                    // Whoever asked may have gone.
                    let _ = told.send(());
                } else {
                    unwritten = Some(told);
                }
                written
            }
            Order::Abort(number) => frame::send(stream, Kind::Abort, number, None, b""),
        };
        if written.is_err() {
            if let Some(link) = link.upgrade() {
                link.give_up();
            }
            drop(unwritten);
            return;
        }
    }
}

/// To the next version of this server.
///
/// If the future of [`Way::depart`] is dropped, the session goes to the new process all the same if that takes it; if not, it is closed.
impl Way for Next {
    type Destination = ();
    type Report = ();
    type Cause = NotTaken;

    fn depart(&self, parts: Parts, (): &()) -> impl Future<Output = Departed<(), NotTaken>> + Send {
        let link = self.0.clone();
        async move {
            // A task of its own goes on if the future is dropped.
            match tokio::spawn(depart(link, parts)).await {
                Ok(departed) => departed,
                Err(error) => match error.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    Err(_) => Departed::Lost("the runtime ends".to_owned()),
                },
            }
        }
    }
}

async fn depart(link: Arc<Link>, parts: Parts) -> Departed<(), NotTaken> {
    let mut image = Image::default();
    image.layers = parts.layers;
    let encoded = image.encode();
    let socket = Arc::new(parts.socket);
    let passed = match encoded {
        Ok(bytes) => link.pass(&socket, bytes).await,
        Err(error) => Err(NotTaken::Encode(error.to_string())),
    };
    let Err(cause) = passed else {
        return Departed::Moved(());
    };
    let socket = alone(socket).await;
    Departed::Kept {
        parts: Parts {
            socket,
            layers: image.layers,
        },
        cause,
    }
}

/// The socket, when the thread that writes has done with it: that takes no longer than one call.
async fn alone(mut socket: Arc<OwnedFd>) -> OwnedFd {
    loop {
        match Arc::try_unwrap(socket) {
            Ok(socket) => return socket,
            Err(shared) => socket = shared,
        }
        sleep(Duration::from_millis(1)).await;
    }
}
