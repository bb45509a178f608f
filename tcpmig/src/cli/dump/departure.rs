//! How a connection gets into a file and off this host.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, anyhow};
use tcpmig::capture::{CaptureError, Frozen, Locked, Plan};
use tcpmig::steer::{External, Redirected, Steer, Steering};
use tcpmig_format::{FourTuple, Image, SecretBytes};
use tcpmig_lock::{Backend, LockError, NoLock};
use tcpmig_sys::process::pause::{Holders, Paused};

use super::DumpArgs;
use super::attended::Attendant;
use crate::cli::files::{self, NewFile, beside_the_disk};
use crate::cli::guardian;

/// How often a connection that its process used meanwhile is read again, before the process has to stand still while the image
/// is written. Two are enough unless the disk is slower than a process that fills or empties a queue.
const READ_AGAIN: usize = 4;

/// How often to see whether somebody still wants the dump, while the disk is waited for.
const LOOKS_EVERY: Duration = Duration::from_millis(50);

/// What was dumped.
pub(super) struct Dumped {
    pub(super) image: Image,
    pub(super) flow: FourTuple,
    pub(super) bytes: usize,
    /// Until when nothing of the connection leaves this host, unless it goes on here or had ended before.
    pub(super) silent_until: Option<Until>,
}

/// The end of a lease, by both clocks.
#[derive(Clone, Copy)]
pub(super) struct Until {
    monotonic: Instant,
    wall: SystemTime,
}

impl Until {
    fn from_now(lease: Duration) -> Self {
        Self {
            monotonic: Instant::now() + lease,
            wall: SystemTime::now() + lease,
        }
    }

    pub(super) fn remaining(self) -> Duration {
        self.monotonic.saturating_duration_since(Instant::now())
    }

    /// Seconds since 1970.
    pub(super) fn seconds(self) -> u64 {
        let since = self.wall.duration_since(SystemTime::UNIX_EPOCH);
        since.map_or(0, |since| since.as_secs())
    }
}

/// A connection that is about to leave.
#[allow(clippy::large_enum_variant, reason = "there is one of it")]
enum Held {
    /// Its processes go on, and so does its socket, on a network that is silent.
    Used(Locked),
    /// Its processes stand still. Drop order: thaw, then let them go on.
    Still(Frozen, Paused),
    /// It goes on: its lock could not be renewed.
    Unlocked(LockError),
    /// It goes on: whoever asked for the dump does not want it any more.
    CalledOff,
}

impl Held {
    /// A connection whose lock has ended, or whose dump nobody wants any more, goes on at once, and does not wait for a disk.
    fn renew(&mut self, lease: Duration, until: &mut Until, attendant: &Attendant) {
        if !attendant.is_there() {
            *self = Self::CalledOff;
            return;
        }
        let renewing = Until::from_now(lease);
        let renewed = match self {
            Self::Used(locked) => locked.renew(),
            Self::Still(frozen, _) => frozen.renew(),
            Self::Unlocked(_) | Self::CalledOff => return,
        };
        match renewed {
            Ok(()) => *until = renewing,
            Err(error) => *self = Self::Unlocked(error),
        }
    }

    /// Frozen, with processes that stand still.
    fn stand_still(self, holders: &mut Holders) -> anyhow::Result<(Frozen, Paused)> {
        match self {
            Self::Still(frozen, paused) => Ok((frozen, paused)),
            Self::Used(locked) => {
                holders.look()?;
                let paused = holders.pause()?;
                let frozen = locked.freeze().map_err(|not| not.error)?;
                Ok((frozen, paused))
            }
            Self::Unlocked(error) => {
                Err(anyhow!(error).context("the lock ended before the image was written"))
            }
            Self::CalledOff => Err(CalledOff.into()),
        }
    }
}

/// Whoever asked for the dump has gone, or was interrupted, before it was done.
#[derive(Debug, thiserror::Error)]
#[error("interrupted: the connection goes on here, and there is no image")]
pub(super) struct CalledOff;

/// Writes the connection into its file and ends it on this host. After an error it goes on here, and there is no file.
pub(super) fn dump(
    args: &DumpArgs,
    socket: OwnedFd,
    attendant: &Attendant,
) -> anyhow::Result<Dumped> {
    let plan = Plan::read(socket.as_fd())?;
    let flow = plan.flow();
    let ended = plan.has_ended();
    let lock = if ended { &Backend::None } else { &args.lock };
    let _guardian = guardian::start(lock)?;
    let locker = tcpmig::locker::open(lock).context("lock")?;
    let steering = match args.redirect {
        Some(target) if !ended => {
            Redirected::new(target, args.redirect_lease)?.plan(flow, &*locker)?
        }
        _ => External.plan(flow, &NoLock)?,
    };
    let holders = Holders::of(socket.as_fd())?;
    let mut departure = Departure {
        args,
        holders,
        attendant,
        file: NewFile::create(&args.output)?,
        lease: args.lease,
        silent_until: Until::from_now(args.lease),
    };
    let paused = departure.holders.pause()?;
    let frozen = Frozen::freeze(socket, plan, &*locker, args.lease).map_err(|not| not.error)?;
    let (image, bytes, silent_until) = if args.keep {
        departure.copy(frozen, paused)?
    } else {
        departure.leave(frozen, paused, steering)?
    };
    Ok(Dumped {
        image,
        flow,
        bytes,
        silent_until: (!ended && !args.keep).then_some(silent_until),
    })
}

struct Departure<'a> {
    args: &'a DumpArgs,
    holders: Holders,
    attendant: &'a Attendant,
    file: NewFile,
    /// Of the lock, and once there is one of the redirect.
    lease: Duration,
    silent_until: Until,
}

impl Departure<'_> {
    /// The connection goes on before the disk is touched.
    fn copy(mut self, mut frozen: Frozen, paused: Paused) -> anyhow::Result<(Image, usize, Until)> {
        let image = frozen.capture(None)?;
        frozen.check_unchanged()?;
        frozen.keep().map_err(|not| not.error)?;
        drop(paused);
        let bytes = encode(&image)?;
        let file = &mut self.file;
        beside_the_disk(
            self.lease,
            || file.write(&bytes).and_then(|()| file.publish()),
            || {},
        )?;
        self.file.keep()?;
        Ok((image, bytes.len(), self.silent_until))
    }

    /// The image has to be safe before the connection is given up, and a disk can take seconds for that. Its process does not
    /// stand still for it, nor does it meet its socket in repair mode, which would look like an error of the connection: it
    /// goes on with a network that is silent. What it does with the connection meanwhile is seen at the end, and then
    /// read again.
    fn leave(
        mut self,
        mut frozen: Frozen,
        mut paused: Paused,
        steering: Box<dyn Steering>,
    ) -> anyhow::Result<(Image, usize, Until)> {
        let mut again = 0..READ_AGAIN;
        let (image, bytes, mut held) = loop {
            let mut image = frozen.capture(None)?;
            frozen.merge_captured(&mut image)?;
            let last = again.next().is_none();
            // Without a lock of ours a socket that is not frozen would talk to its peer.
            let mut held = if last || self.args.lock == Backend::None {
                Held::Still(frozen, paused)
            } else {
                let used = frozen.thaw_locked().map_err(|not| not.error)?;
                drop(paused);
                Held::Used(used)
            };
            let bytes = self.on_disk(&mut held, |file| {
                let bytes = encode(&image)?;
                file.write(&bytes)?;
                Ok(bytes.len())
            })?;
            (frozen, paused) = held.stand_still(&mut self.holders)?;
            match frozen.check_unchanged() {
                Err(CaptureError::MovedOn) if !last => continue,
                confirmed => confirmed?,
            }
            break (image, bytes, Held::Still(frozen, paused));
        };
        if let Held::Still(frozen, _) = &mut held {
            // Only now: from here on what the peer sends is the business of the host that gets the image.
            steering.steer(frozen)?;
            if self.args.redirect.is_some() {
                self.lease = self.args.redirect_lease;
            }
        }
        // A name that somebody else took meanwhile is found out while the connection can still go on.
        self.attendant.publishes();
        self.on_disk(&mut held, NewFile::publish)?;
        held.renew(self.lease, &mut self.silent_until, self.attendant);
        let (frozen, paused) = held.stand_still(&mut self.holders)?;
        frozen.check_unchanged()?;
        frozen.discard()?;
        drop(paused);
        if let Err(error) = self.file.keep() {
            tracing::warn!(
                "the image is complete, but its name may not outlive a power failure: {error}"
            );
        }
        Ok((image, bytes, self.silent_until))
    }

    /// Does something that may wait for the disk, and renews the lock meanwhile.
    fn on_disk<T: Send>(
        &mut self,
        held: &mut Held,
        work: impl FnOnce(&mut NewFile) -> anyhow::Result<T> + Send,
    ) -> anyhow::Result<T> {
        let (file, until, lease) = (&mut self.file, &mut self.silent_until, self.lease);
        let often = (lease / 3).min(LOOKS_EVERY);
        let mut renewed = Instant::now();
        held.renew(lease, until, self.attendant);
        let done = beside_the_disk(
            often,
            || work(file),
            || {
                if !self.attendant.is_there() || renewed.elapsed() >= lease / 3 {
                    renewed = Instant::now();
                    held.renew(lease, until, self.attendant);
                }
            },
        );
        held.renew(lease, until, self.attendant);
        done
    }
}

/// The bytes of an image that `tcpmig restore` takes: the connection is not given up for one that it would refuse.
fn encode(image: &Image) -> anyhow::Result<SecretBytes> {
    let bytes = image.encode()?;
    files::check(&bytes).context("nobody could restore this image")?;
    Ok(bytes)
}
