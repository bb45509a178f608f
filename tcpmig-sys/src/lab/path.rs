//! A path that takes time: delay, loss, reordering, a rate and a queue that overflows, where the kernel has no netem.
//!
//! A host behind a [`Path`] has a TAP device for its `eth0`, and the switch has one for its port; a thread carries frames from
//! one to the other. A frame is at most as large as the device's MTU: nothing is segmented or merged underway.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;

use super::{LabError, Result};
use crate::netns::Namespace;
use crate::raw;

/// What a path does to frames, in each direction alike.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Path {
    /// How long a frame takes from one end to the other: half of the round-trip time.
    pub delay: Duration,
    /// Of a million frames, so many are lost at random.
    pub loss: u32,
    /// Of a million frames, so many take [`Path::late_by`] longer, so that others overtake them.
    pub late: u32,
    /// How much longer a late frame takes.
    pub late_by: Duration,
    /// Bytes a second; none: as many as come.
    pub rate: Option<u64>,
    /// How many bytes may wait for their turn at that rate; what comes when there are more is lost.
    pub queue: u64,
    /// The same seed loses the same frames, counted from the first.
    pub seed: u64,
}

impl Path {
    /// A path that does nothing but take this long in each direction.
    #[must_use]
    pub fn new(delay: Duration) -> Self {
        Self {
            delay,
            loss: 0,
            late: 0,
            late_by: Duration::ZERO,
            rate: None,
            queue: u64::MAX,
            seed: 1,
        }
    }
}

/// What became of the frames of one direction.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Frames {
    /// Those that came to the path.
    pub came: u64,
    /// Those that it lost at random.
    pub lost: u64,
    /// Those that found the queue full.
    pub overflowed: u64,
    /// Those that took longer than those after them.
    pub late: u64,
}

#[derive(Default)]
struct Counters {
    came: AtomicU64,
    lost: AtomicU64,
    overflowed: AtomicU64,
    late: AtomicU64,
}

/// A path that frames go by. Dropping it ends it: both devices go.
#[derive(Debug)]
pub struct Cable {
    counters: [Arc<Counters>; 2],
    stop: Option<OwnedFd>,
    carrier: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Counters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.frames().fmt(f)
    }
}

impl Counters {
    fn frames(&self) -> Frames {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Frames {
            came: read(&self.came),
            lost: read(&self.lost),
            overflowed: read(&self.overflowed),
            late: read(&self.late),
        }
    }
}

impl Cable {
    /// Makes a device at each end, and carries frames between them from now on.
    pub(super) fn plug(path: &Path, ends: [(&Namespace, &str); 2]) -> Result<Self> {
        let mut devices = Vec::new();
        for (namespace, device) in ends {
            devices.push(tap(namespace, device)?);
        }
        let counters = [(); 2].map(|()| Arc::new(Counters::default()));
        let (stopped, stop) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(|errno| start(errno.into()))?;
        let (sender, ready) = mpsc::channel();
        let directions = [0, 1].map(|direction| {
            let path = Path {
                seed: path.seed.wrapping_add(direction as u64),
                ..path.clone()
            };
            Direction::new(path, counters[direction].clone())
        });
        let carrier = std::thread::Builder::new()
            .name("path".to_owned())
            .spawn(move || {
                let _ = sender.send(());
                carry(devices, directions, &stopped);
            })
            .map_err(start)?;
        // It carries what comes first, too.
        let _ = ready.recv();
        Ok(Self {
            counters,
            stop: Some(stop),
            carrier: Some(carrier),
        })
    }

    /// What became of the frames that the host sent.
    #[must_use]
    pub fn sent(&self) -> Frames {
        self.counters[0].frames()
    }

    /// What became of the frames for the host.
    #[must_use]
    pub fn received(&self) -> Frames {
        self.counters[1].frames()
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        // The other end of the pipe hangs up.
        drop(self.stop.take());
        if let Some(carrier) = self.carrier.take() {
            let _ = carrier.join();
        }
    }
}

fn start(source: std::io::Error) -> LabError {
    LabError::Start {
        program: "a path",
        source,
    }
}

/// A TAP device of this name.
fn tap(namespace: &Namespace, device: &str) -> Result<File> {
    let entered = namespace.enter()?;
    let file = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .map_err(|source| LabError::Start {
            program: "/dev/net/tun",
            source,
        })?;
    raw::attach_tap(file.as_fd(), device)?;
    drop(entered);
    rustix::fs::fcntl_setfl(&file, rustix::fs::OFlags::NONBLOCK)
        .map_err(|errno| start(errno.into()))?;
    Ok(file)
}

/// Carries frames until the pipe hangs up.
fn carry(mut devices: Vec<File>, mut directions: [Direction; 2], stopped: &OwnedFd) {
    let begin = Instant::now();
    let mut frame = [0; 1 << 16];
    loop {
        let due = directions.iter().filter_map(Direction::next_due).min();
        let wait = due.map(|due| due.saturating_sub(begin.elapsed()));
        let wait = wait.map(|wait| Timespec {
            tv_sec: wait.as_secs() as i64,
            tv_nsec: wait.subsec_nanos().into(),
        });
        let mut polled = [
            PollFd::new(&devices[0], PollFlags::IN),
            PollFd::new(&devices[1], PollFlags::IN),
            PollFd::new(stopped, PollFlags::empty()),
        ];
        match poll(&mut polled, wait.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return,
        }
        if !polled[2].revents().is_empty() {
            return;
        }
        for (from, direction) in directions.iter_mut().enumerate() {
            loop {
                match devices[from].read(&mut frame) {
                    Ok(length) => direction.take(begin.elapsed(), &frame[..length]),
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    // There are no more, or the device is down.
                    Err(_) => break,
                }
            }
            while let Some(frame) = direction.give(begin.elapsed()) {
                // A device that is down loses it, as a real one does.
                let _ = devices[1 - from].write(&frame);
            }
        }
    }
}

/// What is underway in one direction. It knows no clock: times count from any moment.
struct Direction {
    path: Path,
    counters: Arc<Counters>,
    /// When all that came has got its turn at the rate.
    free: Duration,
    random: u64,
    number: u64,
    underway: BinaryHeap<Reverse<(Duration, u64, Vec<u8>)>>,
}

impl Direction {
    fn new(path: Path, counters: Arc<Counters>) -> Self {
        Self {
            random: path.seed,
            path,
            counters,
            free: Duration::ZERO,
            number: 0,
            underway: BinaryHeap::new(),
        }
    }

    fn take(&mut self, now: Duration, frame: &[u8]) {
        let count = |counter: &AtomicU64| counter.fetch_add(1, Ordering::Relaxed);
        count(&self.counters.came);
        // Both are drawn for each frame, so that what is lost does not depend on what is late.
        let [lost, late] = [(); 2].map(|()| self.random() % 1_000_000);
        if lost < self.path.loss.into() {
            count(&self.counters.lost);
            return;
        }
        let mut leaves = now;
        if let Some(rate) = self.path.rate {
            let free = self.free.max(now);
            let waiting = (free - now).as_nanos() * u128::from(rate) / NANOS;
            if waiting + frame.len() as u128 > self.path.queue.into() {
                count(&self.counters.overflowed);
                return;
            }
            let turn = frame.len() as u128 * NANOS / u128::from(rate);
            leaves = free + Duration::from_nanos(turn as u64);
            self.free = leaves;
        }
        let mut arrives = leaves + self.path.delay;
        if late < self.path.late.into() {
            count(&self.counters.late);
            arrives += self.path.late_by;
        }
        self.number += 1;
        let underway = (arrives, self.number, frame.to_vec());
        self.underway.push(Reverse(underway));
    }

    /// When the next frame arrives.
    fn next_due(&self) -> Option<Duration> {
        let Reverse((due, ..)) = self.underway.peek()?;
        Some(*due)
    }

    /// A frame that has arrived.
    fn give(&mut self, now: Duration) -> Option<Vec<u8>> {
        if self.next_due()? > now {
            return None;
        }
        let Reverse((_, _, frame)) = self.underway.pop()?;
        Some(frame)
    }

    /// splitmix64.
    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

const NANOS: u128 = 1_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn direction(path: &Path) -> Direction {
        Direction::new(path.clone(), Arc::default())
    }

    /// When each of the frames arrives, by its first byte.
    fn arrivals(direction: &mut Direction) -> Vec<(u8, Duration)> {
        let mut arrived = Vec::new();
        while let Some(due) = direction.next_due() {
            let early = direction.give(due.saturating_sub(Duration::from_nanos(1)));
            assert_eq!(early, None, "before its time");
            let frame = direction.give(due).expect("one is due");
            arrived.push((frame[0], due));
        }
        arrived
    }

    #[test]
    fn frames_take_the_delay_and_keep_their_order() {
        let mut direction = direction(&Path::new(30 * MS));
        for number in 0..3 {
            direction.take(MS * u32::from(number), &[number]);
        }
        let expected: Vec<_> = (0..3).map(|n| (n, 30 * MS + MS * u32::from(n))).collect();
        assert_eq!(arrivals(&mut direction), expected);
    }

    #[test]
    fn a_rate_spaces_frames_and_its_queue_overflows() {
        let mut path = Path::new(MS);
        // One frame a millisecond, and room for three.
        (path.rate, path.queue) = (Some(100_000), 300);
        let mut direction = direction(&path);
        for number in 0..5 {
            direction.take(Duration::ZERO, &[number; 100]);
        }
        // The first has got its turn.
        direction.take(MS, &[9; 100]);
        let expected = [(0, 2 * MS), (1, 3 * MS), (2, 4 * MS), (9, 5 * MS)];
        assert_eq!(arrivals(&mut direction), expected);
        let frames = direction.counters.frames();
        assert_eq!((frames.came, frames.overflowed), (6, 2));
    }

    #[test]
    fn a_seed_loses_the_same_frames_and_about_as_many_as_said() {
        let mut path = Path::new(MS);
        path.loss = 10_000;
        let arrived = |path: &Path| {
            let mut direction = direction(path);
            for number in 0..=u16::MAX {
                direction.take(MS * u32::from(number), &number.to_be_bytes());
            }
            let lost = direction.counters.frames().lost;
            (lost, arrivals(&mut direction))
        };
        let (lost, first) = arrived(&path);
        assert_eq!(arrived(&path), (lost, first.clone()));
        assert!((500..800).contains(&lost), "{lost} of 65536");
        path.seed = 2;
        assert_ne!(arrived(&path).1, first);
    }

    #[test]
    fn late_frames_are_overtaken() {
        let mut path = Path::new(MS);
        (path.late, path.late_by) = (1_000_000, 5 * MS);
        let mut direction = direction(&path);
        direction.take(Duration::ZERO, &[1]);
        direction.path.late = 0;
        direction.take(MS, &[2]);
        assert_eq!(arrivals(&mut direction), [(2, 2 * MS), (1, 6 * MS)]);
        assert_eq!(direction.counters.frames().late, 1);
    }
}
