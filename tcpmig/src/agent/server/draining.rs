//! A service, or all of them, are to be empty.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tcpmig_sys::info::State;
use tcpmig_sys::sockets;
use tokio::time::sleep;

use super::Shared;
use super::registry::{Client, Registration};
use crate::agent::wire::ToClient;

/// How often it is looked how many are left.
const LOOKED: Duration = Duration::from_millis(500);

impl Shared {
    /// Tells the servers of a service, or all, and then tells the client how far they are, until nothing is left or the client is gone.
    pub(super) async fn drain(
        self: Arc<Self>,
        client: Arc<Client>,
        id: u64,
        service: Option<String>,
        to: Vec<String>,
    ) {
        let failed = |code: &str, reason: String| {
            let code = code.to_owned();
            client.send(ToClient::Failed { id, code, reason }, None);
        };
        if !self.config().is_admin(client.user) {
            return failed(
                "denied",
                "this user is not an admin of the agent".to_owned(),
            );
        }
        if let Some(unknown) = to.iter().find(|host| self.destination(host).is_none()) {
            return failed("unknown", format!("no host {unknown:?}"));
        }
        if to.is_empty() {
            return failed("invalid", "no host is named".to_owned());
        }
        let is_meant = |one: &Arc<Registration>| {
            service
                .as_ref()
                .is_none_or(|service| **service == *one.service)
        };
        let drained: Vec<_> = self.registry.all().into_iter().filter(is_meant).collect();
        if drained.is_empty() {
            let what = service.map_or("no service".to_owned(), |service| {
                format!("no service {service:?}")
            });
            return failed("unknown", format!("{what} is registered"));
        }
        // Before anybody is told, who may be quick.
        let services: HashSet<_> = drained.iter().map(|one| one.service.clone()).collect();
        let before = self.moves_of(&services);
        for one in &drained {
            one.drain();
            let drain = ToClient::Drain {
                id: self.drains.begin(one),
                service: one.service.to_string(),
                to: to.clone(),
            };
            one.client.send(drain, None);
        }
        let since = || {
            let (moved, kept) = self.moves_of(&services);
            (moved - before.0, kept - before.1)
        };
        report(&client, id, &drained, since).await;
    }

    /// How many connections of these services have moved, and how many were kept.
    fn moves_of(&self, services: &HashSet<Arc<str>>) -> (u64, u64) {
        let count = |outcome| -> u64 {
            let moves = services.iter().map(|one| self.metrics.moves(one, outcome));
            moves.sum()
        };
        (count("moved"), count("kept"))
    }
}

/// Says how a drain goes until it is over, or nobody listens. `since` tells how many have moved, and how many were kept.
async fn report(
    client: &Client,
    id: u64,
    drained: &[Arc<Registration>],
    since: impl Fn() -> (u64, u64),
) {
    let mut said = None;
    loop {
        // Who says that nothing is left has been told of the last move, which is counted by then.
        let is_through =
            |one: &Arc<Registration>| one.client.is_gone() || one.said_left() == Some(0);
        let through = drained.iter().all(is_through);
        let left = left_of(drained).await;
        let (moved, kept) = since();
        let now = (moved, kept, left);
        if said != Some(now) {
            said = Some(now);
            let progress = ToClient::Progress {
                id,
                moved,
                kept,
                left,
            };
            client.send(progress, None);
        }
        if left == 0 && through {
            return client.send(ToClient::Done { id }, None);
        }
        if client.is_gone() {
            return;
        }
        sleep(LOOKED).await;
    }
}

/// How many connections these have. Not from what they say: a server that is stuck says nothing.
async fn left_of(registrations: &[Arc<Registration>]) -> u64 {
    let registrations = registrations.to_vec();
    // Thousands of sockets take a moment.
    let counting = tokio::task::spawn_blocking(move || {
        let live: Vec<_> = registrations
            .iter()
            .filter(|one| !one.client.is_gone())
            .collect();
        count(|local| live.iter().any(|one| one.has(local)))
    });
    counting.await.unwrap_or_default()
}

/// How many connections that a process has are on these addresses.
pub(super) fn count(is_meant: impl Fn(std::net::SocketAddr) -> bool) -> u64 {
    let listed = match sockets::list() {
        Ok(listed) => listed,
        Err(error) => {
            tracing::warn!(%error, "connections cannot be counted");
            return 0;
        }
    };
    let lives = |one: &&sockets::Listed| {
        one.inode != 0 && !matches!(one.state, State::Listen | State::TimeWait | State::Close)
    };
    let found = listed
        .iter()
        .filter(lives)
        .filter(|one| is_meant(one.local));
    found.count() as u64
}
