//! The agent as a way to other hosts.

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::AsFd;

use tcpmig_format::FourTuple;
use tokio::sync::mpsc;

use super::actor::{Command, Ended, Give};
use super::{AgentError, Client};
use crate::session::{Departed, Doubt, Parts, Way};

/// To another host, by its name, through the agent of this host.
///
/// If the future of [`Way::depart`] or of a [`Doubt`] is dropped, the move goes on, and a connection that is kept is closed.
#[derive(Debug, Clone)]
pub struct ServerWay {
    client: Client,
    service: String,
}

/// Why the agent did not move a connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason} ({code})")]
#[non_exhaustive]
pub struct NotGiven {
    /// One of the codes of AGENT.md.
    pub code: String,
    /// Why, for a person to read.
    pub reason: String,
}

impl NotGiven {
    pub(super) fn new(code: &str, reason: impl fmt::Display) -> Self {
        Self {
            code: code.to_owned(),
            reason: reason.to_string(),
        }
    }
}

impl ServerWay {
    pub(super) fn new(client: Client, service: String) -> Self {
        Self { client, service }
    }
}

impl Way for ServerWay {
    type Destination = String;
    type Report = BTreeMap<String, u64>;
    type Cause = NotGiven;

    async fn depart(&self, parts: Parts, to: &String) -> Departed<Self::Report, NotGiven> {
        let kept = |parts, cause| Departed::Kept { parts, cause };
        let flow = match flow_of(&parts) {
            Ok(flow) => flow,
            Err(reason) => return kept(parts, NotGiven::new("invalid", reason)),
        };
        // INVARIANT: nobody closes the semaphore.
        let turn = self.client.gives.clone().acquire_owned().await;
        let (ended, mut endings) = mpsc::unbounded_channel();
        let give = Give {
            service: self.service.clone(),
            to: to.clone(),
            flow,
            parts,
            ended,
            _turn: turn.ok(),
        };
        if let Err(unsent) = self.client.commands.send(Command::Give(give)) {
            let gone = NotGiven::new("unreachable", AgentError::Gone);
            return match unsent.0 {
                Command::Give(give) => kept(give.parts, gone),
                // INVARIANT: it is what was sent.
                _ => Departed::Lost("it cannot be found again".to_owned()),
            };
        }
        ending(&mut endings)
            .await
            .unwrap_or_else(|| asking(endings))
    }
}

fn flow_of(parts: &Parts) -> Result<FourTuple, String> {
    let ends =
        tcpmig_sys::ends::Ends::of(parts.socket.as_fd()).map_err(|error| error.to_string())?;
    FourTuple::new(ends.local, ends.remote).map_err(|error| error.to_string())
}

/// The next word about a connection; `None` if that is that it is in doubt.
async fn ending(
    endings: &mut mpsc::UnboundedReceiver<Ended>,
) -> Option<Departed<BTreeMap<String, u64>, NotGiven>> {
    Some(match endings.recv().await {
        Some(Ended::Moved(report)) => Departed::Moved(report),
        Some(Ended::Kept(parts, cause)) => Departed::Kept { parts, cause },
        Some(Ended::Lost(reason)) => Departed::Lost(reason),
        Some(Ended::Doubt) => return None,
        None => Departed::Lost("the runtime has ended".to_owned()),
    })
}

fn asking(
    mut endings: mpsc::UnboundedReceiver<Ended>,
) -> Departed<BTreeMap<String, u64>, NotGiven> {
    let doubt: Doubt<_, _> = Box::pin(async move {
        loop {
            if let Some(departed) = ending(&mut endings).await {
                return departed;
            }
        }
    });
    Departed::InDoubt(doubt)
}
