//! The server's side: an application that can be stopped and goes on elsewhere.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::support::{Running, Site};

/// What goes over the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) enum Traffic {
    /// The peer asks, the server answers, all the time.
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
    pub(crate) fn is_bulk(self) -> bool {
        matches!(self, Self::Upload | Self::SlowUpload | Self::Download)
    }
}

/// How far the application is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct State {
    traffic: Traffic,
    read: u64,
    written: u64,
}

/// A stream whose octets tell their place, to some extent: a prime number of them, repeated.
pub(crate) const ROUND: u64 = 65521;

pub(crate) fn pattern() -> Vec<u8> {
    let round: Vec<u8> = (0..ROUND).map(|at| (at * at / 7 + at) as u8).collect();
    round.repeat(2)
}

pub(crate) struct App {
    stop: Arc<Notify>,
    running: Running<(OwnedFd, State)>,
}

impl App {
    pub(crate) fn start(site: &Site, traffic: Traffic, socket: std::net::TcpStream) -> Self {
        let state = State {
            traffic,
            read: 0,
            written: 0,
        };
        Self::resume(site, state, socket.into(), &[])
    }

    pub(crate) fn resume(site: &Site, state: State, socket: OwnedFd, unwritten: &[u8]) -> Self {
        let stop = Arc::new(Notify::new());
        let stopped = stop.clone();
        let unwritten = unwritten.to_vec();
        let running = site.begin(move |_| async move {
            let socket = std::net::TcpStream::from(socket);
            socket.set_nonblocking(true).unwrap();
            let mut stream = TcpStream::from_std(socket).unwrap();
            stream.write_all(&unwritten).await.unwrap();
            let mut state = state;
            tokio::select! {
                () = stopped.notified() => {}
                () = run(&mut stream, &mut state) => panic!("the peer ended the connection"),
            }
            (OwnedFd::from(stream.into_std().unwrap()), state)
        });
        Self { stop, running }
    }

    pub(crate) fn stop(self) -> (OwnedFd, State) {
        self.stop.notify_one();
        self.running.wait()
    }
}

/// Runs as long as the peer does. Each wait is one after which the state is right: it can be
/// dropped at any of them.
async fn run(stream: &mut TcpStream, state: &mut State) {
    let pattern = pattern();
    let mut buffer = vec![0; 1 << 16];
    match state.traffic {
        Traffic::Requests | Traffic::Idle => loop {
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
            if state.traffic == Traffic::SlowUpload {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            stream.readable().await.unwrap();
            match stream.try_read(&mut buffer) {
                Ok(0) => return,
                Ok(count) => {
                    let at = (state.read % ROUND) as usize;
                    let whole = count.min(ROUND as usize);
                    assert!(buffer[..whole] == pattern[at..at + whole], "other octets");
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
