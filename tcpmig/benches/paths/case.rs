//! One connection over one path, once moved and once not.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde::Serialize;
use tcpmig::driver::Options;
use tcpmig_sys::lab::path::{Frames, Path};

use crate::app::{Servers, Traffic};
use crate::file::Filed;
use crate::peer::Peer;
use crate::support::{Family, Net, Site, tcp_counter};

/// How a connection moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum By {
    Driver,
    /// As an image in a file, which takes a while.
    File,
    Nothing,
}

impl By {
    pub(crate) fn from_text(text: &str) -> Option<Self> {
        Some(match text {
            "driver" => Self::Driver,
            "file" => Self::File,
            "nothing" => Self::Nothing,
            _ => return None,
        })
    }
}

/// What a path loses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Loss {
    None,
    /// So many of a million frames.
    Ppm(u32),
    /// Frames that find the queue full; it holds half of what is underway.
    Queue,
}

impl Loss {
    pub(crate) fn from_text(text: &str) -> Option<Self> {
        Some(match text {
            "none" => Self::None,
            "queue" => Self::Queue,
            percent => {
                let percent: f64 = percent.strip_suffix('%')?.parse().ok()?;
                Self::Ppm((percent * 10_000.0) as u32)
            }
        })
    }
}

pub(crate) struct Case {
    pub(crate) traffic: Traffic,
    pub(crate) control: String,
    pub(crate) by: By,
    pub(crate) rtt: Duration,
    pub(crate) loss: Loss,
    pub(crate) timestamps: bool,
    pub(crate) mbit: u64,
    pub(crate) moves: usize,
    pub(crate) warm: Duration,
    pub(crate) seed: u64,
}

/// Which seconds after the last move are looked at.
pub(crate) const SECONDS: [u32; 3] = [2, 3, 10];

#[derive(Serialize)]
pub(crate) struct Measured {
    pub(crate) traffic: Traffic,
    pub(crate) control: String,
    pub(crate) by: By,
    pub(crate) rtt_ms: u128,
    pub(crate) loss: Loss,
    /// How long it stood still in all moves, by the report.
    pub(crate) stood_still_ms: f64,
    /// The longest pause that the peer saw around a move, beyond the time it stood still and a round trip.
    pub(crate) beyond_ms: f64,
    /// Bytes (or answers) a second in these seconds after the last move; of the connection that stays in the same seconds.
    pub(crate) moved: [u64; SECONDS.len()],
    pub(crate) stayed: [u64; SECONDS.len()],
    /// Segments that both ends sent again, of the moved and of the other one.
    pub(crate) again: [u64; 2],
    /// Retransmission timers that ran out on all hosts.
    pub(crate) timeouts: [u64; 2],
    /// What the path did to frames for the peer.
    pub(crate) lost: [u64; 2],
}

struct Run {
    stood_still: Duration,
    beyond: Duration,
    seconds: [u64; SECONDS.len()],
    again: u64,
    timeouts: u64,
    frames: Frames,
}

impl Case {
    pub(crate) fn measure(&self) -> Measured {
        let moved = self.run(self.by);
        let stayed = self.run(By::Nothing);
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        let lost = |run: &Run| run.frames.lost + run.frames.overflowed;
        Measured {
            traffic: self.traffic,
            control: self.control.clone(),
            by: self.by,
            rtt_ms: self.rtt.as_millis(),
            loss: self.loss,
            stood_still_ms: ms(moved.stood_still),
            beyond_ms: ms(moved.beyond),
            moved: moved.seconds,
            stayed: stayed.seconds,
            again: [moved.again, stayed.again],
            timeouts: [moved.timeouts, stayed.timeouts],
            lost: [lost(&moved), lost(&stayed)],
        }
    }

    fn path(&self) -> Path {
        let mut path = Path::new(self.rtt / 2);
        let rate = self.mbit * 1_000_000 / 8;
        let underway = rate * self.rtt.as_millis() as u64 / 1000;
        path.rate = Some(rate);
        path.seed = self.seed;
        // Without losses there is room for what any window lets out.
        path.queue = 64 << 20;
        match self.loss {
            Loss::None => {}
            Loss::Ppm(ppm) => path.loss = ppm,
            Loss::Queue => path.queue = (underway / 2).max(32 << 10),
        }
        path
    }

    fn run(&self, by: By) -> Run {
        let (net, cable) = Net::with_far_peer(&self.path());
        for host in [&net.peer, &net.a, &net.b] {
            let on = if self.timestamps { "1" } else { "0" };
            host.set("net/ipv4/tcp_timestamps", on).unwrap();
            host.set("net/ipv4/tcp_congestion_control", &self.control)
                .unwrap();
        }
        let (peer, server) = net.connect(Family::V4);
        let peer = Peer::start(self.traffic, peer);
        let mut servers = match by {
            By::Driver => {
                let (a, b) = Site::pair(&net, &Options::default());
                let (unheard, _) = mpsc::channel();
                let servers = Servers::start([&a, &b], self.traffic, server, &unheard);
                Moving::Driver(servers, [a, b])
            }
            By::File | By::Nothing => Moving::File(Filed::start(&net, self.traffic, server)),
        };
        std::thread::sleep(self.warm);
        let (mut stood_still, mut beyond) = (Duration::ZERO, Duration::ZERO);
        let mut last = Instant::now();
        if by != By::Nothing {
            for number in 0..self.moves {
                if number > 0 {
                    std::thread::sleep(Duration::from_secs(1));
                }
                let begin = Instant::now();
                let still = servers.hop();
                last = Instant::now();
                std::thread::sleep(3 * self.rtt + Duration::from_millis(300));
                let pause = peer.longest_pause(begin, Instant::now());
                stood_still += still;
                beyond = beyond.max(pause.saturating_sub(still + self.rtt));
            }
        }
        let longest = *SECONDS.iter().max().expect("there are some");
        let until = last + Duration::from_secs(longest.into());
        std::thread::sleep(until.saturating_duration_since(Instant::now()));
        let seconds = SECONDS.map(|second| {
            let from = last + Duration::from_secs((second - 1).into());
            peer.progress(from, from + Duration::from_secs(1))
        });
        let hosts = [&net.peer, &net.a, &net.b];
        let sum = |counter: &str| hosts.map(|host| tcp_counter(host, counter)).iter().sum();
        let run = Run {
            stood_still,
            beyond,
            seconds,
            again: hosts.map(crate::peer::sent_again).iter().sum(),
            timeouts: sum("TCPTimeouts"),
            frames: cable.received(),
        };
        peer.stop(|| servers.stop());
        run
    }
}

/// The server's side.
enum Moving<'a> {
    Driver(Servers, [Site; 2]),
    File(Filed<'a>),
}

impl Moving<'_> {
    /// Moves it; how long it stood still.
    fn hop(&mut self) -> Duration {
        match self {
            Self::Driver(servers, _) => servers.hop().blackout,
            Self::File(filed) => filed.hop(),
        }
    }

    fn stop(self) {
        match self {
            Self::Driver(servers, _sites) => servers.stop(),
            Self::File(filed) => filed.stop(),
        }
    }
}
