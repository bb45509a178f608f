//! Orders to give everything away: as a server gets them, and as an admin gives them.

use tokio::sync::mpsc;

use super::AgentError;
use super::actor::Command;

/// An order to give away all connections of a service.
#[derive(Debug)]
pub struct Drain {
    pub(super) id: u64,
    pub(super) service: String,
    pub(super) to: Vec<String>,
    pub(super) commands: mpsc::WeakUnboundedSender<Command>,
}

impl Drain {
    /// The service.
    #[must_use]
    pub fn service(&self) -> &str {
        &self.service
    }

    /// The hosts to which connections go, in turn.
    #[must_use]
    pub fn hosts(&self) -> &[String] {
        &self.to
    }

    /// Tells the agent how many connections are left: when the server is through, and again when there is none.
    pub fn left(&self, left: u64) {
        if let Some(commands) = self.commands.upgrade() {
            let id = self.id;
            // It is told by the end of the link otherwise.
            let _ = commands.send(Command::Drained { id, left });
        }
    }
}

/// How far a drain has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Progress {
    /// How many connections moved since it began.
    pub moved: u64,
    /// How many attempts left a connection where it was.
    pub kept: u64,
    /// How many connections are left.
    pub left: u64,
}

/// What an admin hears of a drain.
#[derive(Debug)]
pub(super) enum Heard {
    Progress(Progress),
    Done,
    Failed(AgentError),
}

/// A drain that goes on whether or not anybody looks at it.
#[derive(Debug)]
pub struct Draining {
    first: Option<Heard>,
    heard: mpsc::UnboundedReceiver<Heard>,
}

impl Draining {
    pub(super) async fn begun(
        mut heard: mpsc::UnboundedReceiver<Heard>,
    ) -> Result<Self, AgentError> {
        match heard.recv().await {
            Some(Heard::Failed(error)) => Err(error),
            Some(first) => Ok(Self {
                first: Some(first),
                heard,
            }),
            None => Err(AgentError::Gone),
        }
    }

    /// How far it has come, when that changes; `None` when nothing is left.
    ///
    /// # Errors
    ///
    /// [`AgentError`]; what the servers were told they do nevertheless.
    pub async fn next(&mut self) -> Result<Option<Progress>, AgentError> {
        let next = match self.first.take() {
            Some(first) => Some(first),
            None => self.heard.recv().await,
        };
        match next {
            Some(Heard::Progress(progress)) => Ok(Some(progress)),
            Some(Heard::Done) => Ok(None),
            Some(Heard::Failed(error)) => Err(error),
            None => Err(AgentError::Gone),
        }
    }
}
