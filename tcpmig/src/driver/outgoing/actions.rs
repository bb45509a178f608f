//! What a source does with the connection itself.

use std::time::{Duration, Instant};

use bytes::Bytes;
use tcpmig_format::Image;
use tcpmig_lock::{Locker, NoLock, Packet};
use tracing::warn;

use super::{Held, Outgoing, Result, done};
use crate::capture::{CaptureError, Frozen, NotFrozen};
use crate::driver::journal::{Decision, HandoverInfo, Note, Role};
use crate::driver::outcome::Reason;
use crate::driver::report::since;
use crate::driver::source::Destination;
use crate::driver::together::Locked;
use crate::handover::SourceAction;
use crate::steer::SteerError;

impl Outgoing {
    /// Does something that is about the connection alone.
    pub(super) fn work(&mut self, action: &SourceAction) -> Result {
        self.note_end_of_phase(action);
        match action {
            SourceAction::Describe => return self.describe().unwrap_or_else(Result::Failed),
            SourceAction::Note(note) => return self.note(*note),
            SourceAction::Freeze => return self.freeze().unwrap_or_else(Result::Failed),
            SourceAction::Confirm => return self.confirm().unwrap_or_else(Result::Failed),
            SourceAction::LookUpDecision => {
                let decision = self.mover.journal.decided(self.session.id());
                decision.inspect(|decision| self.warn_by_hand(*decision));
                return Result::Decided(decision);
            }
            SourceAction::Silence => self.silence(),
            SourceAction::Keep => self.thaw(),
            SourceAction::Discard => self.give_away(),
            SourceAction::EndRedirect if self.session.is_orphaned() => {
                self.mover.end_left(self.flow());
            }
            SourceAction::EndRedirect => self.mover.end_redirect(self.flow()),
            SourceAction::Doubt => {
                let Destination { address, name, .. } = &*self.to;
                let id = self.session.id();
                self.mover
                    .say_in_doubt(id, self.flow(), name, Some(*address));
            }
            SourceAction::Send(_) | SourceAction::Connect | SourceAction::Finish => {}
        }
        Result::Done
    }

    /// What the target has to know of the connection while it lives.
    fn describe(&mut self) -> std::result::Result<Result, Reason> {
        let Held::Live(_, Some(plan)) = &self.held else {
            return Err(Reason::Cancelled);
        };
        let draft = plan.draft(self.layers.iter().cloned()).encode()?;
        self.report.image_bytes = draft.len() as u64;
        Ok(Result::Described {
            queued: self.queued(),
            draft: draft.into(),
        })
    }

    fn note(&self, note: Note) -> Result {
        let id = self.session.id();
        let noted = if note.is_first() {
            let about = HandoverInfo {
                role: Role::Source,
                flow: self.flow(),
                host: self.to.name.clone(),
                address: Some(self.to.address),
            };
            self.mover.journal.begin(id, &about)
        } else {
            self.mover.journal.note(id, note)
        };
        if let Err(error) = &noted
            && note.is_end()
        {
            warn!(%id, ?note, "the journal does not have the end of a handover: {error}");
        }
        done(noted.map_err(Reason::Journal))
    }

    /// Locks and freezes the connection and reads it.
    fn freeze(&mut self) -> std::result::Result<Result, Reason> {
        let lease = self.mover.options.lease;
        let Locked { guard, since, took } = match (self.locked.take(), &self.held) {
            (Some(locked), _) => locked,
            (None, Held::Live(_, Some(plan))) if plan.has_ended() => Locked {
                guard: NoLock.lock(&[self.flow()], lease),
                since: Instant::now(),
                took: Duration::ZERO,
            },
            (None, _) => self.mover.together.locks.lock_now(self.flow()),
        };
        self.times.locking = Some(since);
        let lock = guard.map_err(CaptureError::from)?;
        let Held::Live(socket, Some(plan)) = std::mem::replace(&mut self.held, Held::Nothing)
        else {
            return Err(Reason::Cancelled);
        };
        self.report.lock = took;
        let reading = Instant::now();
        let mut frozen = match Frozen::freeze_locked(socket, plan, lock, lease) {
            Ok(frozen) => frozen,
            Err(NotFrozen { fd, error }) => {
                self.held = Held::Live(fd, None);
                return Err(error.into());
            }
        };
        let image = frozen.capture_rest();
        self.held = Held::Frozen(frozen);
        let encoded = image.map_err(Reason::from).and_then(|image| {
            let bytes = image.encode()?;
            self.report_image(&image, bytes.len());
            Ok(bytes)
        });
        match (encoded, &self.held) {
            (Ok(bytes), Held::Frozen(frozen)) => {
                self.report.read = reading.elapsed();
                self.mover.keep_silent(frozen);
                let image = bytes.into();
                Ok(Result::Frozen { image })
            }
            (encoded, _) => {
                self.thaw();
                Err(encoded.err().unwrap_or(Reason::Cancelled))
            }
        }
    }

    fn report_image(&mut self, image: &Image, bytes: usize) {
        self.report.image_bytes += bytes as u64;
        if let Some(tcp) = image.tcp() {
            let (send, receive) = (tcp.send(), tcp.receive());
            self.report.send_queue_bytes = (send.sent.len() + send.unsent.len()) as u64;
            self.report.receive_queue_bytes = receive.queue.len() as u64;
        }
    }

    /// Steers the connection's packets and reads its numbers again.
    fn confirm(&mut self) -> std::result::Result<Result, Reason> {
        let (Held::Frozen(frozen), Some(steering)) = (&mut self.held, self.steering.take()) else {
            return Err(Reason::Cancelled);
        };
        match self.redirected.take() {
            Some(redirected) => redirected.map_err(SteerError::from)?,
            None => steering.steer(frozen)?,
        }
        // A packet can have passed the lock's beginning until now.
        frozen.check_unchanged()?;
        let packets = frozen.captured().map_err(CaptureError::from)?;
        self.report.captured_packets = packets.len() as u64;
        let bytes = |packet: &Packet| Bytes::copy_from_slice(&packet.bytes);
        let packets = packets.iter().map(bytes).collect();
        Ok(Result::Confirmed { packets })
    }

    /// Keeps the packets here which are steered to the target.
    fn silence(&mut self) {
        let (flow, lease) = (self.flow(), self.mover.options.lease);
        if let Held::Frozen(frozen) = &mut self.held
            && let Err(error) = frozen.suspend(&*self.mover.locker, lease)
        {
            warn!(%flow, "its packets go to a target that does not answer, and could not be kept here: {error}");
        }
    }

    /// It lives on the target, or nowhere: packets go where they went, and it ends here.
    pub(in crate::driver) fn give_away(&mut self) {
        let flow = self.flow();
        if let Held::Frozen(frozen) = &mut self.held
            && let Err(error) = frozen.resume()
        {
            warn!(%flow, "its packets do not go to the target again: {error}");
        }
        self.discard();
    }

    /// The connection goes on here.
    fn thaw(&mut self) {
        self.held = match std::mem::replace(&mut self.held, Held::Nothing) {
            Held::Frozen(frozen) => {
                let socket = frozen.keep().unwrap_or_else(|NotFrozen { fd, error }| {
                    // Why it is kept matters more than what went wrong on the way back.
                    warn!("the connection is kept, but {error}");
                    fd
                });
                Held::Live(socket, None)
            }
            held => held,
        };
    }

    /// It ends here, in silence.
    fn discard(&mut self) {
        if let Held::Frozen(mut frozen) = std::mem::replace(&mut self.held, Held::Nothing) {
            frozen.make_sure(&*self.mover.locker);
            if let Err(error) = frozen.discard() {
                warn!("the connection was closed here, but {error}");
            }
        }
    }

    /// A phase ends with this action, which comes next.
    pub(super) fn note_end_of_phase(&mut self, action: &SourceAction) {
        let (rebuild, activate) = self.session.target_took();
        let Self {
            report,
            times,
            session,
            ..
        } = self;
        match action {
            SourceAction::Freeze => report.accept = since(times.offering),
            // Redirected along with others, that was before.
            SourceAction::Confirm if self.redirected.is_none() => {
                // Without PREPARED nobody knows yet.
                if !rebuild.is_zero() {
                    report.transfer = since(times.sending).saturating_sub(rebuild);
                }
                times.steering = Some(Instant::now());
            }
            SourceAction::Keep | SourceAction::Discard | SourceAction::Doubt => {
                report.rebuild = rebuild;
                report.activate = activate;
                report.commit = since(times.committing);
                report.blackout = since(times.locking);
                if session.has_committed() {
                    // To the target and back, for the first time or for the last.
                    let ways = if report.transfer.is_zero() {
                        since(times.sending).saturating_sub(rebuild + activate)
                    } else {
                        report.commit.saturating_sub(activate)
                    };
                    report.blackout = report.blackout.saturating_sub(ways / 2);
                }
                if let Some(exchange) = &self.exchange {
                    let stats = exchange.stats();
                    report.frames_sent = stats.frames_sent;
                    report.frames_received = stats.frames_received;
                }
            }
            _ => {}
        }
    }

    pub(super) fn warn_by_hand(&self, decision: Decision) {
        let id = self.session.id();
        warn!(%id, ?decision, "a handover in doubt is settled by hand, without the word of its target");
    }
}
