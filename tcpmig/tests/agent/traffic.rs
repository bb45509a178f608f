//! A client of the counter, which never stops, and notices each byte that is lost or comes twice.

use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tcpmig_sys::lab::{Host, PATIENCE};

use crate::support::until;

/// How many lines go without a rest.
const LINES: u64 = 20;

pub(crate) struct Traffic {
    stops: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    writer: JoinHandle<u64>,
    reader: JoinHandle<Result<u64, String>>,
}

fn line(number: u64) -> String {
    // Lines of all lengths.
    let rest = "x".repeat((number * 37 % 211) as usize);
    format!("line-{number}-{rest}")
}

impl Traffic {
    /// From this host to the service.
    pub(crate) fn start(peer: &Host) -> Self {
        let stream = peer.run(|| TcpStream::connect("198.18.0.80:7000"));
        Self::on(stream.unwrap().unwrap())
    }

    fn on(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let stops = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicU64::new(0));
        let mut to = stream.try_clone().unwrap();
        let writer = {
            let stops = stops.clone();
            thread::spawn(move || {
                let mut number = 0;
                while !stops.load(Ordering::Relaxed) {
                    let lines = (number + 1..=number + LINES).map(|at| line(at) + "\n");
                    if to.write_all(lines.collect::<String>().as_bytes()).is_err() {
                        return number;
                    }
                    number += LINES;
                    thread::sleep(Duration::from_millis(1));
                }
                let _ = to.shutdown(Shutdown::Write);
                number
            })
        };
        let reader = {
            let answered = answered.clone();
            thread::spawn(move || {
                let mut count = 0;
                for read in BufReader::new(stream).lines() {
                    let read = read.map_err(|error| {
                        println!("a connection has ended: {error}");
                        format!("after {count}: {error}")
                    })?;
                    count += 1;
                    let expected = format!("{count} {}", line(count));
                    if read != expected {
                        return Err(format!("{read:?} instead of {expected:?}"));
                    }
                    answered.store(count, Ordering::Relaxed);
                }
                Ok(count)
            })
        };
        Self {
            stops,
            answered,
            writer,
            reader,
        }
    }

    /// Waits until more is answered.
    pub(crate) fn goes_on(&self) {
        let from = self.answered.load(Ordering::Relaxed);
        until("more is answered", || {
            self.answered.load(Ordering::Relaxed) > from + 5 * LINES || self.reader.is_finished()
        });
        assert!(!self.reader.is_finished(), "the connection has ended");
    }

    /// Ends it; everything was answered, once and in order.
    pub(crate) fn ends_well(self) {
        self.stops.store(true, Ordering::Relaxed);
        let sent = self.writer.join().unwrap();
        let answered = self.reader.join().unwrap();
        assert_eq!(answered, Ok(sent));
    }

    /// Waits until more is answered, or it has ended; whether it goes on.
    pub(crate) fn settles(&self) -> bool {
        let from = self.answered.load(Ordering::Relaxed);
        until("more is answered, or it has ended", || {
            self.answered.load(Ordering::Relaxed) > from + 5 * LINES || self.reader.is_finished()
        });
        !self.reader.is_finished()
    }

    /// Of one that may have ended by itself: what was answered was so once and in order.
    pub(crate) fn was_right(self) {
        self.stops.store(true, Ordering::Relaxed);
        let _ = self.writer.join().unwrap();
        if let Err(error) = self.reader.join().unwrap() {
            assert!(error.starts_with("after "), "{error}");
        }
    }
}
