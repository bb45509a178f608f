//! The servers: an application that stops when it is told to and goes on where its connection is.

use std::future::Future;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tcpmig::driver::policy::{Policy, Rules};
use tcpmig::driver::{Acceptor, Ending, Mover, Report};
use tcpmig_format::{FourTuple, Layer};
use tcpmig_lock::{Entry, Features, LockError, LockGuard, Locker, NextHop, Nftables, Swept};
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::sync::mpsc as tasks;

use crate::support::{Here, Running, Site};

/// What goes over the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Traffic {
    /// The peer asks once, as soon as the connection is locked.
    Request,
    /// The peer asks every 200 µs, the server answers.
    Requests,
    /// The peer writes as fast as it can.
    Upload,
    /// The same, into a server that reads slowly: the window is closed most of the time.
    SlowUpload,
    /// The server writes as fast as it can.
    Download,
    /// A request now and then.
    Idle,
}

impl Traffic {
    pub(crate) const ALL: [Self; 6] = [
        Self::Request,
        Self::Requests,
        Self::Upload,
        Self::SlowUpload,
        Self::Download,
        Self::Idle,
    ];

    pub(crate) fn is_bulk(self) -> bool {
        matches!(self, Self::Upload | Self::SlowUpload | Self::Download)
    }
}

/// How far the application is.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct State {
    traffic: Traffic,
    read: u64,
    written: u64,
}

/// A stream whose bytes tell their place, to some extent: a prime number of them, repeated.
pub(crate) const ROUND: u64 = 65521;

pub(crate) fn pattern() -> Vec<u8> {
    let round: Vec<u8> = (0..ROUND).map(|at| (at * at / 7 + at) as u8).collect();
    round.repeat(2)
}

/// What the slow reader's receive buffer is set to, in bytes: so small that the peer waits for it all the time.
const SLOW_BUFFER: u32 = 64 << 10;

/// Asks a host to move the connection that it has; what it cost comes back.
type Command = mpsc::Sender<Report>;

/// Both hosts, and on which of them the connection is.
pub(crate) struct Servers {
    commands: [tasks::UnboundedSender<Command>; 2],
    running: [Running<()>; 2],
    at: usize,
}

impl Servers {
    /// The connection begins on host A. `locked` hears of each lock of it.
    pub(crate) fn start(
        sites: [&Site; 2],
        traffic: Traffic,
        socket: std::net::TcpStream,
        locked: &mpsc::Sender<()>,
    ) -> Self {
        if traffic == Traffic::SlowUpload {
            tcpmig_sys::sockopt::set_receive_buffer(socket.as_fd(), SLOW_BUFFER).unwrap();
        }
        let state = State {
            traffic,
            read: 0,
            written: 0,
        };
        let mut first = Some((OwnedFd::from(socket), state, Vec::new()));
        let [a, b] = sites.map(|site| {
            let (commands, receiver) = tasks::unbounded_channel();
            let (first, locked) = (first.take(), locked.clone());
            let running = site.begin(move |here| work(here, first, receiver, locked));
            (commands, running)
        });
        Self {
            commands: [a.0, b.0],
            running: [a.1, b.1],
            at: 0,
        }
    }

    /// Moves the connection to the other host.
    pub(crate) fn hop(&mut self) -> Report {
        let (sender, report) = mpsc::channel();
        self.commands[self.at].send(sender).unwrap();
        self.at = 1 - self.at;
        report.recv().expect("the connection was moved")
    }

    /// Closes the connection where it is.
    pub(crate) fn stop(self) {
        drop(self.commands);
        for running in self.running {
            running.wait();
        }
    }
}

/// One host: runs the application while the connection is here.
async fn work(
    here: Rc<Here>,
    first: Option<(OwnedFd, State, Vec<u8>)>,
    mut commands: tasks::UnboundedReceiver<Command>,
    locked: mpsc::Sender<()>,
) {
    let locker = Arc::new(Announcing {
        inner: here.locker.clone(),
        locked,
    });
    let mover = Mover::new(here.endpoint.clone(), locker, here.options.clone());
    let destination = here.other();
    let mut arrivals = Acceptor::new(here.endpoint.clone(), here.locker.clone())
        .options(here.options.clone())
        .policy(Policy::new().others(Rules::new().session("gaps", 1..=1)))
        .serve();
    let mut next = first;
    loop {
        let (socket, mut state, unwritten) = match next.take() {
            Some(next) => next,
            None => tokio::select! {
                Some(arrived) = arrivals.next() => {
                    let [layer] = &arrived.layers[..] else {
                        panic!("the state of the application did not come along");
                    };
                    let state = serde_json::from_slice(&layer.payload).unwrap();
                    (arrived.socket, state, arrived.unwritten.to_vec())
                }
                None = commands.recv() => return,
            },
        };
        let socket = std::net::TcpStream::from(socket);
        socket.set_nonblocking(true).unwrap();
        let mut stream = TcpStream::from_std(socket).unwrap();
        stream.write_all(&unwritten).await.unwrap();
        let Some(report) = until_told(&mut commands, run(&mut stream, &mut state)).await else {
            return;
        };
        let layer = Layer::new("gaps", 1, serde_json::to_vec(&state).unwrap());
        let socket = OwnedFd::from(stream.into_std().unwrap());
        let outcome = mover.move_out(socket, Some(layer), &destination).await;
        match outcome.ending {
            Ending::Moved => report.send(outcome.report).unwrap(),
            Ending::Kept { reason, .. } => panic!("kept: {reason}"),
            other => panic!("{other:?}"),
        }
    }
}

/// Runs the application until the next command; `None` when there are no more.
async fn until_told(
    commands: &mut tasks::UnboundedReceiver<Command>,
    application: impl Future<Output = ()>,
) -> Option<Command> {
    tokio::select! {
        command = commands.recv() => command,
        () = application => panic!("the peer ended the connection"),
    }
}

/// Tells of each lock at once.
struct Announcing {
    inner: Arc<Nftables>,
    locked: mpsc::Sender<()>,
}

impl Locker for Announcing {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn features(&self) -> Features {
        self.inner.features()
    }

    fn lock(&self, flows: &[FourTuple], lease: Duration) -> Result<LockGuard, LockError> {
        let guard = self.inner.lock(flows, lease)?;
        // Nobody listens in traffic that goes on by itself.
        let _ = self.locked.send(());
        Ok(guard)
    }

    fn get_ready(&self, hop: &NextHop, lease: Duration) -> Result<(), LockError> {
        self.inner.get_ready(hop, lease)
    }

    fn sweep(&self) -> Result<Swept, LockError> {
        self.inner.sweep()
    }

    fn list(&self) -> Result<Vec<Entry>, LockError> {
        self.inner.list()
    }
}

/// Runs as long as the peer does. Each wait is one after which the state is right: it can be
/// dropped at any of them.
async fn run(stream: &mut TcpStream, state: &mut State) {
    let pattern = pattern();
    let mut buffer = vec![0; 1 << 16];
    match state.traffic {
        Traffic::Request | Traffic::Requests | Traffic::Idle => loop {
            // What was read and not answered.
            while state.written < state.read {
                stream.writable().await.unwrap();
                if let Ok(count) = stream.try_write(&[b'!'; 1][..]) {
                    state.written += count as u64;
                }
            }
            stream.readable().await.unwrap();
            match stream.try_read(&mut buffer) {
                Ok(0) => return,
                Ok(count) => state.read += count as u64,
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
            }
        },
        Traffic::Upload | Traffic::SlowUpload => loop {
            let slow = state.traffic == Traffic::SlowUpload;
            if slow {
                // Finer than the runtime's own timer.
                let pause = || std::thread::sleep(Duration::from_micros(200));
                tokio::task::spawn_blocking(pause).await.unwrap();
            }
            let most = if slow { 1 << 14 } else { buffer.len() };
            stream.readable().await.unwrap();
            match stream.try_read(&mut buffer[..most]) {
                Ok(0) => return,
                Ok(count) => {
                    let at = (state.read % ROUND) as usize;
                    let whole = count.min(ROUND as usize);
                    assert!(buffer[..whole] == pattern[at..at + whole], "other bytes");
                    state.read += count as u64;
                }
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
            }
        },
        Traffic::Download => loop {
            let ready = stream.ready(Interest::WRITABLE | Interest::READABLE).await;
            let ready = ready.unwrap();
            if ready.is_read_closed() {
                return;
            }
            let at = (state.written % ROUND) as usize;
            match stream.try_write(&pattern[at..at + ROUND as usize]) {
                Ok(count) => state.written += count as u64,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                // The peer has ended it.
                Err(_) => return,
            }
        },
    }
}
