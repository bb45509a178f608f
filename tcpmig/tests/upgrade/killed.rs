//! Versions that are killed at any moment while one takes over from the other, under traffic.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle, sleep};
use std::time::Duration;

use crate::support::{PATIENCE, until};
use crate::{Version, answers, place};

/// How many connections are in use.
const CONNECTIONS: usize = 12;

/// A connection that asks all the time, and has to be answered once and in order.
struct Asking {
    stops: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    /// Why it ended, if it did by itself.
    thread: JoinHandle<Option<std::io::Error>>,
}

impl Asking {
    fn start(port: &str) -> Self {
        let address: SocketAddr = format!("127.0.0.1:{port}").parse().unwrap();
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let (stops, answered) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let thread = thread::spawn({
            let (stops, answered) = (stops.clone(), answered.clone());
            move || {
                let mut stream = BufReader::new(stream);
                while !stops.load(Ordering::Relaxed) {
                    match ask(&mut stream) {
                        Ok(number) => {
                            let before = answered.fetch_add(1, Ordering::Relaxed);
                            assert_eq!(number, before + 1, "an answer is lost, or came twice");
                        }
                        Err(error) => return Some(error),
                    }
                }
                None
            }
        });
        Self {
            stops,
            answered,
            thread,
        }
    }

    /// Waits until it is answered again, or has ended; whether it goes on.
    fn goes_on(&self) -> bool {
        let from = self.answered.load(Ordering::Relaxed);
        until("it is answered, or has ended", || {
            self.answered.load(Ordering::Relaxed) > from + 2 || self.thread.is_finished()
        });
        !self.thread.is_finished()
    }

    fn ends(self) {
        self.stops.store(true, Ordering::Relaxed);
        if let Some(error) = self.thread.join().expect("every answer is right") {
            // It ended with the version that had it, and was not left without anybody.
            assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "{error}");
        }
    }
}

/// How many requests the connection has had.
fn ask(stream: &mut BufReader<TcpStream>) -> std::io::Result<u64> {
    let request = b"GET /who HTTP/1.1\r\nhost: test\r\n\r\n";
    stream.get_mut().write_all(request)?;
    let mut len = 0;
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(value) = line.strip_prefix("content-length: ") {
            len = value.trim().parse().unwrap();
        }
        if line == "\r\n" {
            break;
        }
    }
    let mut body = vec![0; len];
    stream.read_exact(&mut body)?;
    let body = String::from_utf8(body).unwrap();
    Ok(body.split(' ').nth(1).unwrap().parse().unwrap())
}

/// Numbers at random, the same for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Successor,
    Predecessor,
}

fn run(victim: Victim, random: &mut Random) {
    let (_folder, path) = place();
    let mut old = Version::start(&path, None);
    let port = old.says("serving on ");
    let asking: Vec<Asking> = (0..CONNECTIONS).map(|_| Asking::start(&port)).collect();
    assert!(asking.iter().all(Asking::goes_on));
    let mut new = Version::start(&path, None);
    let pause = Duration::from_micros(random.below(150_000));
    sleep(pause);
    let (killed, left) = match victim {
        Victim::Successor => (&mut new, &mut old),
        Victim::Predecessor => (&mut old, &mut new),
    };
    let had_ended = killed.child.try_wait().unwrap().is_some();
    killed.child.kill().unwrap();
    killed.child.wait().unwrap();
    // A successor that had everything was alone, and then nobody is left; so it is if the predecessor had not given it its listener.
    let mut is_alone = false;
    until("somebody serves, or nobody is left", || {
        is_alone = left.child.try_wait().unwrap().is_some();
        is_alone
            || is_served(&port)
            || (victim == Victim::Predecessor && serves_elsewhere(left, &port))
    });
    is_alone |= !is_served(&port);
    let live = asking.iter().filter(|one| one.goes_on()).count();
    println!(
        "{victim:?} is killed {pause:?} after its start (had ended: {had_ended}): {live} of {CONNECTIONS} live"
    );
    if is_alone {
        assert_eq!(live, 0);
    } else {
        // Those that live do so in a third version, too. A successor may have died with the path.
        until("the next version is waited for", || {
            UnixStream::connect(&path).is_ok()
        });
        let third = Version::start(&path, None);
        assert_eq!(third.says("serving on "), port);
        answers(&port);
        let then = asking.iter().filter(|one| one.goes_on()).count();
        assert_eq!(then, live, "connections ended that nobody had killed");
        if had_ended {
            assert_eq!(live, CONNECTIONS);
        }
    }
    for one in asking {
        one.ends();
    }
}

/// Whether a new connection is answered.
fn is_served(port: &str) -> bool {
    let address: SocketAddr = format!("127.0.0.1:{port}").parse().unwrap();
    TcpStream::connect(address).is_ok_and(|stream| {
        // Whoever waits in a queue that nobody empties is reset when its listener ends.
        stream
            .set_read_timeout(Some(Duration::from_secs(1)))
            .unwrap();
        ask(&mut BufReader::new(stream)).is_ok()
    })
}

/// Whether a version that found nobody to take over from has begun anew.
fn serves_elsewhere(version: &Version, port: &str) -> bool {
    let mut lines = version.lines.try_iter();
    lines.any(|line| {
        line.split_once("serving on ")
            .is_some_and(|(_, at)| at.trim() != port)
    })
}

#[test]
fn whichever_version_is_killed_no_answer_is_lost_or_comes_twice() {
    let runs = number("TCPMIG_UPGRADE_KILLS").unwrap_or(6);
    let seed = number("TCPMIG_UPGRADE_KILLS_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    println!("TCPMIG_UPGRADE_KILLS_SEED={seed}");
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    for at in 0..runs {
        let victim = [Victim::Successor, Victim::Predecessor][at as usize % 2];
        run(victim, &mut random);
    }
}
