//! What a process before this one left open as a source.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;

use tcpmig_format::FourTuple;
use tcpmig_lock::LockGuard;
use tcpmig_transport::{Exchange, TransportError};
use tokio::time::{Instant, sleep, timeout};
use tracing::Instrument;

use super::journal::{Note, Open};
use super::source::Mover;
use super::spans;
use crate::handover::{Decoder, Fate, HandoverId, Message, Source, SourceAction, SourceEvent};

/// What became of a handover that a process before this one had begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// The handover as the journal had it.
    pub open: Open,
    /// Where its connection is: [`Fate::Moved`], [`Fate::Lost`], or still [`Fate::InDoubt`]. The socket of this host
    /// ended with its process, so none is kept.
    pub fate: Fate,
    /// Why, for a person to read.
    pub reason: String,
}

impl Mover {
    /// Settles what processes before this one left open in the journal, with the targets; with the least wait if it is called before
    /// anything is moved.
    ///
    /// - A handover whose COMMIT cannot have been sent was the source's, and its connection ended with the process: it
    ///   is lost. The target is told, so that it discards what it built and unlocks at once.
    /// - For any other one COMMIT is sent again, without the packets that the process had captured, which the peer
    ///   repeats. A target that has built the connection takes it now, one that had taken it says so ([`Fate::Moved`]; what redirects
    ///   its packets stays for its lease), one that never had it or no longer has it says that ([`Fate::Lost`]).
    ///   A redirect of what is lost is ended, with this mover's locker.
    /// - A target that does not answer, or knows nothing of it, leaves it in doubt and in the journal: this may be called again.
    ///
    /// A target that does not answer is asked again, in all for as long as [`Options::ask_for`](super::Options::ask_for), and
    /// after that not for the rest. Cancel-safe: what was not settled is still open.
    pub async fn resolve(&self) -> Vec<Resolved> {
        let mut targets = Targets {
            silent: HashSet::new(),
            until: Instant::now() + self.options.ask_for,
        };
        let mut resolved = Vec::new();
        self.worker.start();
        let (journal, waits) = (self.journal.clone(), self.journal.waits());
        let left_open = self.worker.call(waits, move || journal.left_open()).await;
        for open in left_open {
            let span = spans::source(open.id, &open.about.host);
            let resolving = self.resolve_one(&open, &mut targets);
            let (fate, reason) = resolving.instrument(span).await;
            let settling = {
                let (mover, open) = (self.clone(), open.clone());
                move || mover.note_resolved(&open, fate)
            };
            self.worker.call(self.waits(), settling).await;
            resolved.push(Resolved { open, fate, reason });
        }
        resolved
    }

    fn note_resolved(&self, Open { id, about, .. }: &Open, fate: Fate) {
        match fate {
            Fate::InDoubt => self.say_in_doubt(*id, about.flow, &about.host, about.address),
            Fate::Lost => self.end_redirect(about.flow),
            Fate::Moved | Fate::Kept => {}
        }
        self.note_end(*id, fate);
    }

    /// Ends the redirect of a connection that is lost: another one of the same addresses would be sent to the target. The
    /// lock of a process that died ends with its lease, which is short.
    pub(super) fn end_redirect(&self, flow: FourTuple) {
        let locked = self.locker.lock(&[flow], self.options.lease);
        if let Err(error) = locked.and_then(LockGuard::release) {
            tracing::debug!(%flow, %error, "what the process that died left is left to its lease");
        }
    }

    async fn resolve_one(&self, open: &Open, targets: &mut Targets) -> (Fate, String) {
        let about = &open.about;
        let offered = open.note == Note::Offering;
        let own = "its process ended before the target was given it".to_owned();
        let Some(address) = about.address else {
            return (
                Fate::InDoubt,
                "the journal does not say where the target is".to_owned(),
            );
        };
        if targets.silent.contains(&address) {
            return if offered {
                (Fate::Lost, own)
            } else {
                (Fate::InDoubt, "its target does not answer".to_owned())
            };
        }
        let release = async |targets: &mut Targets| {
            let saying = async || self.release(address, &about.host, open.id).await;
            if let Err(Unanswered { reason, .. }) = targets.again(address, saying).await {
                tracing::debug!(id = %open.id, %reason, "the target gives it up at its deadline, and is silent for as long as it remembers it");
            }
        };
        if offered {
            release(targets).await;
            return (Fate::Lost, own);
        }
        let asking = async || self.ask_once(address, &about.host, open.id).await;
        let (event, reason) = match targets.again(address, asking).await {
            Ok(answer) => answer,
            Err(unanswered) => (SourceEvent::GiveUp, unanswered.reason),
        };
        let mut machine = Source::orphaned();
        if machine.handle(event) == SourceAction::Release {
            release(targets).await;
        }
        (machine.fate().unwrap_or(Fate::InDoubt), reason)
    }

    /// Says ABORT, and waits until the target has read it.
    async fn release(
        &self,
        address: SocketAddr,
        name: &str,
        id: HandoverId,
    ) -> Result<(), Unanswered> {
        let mut exchange = self.open_at(address, name).await?;
        let (frame, _) = Message::Abort { id }.encode();
        exchange.send(frame).await?;
        exchange.finish().await?;
        // It finishes its direction when it has come to the end of ours.
        let within = self.options.answer_within;
        match timeout(within, exchange.recv()).await {
            Ok(finished) => Ok(finished.map(drop)?),
            Err(_) => Err(Unanswered::late(within)),
        }
    }

    async fn ask_once(
        &self,
        address: SocketAddr,
        name: &str,
        id: HandoverId,
    ) -> Result<(SourceEvent, String), Unanswered> {
        let mut exchange = self.open_at(address, name).await?;
        let answer = async {
            let (frame, _) = Message::commit(id).encode();
            exchange.send(frame).await?;
            receive(&mut exchange).await
        };
        let within = self.options.prepared_within + self.options.answer_within;
        let message = match timeout(within, answer).await {
            Ok(message) => message?,
            Err(_) => return Err(Unanswered::late(within)),
        };
        let disobeys = || Unanswered {
            reason: "the target does not follow the protocol".to_owned(),
            may_answer_later: false,
        };
        if message.as_ref().and_then(Message::id) != Some(id) {
            return Err(disobeys());
        }
        Ok(match message {
            Some(Message::Active { .. }) => (SourceEvent::Active, "the target has it".to_owned()),
            Some(Message::Aborted { reason, .. }) => (SourceEvent::Aborted, reason),
            Some(Message::Lost { reason, .. }) => (SourceEvent::Lost, reason),
            Some(Message::Unknown { .. }) => {
                let reason = "the target knows nothing of it".to_owned();
                (SourceEvent::Unknown, reason)
            }
            _ => return Err(disobeys()),
        })
    }
}

/// What the targets have done so far.
struct Targets {
    /// Those that are not asked any more.
    silent: HashSet<SocketAddr>,
    /// When asking again ends.
    until: Instant,
}

impl Targets {
    /// Asks this target until it answers or the time is over; then it counts as silent.
    async fn again<T>(
        &mut self,
        address: SocketAddr,
        ask: impl AsyncFn() -> Result<T, Unanswered>,
    ) -> Result<T, Unanswered> {
        let mut pause = Duration::from_millis(10);
        loop {
            let unanswered = match ask().await {
                Ok(answer) => return Ok(answer),
                Err(unanswered) => unanswered,
            };
            if !unanswered.may_answer_later || Instant::now() + pause >= self.until {
                self.silent.insert(address);
                return Err(unanswered);
            }
            tracing::debug!(%address, reason = unanswered.reason, "the target is asked again");
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }
}

struct Unanswered {
    reason: String,
    /// False if it has said something that the protocol does not have, or is not to be talked to.
    may_answer_later: bool,
}

impl Unanswered {
    fn late(within: Duration) -> Self {
        Self {
            reason: format!("the target did not answer within {within:?}"),
            may_answer_later: true,
        }
    }
}

impl From<TransportError> for Unanswered {
    fn from(error: TransportError) -> Self {
        use TransportError as E;
        // Not one that is somebody else, or refuses this host.
        let may_answer_later = matches!(
            error,
            E::Unreachable { .. }
                | E::HandshakeTimeout { .. }
                | E::Idle { .. }
                | E::Closed { .. }
                | E::Restarted { .. }
                | E::Abandoned
                | E::Stopped { .. }
                | E::FrameTimeout { .. }
                | E::Truncated { .. }
        );
        Self {
            reason: format!("link to the target: {error}"),
            may_answer_later,
        }
    }
}

/// One message; `None` if there is none or it is not one.
async fn receive(exchange: &mut Exchange) -> Result<Option<Message>, TransportError> {
    let frame = exchange.recv().await?;
    Ok(frame.and_then(|frame| Decoder::default().frame(frame).ok().flatten()))
}
