//! Connections whose client, or whose agent, was gone when their end came.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::PoisonError;
use std::time::Duration;

use tcpmig_format::FourTuple;
use tcpmig_lock::{LockError, LockGuard};
use tcpmig_sys::netns::Namespace;
use tcpmig_sys::repair::{FreezeError, FrozenSocket, is_in_repair_mode};
use tcpmig_sys::sockets::cookie;
use tokio::time::sleep;

use super::Shared;
use super::giving::{Answer, this_hosts};
use super::registry::Client;
use crate::agent::wire::ToClient;
use crate::driver::journal::{Note, Unfinished};
use crate::handover::{Fate, HandoverId};

/// How long to wait before targets are asked again about what an earlier agent left in doubt.
const AGAIN: Duration = Duration::from_secs(5);
/// How long a lock lasts that is taken over to be ended.
const LEASE: Duration = Duration::from_secs(10);

impl Shared {
    /// What became of a connection that a client had given to this agent or to one before it.
    pub(super) async fn recover(
        &self,
        client: &Client,
        id: u64,
        flow: FourTuple,
        socket: OwnedFd,
    ) -> Answer {
        let number = match cookie(socket.as_fd()) {
            Ok(number) => number,
            Err(error) => return Answer::Gone(error.to_string()),
        };
        // It was given to this agent.
        if let Some(mut ending) = self.given.under_way(number) {
            let ended = ending.wait_for(Option::is_some).await;
            if let Some(answer) = ended.ok().and_then(|answer| answer.clone()) {
                return answer;
            }
        }
        if let Some(answer) = self.given.ended(number) {
            return answer;
        }
        self.of_earlier(client, id, flow, socket).await
    }

    /// It was given to an agent that has died.
    async fn of_earlier(
        &self,
        client: &Client,
        id: u64,
        flow: FourTuple,
        socket: OwnedFd,
    ) -> Answer {
        let in_this = Namespace::of_socket(socket.as_fd()).and_then(|one| one.is_current());
        if !in_this.unwrap_or(false) {
            return Answer::Gone("it is not a socket of this network namespace".to_owned());
        }
        let Some(left) = self.take_left(flow) else {
            return without_record(flow, socket);
        };
        if left.note != Note::Committing {
            // COMMIT was not sent: nobody else can have it.
            return self.bring_back(flow, socket);
        }
        let handover = left.id.to_string();
        let mut is_doubted = false;
        loop {
            match self.fate_of(left.id).await {
                // The target never had it.
                (Fate::Lost, true) => return self.bring_back(flow, socket),
                (Fate::Moved, _) => {
                    end_silently(socket);
                    let report = BTreeMap::new();
                    return Answer::Moved { handover, report };
                }
                (Fate::InDoubt, _) => {
                    if !is_doubted {
                        is_doubted = true;
                        let handover = Some(handover.clone());
                        client.send(ToClient::Doubt { id, handover }, None);
                    }
                    sleep(AGAIN).await;
                    self.ask_again().await;
                }
                (Fate::Kept | Fate::Lost, _) => {
                    end_silently(socket);
                    let reason = "it had been committed, and the target does not have it";
                    return Answer::Lost(reason.to_owned());
                }
            }
        }
    }

    /// The newest handover of these ends that an earlier agent had begun and not ended. One that goes on here is no longer among them:
    /// what happens to the connection later is not its business.
    fn take_left(&self, flow: FourTuple) -> Option<Unfinished> {
        let left = self.left_open.lock();
        let mut left = left.unwrap_or_else(PoisonError::into_inner);
        let of_this = left.iter().filter(|left| left.about.flow == flow);
        let newest = of_this.max_by_key(|left| left.since).cloned();
        if newest
            .as_ref()
            .is_some_and(|left| left.note != Note::Committing)
        {
            left.retain(|left| left.about.flow != flow);
        }
        newest
    }

    /// What the target says of a handover that an earlier agent had committed, and whether the connection never left.
    async fn fate_of(&self, id: HandoverId) -> (Fate, bool) {
        let earlier = self.earlier.lock().await;
        let resolved = earlier.iter().find(|one| one.open.id == id);
        resolved.map_or((Fate::InDoubt, false), |one| (one.fate, one.never_left))
    }

    async fn ask_again(&self) {
        let mut earlier = self.earlier.lock().await;
        for resolved in self.mover.resolve().await {
            earlier.retain(|left| left.open.id != resolved.open.id);
            earlier.push(resolved);
        }
    }

    /// It was frozen, or about to be, when an agent died.
    fn bring_back(&self, flow: FourTuple, socket: OwnedFd) -> Answer {
        let lost = |error: &dyn std::fmt::Display| {
            Answer::Lost(format!("the agent died, and it cannot be thawed: {error}"))
        };
        if !this_hosts(&socket).is_ok_and(|of| of == flow) {
            return Answer::Gone("it does not live here any more".to_owned());
        }
        let is_frozen = match is_in_repair_mode(socket.as_fd()) {
            Ok(is_frozen) => is_frozen,
            Err(error) => return lost(&error),
        };
        // Before the thaw, so that what makes the peer answer can leave.
        let unlocked = self
            .locker
            .take_over(&[flow], LEASE)
            .and_then(LockGuard::release);
        if let Err(LockError::AlreadyLocked(_)) = unlocked {
            return Answer::Gone("another process moves it".to_owned());
        }
        if let Err(error) = unlocked {
            tracing::warn!(%flow, %error, "what a dead agent left stays until its lease ends");
        }
        let thawed = match is_frozen {
            true => FrozenSocket::left_behind(socket).and_then(FrozenSocket::thaw),
            false => Ok(socket),
        };
        match thawed {
            Ok(_) => {
                tracing::info!(%flow, "a connection that a dead agent left frozen goes on here");
                Answer::kept("other", "the agent died before COMMIT; it goes on here")
            }
            Err(FreezeError { error, .. }) => lost(&error),
        }
    }
}

/// The journal has its end, or never had its beginning.
fn without_record(flow: FourTuple, socket: OwnedFd) -> Answer {
    match is_in_repair_mode(socket.as_fd()) {
        // Its end was noted before that could be said.
        Ok(true) => {
            end_silently(socket);
            Answer::Gone("the agent died after it had left this host".to_owned())
        }
        // One that was given up has no connection any more.
        Ok(false) if this_hosts(&socket).is_ok_and(|of| of == flow) && lives(&socket) => {
            Answer::kept(
                "other",
                "the agent died before it was frozen, or after it was kept",
            )
        }
        _ => Answer::Gone("it does not live here any more".to_owned()),
    }
}

/// Ends what is left of it here without a packet.
fn end_silently(socket: OwnedFd) {
    if !is_in_repair_mode(socket.as_fd()).unwrap_or(false) {
        return;
    }
    let ended = match FrozenSocket::left_behind(socket) {
        Ok(left) => left.discard(),
        Err(FreezeError { error, .. }) => Err(error),
    };
    if let Err(error) = ended {
        tracing::warn!(%error, "what a dead agent left is in repair mode until its process ends");
    }
}

/// Whether there is a connection at all.
fn lives(socket: &OwnedFd) -> bool {
    use tcpmig_sys::info::{State, tcp_info};
    tcp_info(socket.as_fd()).is_ok_and(|info| info.state != State::Close)
}
