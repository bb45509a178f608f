//! What a source does before a connection stands still.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tcpmig_sys::sockopt;
use tokio::time::sleep;
use tracing::Span;

use super::{Held, Outgoing};
use crate::capture::Plan;
use crate::driver::outcome::Reason;
use crate::driver::permits::{Limits, Permit};
use crate::steer::{External, Steer};

impl Outgoing {
    /// Everything that takes time, while the connection still lives.
    pub(super) async fn prepare<'l>(
        &mut self,
        limits: Option<&'l Limits>,
    ) -> std::result::Result<Option<Permit<'l>>, Reason> {
        if let Some(reason) = self.hindered.take() {
            return Err(reason);
        }
        limits.map_or(Ok(()), Limits::check)?;
        if self.mover.worker.is_elsewhere() {
            self.aside(Self::look).await;
        } else {
            self.look();
        }
        if let Some(reason) = self.hindered.take() {
            return Err(reason);
        }
        let Held::Live(_, Some(plan)) = &self.held else {
            return Err(Reason::Cancelled);
        };
        let (flow, has_ended) = (plan.flow(), plan.has_ended());
        self.mover.start();
        Span::current().record("flow", tracing::field::display(flow));
        // What has ended has no packets, and another connection may live with its addresses and ports.
        let steer: Arc<dyn Steer> = if has_ended {
            Arc::new(External)
        } else {
            self.to.steer.clone()
        };
        let locker = self.mover.locker.clone();
        let waits = self.to.steer.waits() || locker.features().waits;
        let planning = move || steer.plan(flow, &*locker);
        self.steering = Some(self.mover.worker.call(waits, planning).await?);
        self.exchange = Some(self.mover.open(&self.to).await?);
        self.settle_queue().await;
        match limits {
            Some(limits) => Ok(Some(limits.permit(self.queued()).await?)),
            None => Ok(None),
        }
    }

    /// Reads what does not change, or why it cannot leave.
    fn look(&mut self) {
        let Held::Live(socket, known) = &mut self.held else {
            return;
        };
        match Plan::read(socket.as_fd()) {
            Ok(plan) => {
                self.flow = Some(plan.flow());
                *known = Some(plan);
            }
            Err(error) => self.hindered = Some(error.into()),
        }
    }

    /// Lets the peer fetch what waits in the send queue.
    async fn settle_queue(&mut self) {
        let begin = Instant::now();
        let (little, settle) = {
            let options = &self.mover.options;
            (options.settled_below, options.settle)
        };
        // A socket that cannot say will fail where the error can be told.
        let waiting = |held: &Held| match held {
            Held::Live(socket, _) => sockopt::send_queue_len(socket.as_fd()).unwrap_or(0),
            _ => 0,
        };
        while begin.elapsed() < settle && waiting(&self.held) > little {
            sleep(Duration::from_millis(1)).await;
        }
        self.report.settle = begin.elapsed();
    }

    /// Bytes in the queues; a socket that cannot say will fail where the error can be told.
    pub(super) fn queued(&self) -> u32 {
        let Held::Live(socket, _) = &self.held else {
            return 0;
        };
        let waiting = sockopt::send_queue_len(socket.as_fd()).unwrap_or(0);
        waiting.saturating_add(sockopt::receive_queue_len(socket.as_fd()).unwrap_or(0))
    }
}
