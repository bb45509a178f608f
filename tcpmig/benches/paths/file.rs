//! A server whose connection moves by file: dumped on one host, restored a while later on the other.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tcpmig::capture::{Frozen, Plan};
use tcpmig::restore::Prepared;
use tcpmig_format::{Image, Limits};
use tcpmig_sys::lab::Host;

use crate::app::{ROUND, Traffic, pattern};
use crate::support::Net;

/// How long a file takes from one host to the other.
const UNDERWAY: Duration = Duration::from_millis(150);
const LEASE: Duration = Duration::from_secs(60);

/// The server of one connection.
pub(crate) struct Filed<'a> {
    net: &'a Net,
    traffic: Traffic,
    on_b: bool,
    stop: Arc<AtomicBool>,
    /// The connection, and how much the server has written or read.
    serving: Option<JoinHandle<(TcpStream, u64)>>,
}

impl<'a> Filed<'a> {
    pub(crate) fn start(net: &'a Net, traffic: Traffic, server: TcpStream) -> Self {
        let mut filed = Self {
            net,
            traffic,
            on_b: false,
            stop: Arc::default(),
            serving: None,
        };
        filed.serve(server, 0);
        filed
    }

    fn serve(&mut self, stream: TcpStream, done: u64) {
        let stop = Arc::new(AtomicBool::new(false));
        let traffic = self.traffic;
        self.stop = stop.clone();
        self.serving = Some(thread::spawn(move || serve(traffic, stream, done, &stop)));
    }

    fn halt(&mut self) -> (TcpStream, u64) {
        self.stop.store(true, Ordering::Relaxed);
        let serving = self.serving.take().expect("it is serving");
        serving.join().expect("the server goes on")
    }

    /// Moves the connection, once; how long it stood still.
    pub(crate) fn hop(&mut self) -> Duration {
        assert!(!self.on_b, "a connection moves by file once");
        let (stream, done) = self.halt();
        let begin = Instant::now();
        let bytes = leave(&self.net.a, stream.into());
        thread::sleep(UNDERWAY);
        self.net.point_peer_at_b();
        let stream = arrive(&self.net.b, &bytes);
        let stood_still = begin.elapsed();
        self.on_b = true;
        self.serve(stream, done);
        stood_still
    }

    pub(crate) fn stop(mut self) {
        let (stream, _) = self.halt();
        // The peer may be in the middle of a read.
        let _ = stream.shutdown(std::net::Shutdown::Both);
    }
}

fn leave(host: &Host, socket: OwnedFd) -> Vec<u8> {
    let locker = host.run(tcpmig::locker::nftables).unwrap().unwrap();
    let leave = || {
        let plan = Plan::read(socket.as_fd()).unwrap();
        let mut frozen = Frozen::freeze(socket, plan, &locker, LEASE).unwrap();
        let image = frozen.capture(None).unwrap();
        frozen.check_unchanged().unwrap();
        frozen.discard().unwrap();
        image.encode().unwrap().to_vec()
    };
    host.run(leave).unwrap()
}

fn arrive(host: &Host, bytes: &[u8]) -> TcpStream {
    let image = Image::decode(bytes, &Limits::default()).unwrap();
    let locker = host.run(tcpmig::locker::nftables).unwrap().unwrap();
    let build = || Prepared::build(image, &locker, LEASE).unwrap();
    let activated = host.run(build).unwrap().activate().unwrap();
    TcpStream::from(activated.write().socket)
}

/// Serves until told to stop or until the peer has ended the connection.
fn serve(
    traffic: Traffic,
    mut stream: TcpStream,
    mut done: u64,
    stop: &AtomicBool,
) -> (TcpStream, u64) {
    stream.set_nonblocking(true).unwrap();
    let (pattern, mut buffer) = (pattern(), vec![0; 1 << 16]);
    while !stop.load(Ordering::Relaxed) {
        let moved = match traffic {
            Traffic::Download => {
                let at = (done % ROUND) as usize;
                stream.write(&pattern[at..at + ROUND as usize])
            }
            _ => stream.read(&mut buffer),
        };
        match moved {
            Ok(0) => break,
            Ok(count) => {
                match traffic {
                    Traffic::Upload | Traffic::SlowUpload => {
                        let at = (done % ROUND) as usize;
                        let whole = count.min(ROUND as usize);
                        assert!(buffer[..whole] == pattern[at..at + whole], "other bytes");
                    }
                    Traffic::Download => {}
                    // Few bytes always fit.
                    _ => stream.write_all(&buffer[..count]).unwrap(),
                }
                done += count as u64;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                thread::sleep(Duration::from_micros(500));
            }
            Err(_) => break,
        }
    }
    (stream, done)
}
