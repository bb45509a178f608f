//! The peer: sends numbered bytes all the time, and gets each of them back.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tcpmig_sys::lab::Host;

use crate::roles::SERVICE;
use crate::support::{numbered, until};

/// Bytes that it sends at once: few pieces leave the processors to what is tested.
const PIECE: usize = 1000;

#[derive(Default)]
struct Seen {
    back: AtomicU64,
    wrong: AtomicBool,
    ended: AtomicBool,
    stop: AtomicBool,
}

pub(crate) struct Peer {
    seen: Arc<Seen>,
    stream: TcpStream,
}

impl Peer {
    /// It sends so often.
    pub(crate) fn start(host: &Host, every: Duration) -> Self {
        let stream = host.run(|| TcpStream::connect(SERVICE)).unwrap().unwrap();
        stream.set_nodelay(true).unwrap();
        let seen = Arc::new(Seen::default());
        let (mut out, mut back) = (stream.try_clone().unwrap(), stream.try_clone().unwrap());
        let writing = seen.clone();
        thread::spawn(move || {
            let mut sent = 0;
            while !writing.stop.load(Ordering::Relaxed)
                && out.write_all(&numbered(sent, PIECE)).is_ok()
            {
                sent += PIECE as u64;
                thread::sleep(every);
            }
        });
        let reading = seen.clone();
        thread::spawn(move || {
            let (mut bytes, mut at) = ([0; 4096], 0);
            loop {
                match back.read(&mut bytes) {
                    Ok(0) => break,
                    Ok(count) => {
                        if bytes[..count] != numbered(at, count) {
                            reading.wrong.store(true, Ordering::Relaxed);
                        }
                        at += count as u64;
                        reading.back.store(at, Ordering::Relaxed);
                    }
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(_) => break,
                }
            }
            reading.ended.store(true, Ordering::Relaxed);
        });
        Self { seen, stream }
    }

    /// What it sends from now on comes back, and all before it did.
    pub(crate) fn gets_on(&self, when: &str) {
        let from = self.seen.back.load(Ordering::Relaxed);
        until(when, || {
            self.seen.back.load(Ordering::Relaxed) > from + 60_000
        });
        assert!(
            !self.seen.wrong.load(Ordering::Relaxed),
            "other bytes came back"
        );
    }

    /// The port that it has.
    pub(crate) fn port(&self) -> u16 {
        self.stream.local_addr().unwrap().port()
    }

    /// Whether it has got a FIN or RST.
    pub(crate) fn has_ended(&self) -> bool {
        self.seen.ended.load(Ordering::Relaxed)
    }

    /// Whether what came back is what it sent.
    pub(crate) fn is_unharmed(&self) -> bool {
        !self.seen.wrong.load(Ordering::Relaxed)
    }

    /// How many bytes have come back.
    pub(crate) fn mark(&self) -> u64 {
        self.seen.back.load(Ordering::Relaxed)
    }

    /// Nobody answers it any more.
    pub(crate) fn gets_no_further(&self) {
        let from = self.mark();
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_millis(500) {
            thread::sleep(Duration::from_millis(50));
            assert_eq!(self.mark(), from, "somebody answered");
        }
        assert!(
            !self.seen.wrong.load(Ordering::Relaxed),
            "other bytes came back"
        );
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.seen.stop.store(true, Ordering::Relaxed);
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}
