//! The time-sequence picture of the demo's connection, as the peer saw it.

mod segment;
mod svg;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use tcpmig_sys::lab::seen::{Frame, Seen};

use super::net::Net;
use segment::{Order, Segment};

pub(crate) use svg::draw;

/// How long the recorder looks before it asks whether it is to stop.
const LOOK: Duration = Duration::from_millis(50);

/// Who sent something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sender {
    A,
    B,
    Peer,
}

/// How far the download was, at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Point {
    /// Seconds since the first packet.
    pub(crate) at: f64,
    pub(crate) sender: Sender,
    /// The byte of the stream that this segment of a server begins with, or that the peer expects next.
    pub(crate) from: u64,
    /// The byte after its last.
    pub(crate) to: u64,
}

/// A time in which the connection stood still, in seconds since the first packet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Still {
    pub(crate) begin: f64,
    pub(crate) end: f64,
    /// Which host gave the connection away.
    pub(crate) from: Sender,
}

/// What was seen of the connection.
#[derive(Debug, Default)]
pub(crate) struct Recording {
    pub(crate) points: Vec<Point>,
    /// When the first packet was seen.
    begin: Option<SystemTime>,
}

impl Recording {
    /// The time in which a connection stood still that arrived at `ended`.
    pub(crate) fn still(&self, ended: SystemTime, lasted: Duration, from: &str) -> Option<Still> {
        let end = ended.duration_since(self.begin?).ok()?.as_secs_f64();
        Some(Still {
            begin: end - lasted.as_secs_f64(),
            end,
            from: if from == "A" { Sender::A } else { Sender::B },
        })
    }

    fn add(&mut self, at: SystemTime, sender: Sender, [from, to]: [u64; 2]) {
        let begin = *self.begin.get_or_insert(at);
        // Frames of two devices may be seen out of their order by moments.
        let at = at.duration_since(begin).unwrap_or_default().as_secs_f64();
        self.points.push(Point {
            at,
            sender,
            from,
            to,
        });
    }
}

/// Records what the peer's device sees of the service.
pub(crate) struct Recorder {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<anyhow::Result<Recording>>,
}

impl Recorder {
    pub(crate) fn start(net: &Net) -> anyhow::Result<Self> {
        let seen = Seen::by(&net.peer).context("record packets")?;
        let hosts = [net.a.hardware_address()?, net.b.hardware_address()?];
        let service = net.addresses.service;
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::Builder::new().name("recorder".to_owned());
        let thread = thread.spawn({
            let stop = stop.clone();
            move || record(seen, hosts, service, &stop)
        })?;
        Ok(Self { stop, thread })
    }

    /// Ends it; what was seen until now.
    pub(crate) fn end(self) -> anyhow::Result<Recording> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.join() {
            Ok(recording) => recording,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

fn record(
    mut seen: Seen,
    hosts: [[u8; 6]; 2],
    service: SocketAddr,
    stop: &AtomicBool,
) -> anyhow::Result<Recording> {
    let mut recording = Recording::default();
    let mut order = Order::default();
    loop {
        // Asked before, so that what came until it was stopped is seen.
        let stopped = stop.load(Ordering::Relaxed);
        let Some(Frame { at, bytes, .. }) = seen.next(LOOK)? else {
            if stopped {
                return Ok(recording);
            }
            continue;
        };
        let Some(segment) = Segment::read(&bytes) else {
            continue;
        };
        let place = order.place(&segment, service);
        let sender = match hosts.iter().position(|host| *host == segment.source) {
            Some(0) => Sender::A,
            Some(_) => Sender::B,
            None => Sender::Peer,
        };
        if let Some(place) = place {
            recording.add(at, sender, place);
        }
    }
}
