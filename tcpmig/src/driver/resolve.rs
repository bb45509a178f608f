//! What a process before this one left open as a source.

use std::collections::HashSet;
use std::net::SocketAddr;

use tcpmig_format::FourTuple;
use tcpmig_lock::LockGuard;
use tcpmig_transport::{Exchange, TransportError};
use tokio::time::timeout;

use super::journal::{Note, Open};
use super::source::Mover;
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
    /// A target is asked once, and not for the rest if it does not answer. Cancel-safe: what was
    /// not settled is still open.
    pub async fn resolve(&self) -> Vec<Resolved> {
        let mut silent = HashSet::new();
        let mut resolved = Vec::new();
        for open in self.journal.left_open() {
            let (fate, reason) = self.resolve_one(&open, &mut silent).await;
            if fate == Fate::Lost {
                self.end_redirect(open.about.flow);
            }
            self.note_end(open.id, fate);
            resolved.push(Resolved { open, fate, reason });
        }
        resolved
    }

    /// Ends the redirect of a connection that is lost: another one of the same addresses would be sent to the target. The
    /// lock of a process that died ends with its lease, which is short.
    pub(super) fn end_redirect(&self, flow: FourTuple) {
        let locked = self.locker.lock(&[flow], self.options.lease);
        if let Err(error) = locked.and_then(LockGuard::release) {
            tracing::debug!(%flow, %error, "what the process that died left is left to its lease");
        }
    }

    async fn resolve_one(&self, open: &Open, silent: &mut HashSet<SocketAddr>) -> (Fate, String) {
        let about = &open.about;
        let offered = open.note == Note::Offering;
        let own = "its process ended before the target was given it".to_owned();
        let Some(address) = about.address else {
            return (
                Fate::InDoubt,
                "the journal does not say where the target is".to_owned(),
            );
        };
        if silent.contains(&address) {
            return if offered {
                (Fate::Lost, own)
            } else {
                (Fate::InDoubt, "its target does not answer".to_owned())
            };
        }
        if offered {
            if let Err(error) = self.release(address, &about.host, open.id).await {
                tracing::debug!(id = %open.id, %error, "the target discards it at its deadline");
                silent.insert(address);
            }
            return (Fate::Lost, own);
        }
        let (event, reason) = match self.ask_once(address, &about.host, open.id).await {
            Ok(answer) => answer,
            Err(reason) => {
                silent.insert(address);
                (SourceEvent::GiveUp, reason)
            }
        };
        let mut machine = Source::orphaned();
        if machine.handle(event) == SourceAction::Release
            && let Err(error) = self.release(address, &about.host, open.id).await
        {
            tracing::debug!(id = %open.id, %error, "the target unlocks at the end of the lease");
        }
        (machine.fate().unwrap_or(Fate::InDoubt), reason)
    }

    /// Says ABORT, and waits until the target has read it.
    async fn release(
        &self,
        address: SocketAddr,
        name: &str,
        id: HandoverId,
    ) -> Result<(), TransportError> {
        let mut exchange = self.open_at(address, name).await?;
        let (frame, _) = Message::Abort { id }.encode();
        exchange.send(frame).await?;
        exchange.finish().await?;
        // It ends its direction when it has come to the end of ours, one way or the other.
        let _ = timeout(self.options.answer_within, exchange.recv()).await;
        Ok(())
    }

    async fn ask_once(
        &self,
        address: SocketAddr,
        name: &str,
        id: HandoverId,
    ) -> Result<(SourceEvent, String), String> {
        let failed = |error: TransportError| format!("link to the target: {error}");
        let mut exchange = self.open_at(address, name).await.map_err(failed)?;
        let answer = async {
            let (frame, _) = Message::commit(id).encode();
            exchange.send(frame).await?;
            receive(&mut exchange).await
        };
        let within = self.options.prepared_within + self.options.answer_within;
        let message = match timeout(within, answer).await {
            Ok(message) => message.map_err(failed)?,
            Err(_) => return Err(format!("the target did not answer within {within:?}")),
        };
        if message.as_ref().and_then(Message::id) != Some(id) {
            return Err("the target does not follow the protocol".to_owned());
        }
        Ok(match message {
            Some(Message::Active { .. }) => (SourceEvent::Active, "the target has it".to_owned()),
            Some(Message::Aborted { reason, .. }) => (SourceEvent::Aborted, reason),
            Some(Message::Lost { reason, .. }) => (SourceEvent::Lost, reason),
            Some(Message::Unknown { .. }) => {
                let reason = "the target knows nothing of it".to_owned();
                (SourceEvent::Unknown, reason)
            }
            _ => return Err("the target does not follow the protocol".to_owned()),
        })
    }
}

/// One message; `None` if there is none or it is not one.
async fn receive(exchange: &mut Exchange) -> Result<Option<Message>, TransportError> {
    let frame = exchange.recv().await?;
    Ok(frame.and_then(|frame| Decoder::default().frame(frame).ok().flatten()))
}
