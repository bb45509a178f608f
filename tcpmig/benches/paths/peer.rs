//! The peer: the traffic, and how far it had come at which time.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tcpmig_sys::lab::Host;

use crate::app::{ROUND, Traffic, pattern};

/// How often an upload is looked at: the application does not see when its bytes are acknowledged.
const LOOK: Duration = Duration::from_millis(2);
/// How often an idle connection is asked something.
const ASK: Duration = Duration::from_millis(500);

type Log = Arc<Mutex<Vec<(Instant, u64)>>>;

pub(crate) struct Peer {
    log: Log,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Peer {
    pub(crate) fn start(traffic: Traffic, stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        let log = Log::default();
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let (log, stop) = (log.clone(), stop.clone());
            move || match traffic {
                Traffic::Download => download(stream, &log, &stop),
                Traffic::Upload | Traffic::SlowUpload => upload(stream, &log, &stop),
                Traffic::Request | Traffic::Requests => {
                    ask(stream, Duration::ZERO, &log, &stop);
                }
                Traffic::Idle => ask(stream, ASK, &log, &stop),
            }
        });
        Self { log, stop, thread }
    }

    /// The longest time without progress that touches this span.
    pub(crate) fn longest_pause(&self, begin: Instant, end: Instant) -> Duration {
        let log = self.log.lock().unwrap();
        let steps = log.windows(2).map(|pair| (pair[0].0, pair[1].0));
        // What has not ended yet.
        let last = log.last().map(|(at, _)| (*at, end));
        let touching = steps
            .chain(last)
            .filter(|(from, to)| *to >= begin && *from <= end);
        touching
            .map(|(from, to)| to - from)
            .max()
            .unwrap_or_default()
    }

    /// How many bytes got on in this span; of requests, how many were answered.
    pub(crate) fn progress(&self, from: Instant, to: Instant) -> u64 {
        let log = self.log.lock().unwrap();
        let at = |time: Instant| {
            let before = log.partition_point(|(at, _)| *at <= time);
            before.checked_sub(1).map_or(0, |last| log[last].1)
        };
        at(to) - at(from)
    }

    /// Ends the traffic, and then the servers.
    pub(crate) fn stop(self, servers: impl FnOnce()) {
        self.stop.store(true, Ordering::Relaxed);
        servers();
        self.thread.join().unwrap();
    }
}

fn note(log: &Log, progress: u64) {
    log.lock().unwrap().push((Instant::now(), progress));
}

fn download(mut stream: TcpStream, log: &Log, stop: &AtomicBool) {
    let (pattern, mut buffer, mut read) = (pattern(), vec![0; 1 << 16], 0_u64);
    while !stop.load(Ordering::Relaxed) {
        // The servers end the connection when they stop.
        let Ok(count) = stream.read(&mut buffer) else {
            return;
        };
        if count == 0 {
            return;
        }
        let at = (read % ROUND) as usize;
        let whole = count.min(ROUND as usize);
        assert!(buffer[..whole] == pattern[at..at + whole], "other bytes");
        read += count as u64;
        note(log, read);
    }
}

fn upload(mut stream: TcpStream, log: &Log, stop: &AtomicBool) {
    stream.set_nonblocking(true).unwrap();
    let (pattern, mut written, mut before) = (pattern(), 0_u64, 0);
    while !stop.load(Ordering::Relaxed) {
        loop {
            let at = (written % ROUND) as usize;
            match stream.write(&pattern[at..at + (1 << 15)]) {
                Ok(count) => written += count as u64,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => return,
            }
        }
        let waiting = tcpmig_sys::sockopt::send_queue_len(stream.as_fd());
        let Ok(waiting) = waiting else { return };
        let acknowledged = written - u64::from(waiting);
        if acknowledged > before {
            before = acknowledged;
            note(log, acknowledged);
        }
        thread::sleep(LOOK);
    }
}

/// Asks, waits for the answer, and asks again after a while.
fn ask(mut stream: TcpStream, pause: Duration, log: &Log, stop: &AtomicBool) {
    let mut answered = 0;
    while !stop.load(Ordering::Relaxed) {
        // A pause of the connection begins with the question.
        note(log, answered);
        stream.write_all(b"?").expect("the connection lives");
        stream.read_exact(&mut [0]).expect("an answer comes");
        answered += 1;
        note(log, answered);
        thread::sleep(pause);
    }
}

/// Segments that a host sent again (`RetransSegs`).
pub(crate) fn sent_again(host: &Host) -> u64 {
    let read = || std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
    let text = host.run(read).unwrap();
    let mut lines = text.lines().filter(|line| line.starts_with("Tcp:"));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let mut pairs = names.split_whitespace().zip(values.split_whitespace());
    let (_, value) = pairs.find(|(name, _)| *name == "RetransSegs").unwrap();
    value.parse().unwrap()
}
