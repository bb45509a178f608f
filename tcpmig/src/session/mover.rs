//! The driver as a way to other hosts.

use super::{Arrival, Departed, Parts, Way};
use crate::driver::{Arrived, Destination, Ending, Mover, Reason, Report};

/// To another host.
///
/// If the future of [`Way::depart`] or of a [`Doubt`](super::Doubt) is dropped, the move goes on and its outcome is among
/// [`Mover::unclaimed`].
impl Way for Mover {
    type Destination = Destination;
    type Report = Report;
    type Cause = Reason;

    async fn depart(&self, parts: Parts, to: &Destination) -> Departed<Report, Reason> {
        let outcome = self.move_out(parts.socket, parts.layers, to).await;
        departed(outcome.ending, outcome.report)
    }
}

fn departed(ending: Ending, report: Report) -> Departed<Report, Reason> {
    match ending {
        Ending::Moved => Departed::Moved(report),
        Ending::Kept {
            socket,
            layers,
            reason,
        } => Departed::Kept {
            parts: Parts { socket, layers },
            cause: reason,
        },
        Ending::Lost(reason) => Departed::Lost(reason),
        Ending::InDoubt(doubt) => {
            let asking = async move { departed(doubt.ask().await.ending, report) };
            Departed::InDoubt(Box::pin(asking))
        }
    }
}

impl From<Arrived> for Arrival {
    fn from(arrived: Arrived) -> Self {
        Self {
            socket: arrived.socket,
            flow: arrived.flow,
            unwritten: arrived.unwritten,
            layers: arrived.layers,
            ready: arrived.ready,
            _waits: None,
        }
    }
}
