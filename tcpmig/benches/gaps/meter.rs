//! The peer's side: the traffic, and when it got on.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::app::{ROUND, Servers, Traffic, pattern};

/// A span of time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    pub(crate) begin: Instant,
    pub(crate) end: Instant,
}

/// One step of the traffic: from when to when, and how many bytes.
struct Step {
    begin: Instant,
    end: Instant,
    bytes: u64,
}

pub(crate) struct Meter {
    traffic: Traffic,
    steps: Arc<Mutex<Vec<Step>>>,
    stop: Arc<AtomicBool>,
    peer: TcpStream,
    thread: JoinHandle<()>,
}

impl Meter {
    /// `asks` says when to ask, in [`Traffic::Request`].
    pub(crate) fn start(traffic: Traffic, peer: TcpStream, asks: mpsc::Receiver<()>) -> Self {
        peer.set_nodelay(true).unwrap();
        // Writable again as soon as little is left to send, not when a third of the buffer is free.
        tcpmig_sys::sockopt::set_not_sent_low_water(peer.as_fd(), 16384).unwrap();
        let steps = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let (steps, stop) = (steps.clone(), stop.clone());
            let mut stream = peer.try_clone().unwrap();
            move || {
                match traffic {
                    Traffic::Request => return ask_when_told(&asks, &mut stream, &steps),
                    Traffic::Requests => {
                        return ask(Duration::from_micros(200), &mut stream, &steps, &stop);
                    }
                    Traffic::Idle => {
                        return ask(Duration::from_millis(50), &mut stream, &steps, &stop);
                    }
                    Traffic::Upload | Traffic::SlowUpload | Traffic::Download => {}
                }
                let mut traffic = Bulk::new(traffic);
                while !stop.load(Ordering::Relaxed) {
                    let begin = Instant::now();
                    let bytes = traffic.step(&mut stream);
                    let end = Instant::now();
                    let stopped = stop.load(Ordering::Relaxed);
                    assert!(bytes > 0 || stopped, "the server ended the connection");
                    steps.lock().unwrap().push(Step { begin, end, bytes });
                }
            }
        });
        Self {
            traffic,
            steps,
            stop,
            peer,
            thread,
        }
    }

    /// The longest step that was under way in the window.
    pub(crate) fn longest_pause(&self, window: Window) -> Duration {
        let steps = self.steps.lock().unwrap();
        let touching = steps
            .iter()
            .filter(|step| step.end >= window.begin && step.begin <= window.end);
        touching
            .map(|step| step.end - step.begin)
            .max()
            .unwrap_or_default()
    }

    /// Bytes of the steps that ended in the window.
    pub(crate) fn bytes(&self, window: Window) -> u64 {
        let steps = self.steps.lock().unwrap();
        let within = steps
            .iter()
            .filter(|step| step.end >= window.begin && step.end <= window.end);
        within.map(|step| step.bytes).sum()
    }

    /// Ends the traffic and the connection; what the peer had to send again.
    pub(crate) fn stop(self, servers: Servers) -> u32 {
        self.stop.store(true, Ordering::Relaxed);
        let retransmissions = tcpmig_sys::info::tcp_info(self.peer.as_fd())
            .unwrap()
            .total_retrans;
        if matches!(self.traffic, Traffic::Requests | Traffic::Idle) {
            // It ends by itself, and must not find the connection closed before.
            self.thread.join().unwrap();
            servers.stop();
        } else {
            // Its end wakes a step that waits.
            servers.stop();
            self.thread.join().unwrap();
        }
        retransmissions
    }
}

/// Asks once each time that it is told to.
fn ask_when_told(asks: &mpsc::Receiver<()>, stream: &mut TcpStream, steps: &Mutex<Vec<Step>>) {
    let mut answer = [0; 1];
    while asks.recv().is_ok() {
        let begin = Instant::now();
        stream.write_all(b"?").expect("the connection lives");
        stream.read_exact(&mut answer).expect("an answer comes");
        let end = Instant::now();
        let bytes = 1;
        steps.lock().unwrap().push(Step { begin, end, bytes });
    }
}

/// Asks at a steady rate, whether or not the last question was answered: so that some are asked
/// while the connection stands still. A step is a question and its answer.
fn ask(every: Duration, stream: &mut TcpStream, steps: &Mutex<Vec<Step>>, stop: &AtomicBool) {
    stream.set_nonblocking(true).unwrap();
    let mut asked = VecDeque::new();
    let mut answers = [0; 4096];
    while !stop.load(Ordering::Relaxed) {
        match stream.write(b"?") {
            Ok(_) => asked.push_back(Instant::now()),
            // The connection takes no more questions: those that wait tell how long.
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => panic!("the connection ended: {error}"),
        }
        let next = Instant::now() + every;
        while Instant::now() < next {
            let Ok(count) = stream.read(&mut answers) else {
                thread::sleep(Duration::from_micros(20));
                continue;
            };
            assert!(count > 0, "the server ended the connection");
            let end = Instant::now();
            let mut steps = steps.lock().unwrap();
            for begin in asked.drain(..count) {
                let bytes = 1;
                steps.push(Step { begin, end, bytes });
            }
        }
    }
}

struct Bulk {
    traffic: Traffic,
    position: u64,
    pattern: Vec<u8>,
    buffer: Vec<u8>,
}

impl Bulk {
    fn new(traffic: Traffic) -> Self {
        Self {
            traffic,
            position: 0,
            pattern: pattern(),
            buffer: vec![0; 1 << 16],
        }
    }

    /// One step; how many bytes it moved, 0 at the end.
    fn step(&mut self, stream: &mut TcpStream) -> u64 {
        let at = (self.position % ROUND) as usize;
        let moved = if self.traffic == Traffic::Download {
            stream.read(&mut self.buffer)
        } else {
            // Small steps: how long one takes is how long the connection took nothing.
            stream.write(&self.pattern[at..at + 4096])
        };
        let moved = moved.unwrap_or(0);
        if self.traffic == Traffic::Download {
            let whole = moved.min(ROUND as usize);
            assert!(
                self.buffer[..whole] == self.pattern[at..at + whole],
                "other bytes"
            );
        }
        self.position += moved as u64;
        moved as u64
    }
}
