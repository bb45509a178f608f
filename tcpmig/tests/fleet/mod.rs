//! A web service over TLS whose connections move while clients use all of them: its servers, and its clients.

pub(crate) mod client;
pub(crate) mod server;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tcpmig_transport::keys::Authority;
use tokio::sync::mpsc;

/// Where clients reach it.
pub(crate) const SERVICE: &str = "198.18.0.80:7000";
/// What the certificate is for.
const NAME: &str = "service.example";

/// The keys of the service.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Keys {
    certificate: String,
    key: String,
    authority: String,
}

impl Keys {
    pub(crate) fn new() -> Self {
        let authority = Authority::create("fleet").unwrap();
        let issued = authority.issue(NAME).unwrap();
        Self {
            certificate: issued.cert_pem.clone(),
            key: issued.key_pem.clone(),
            authority: authority.ca_pem().to_owned(),
        }
    }

    /// Who has signed them, as PEM.
    pub(crate) fn authority(&self) -> &str {
        &self.authority
    }
}

/// What a part of it is ordered to do, line by line, and what it says.
pub(crate) struct Orders {
    pub(crate) heard: mpsc::UnboundedReceiver<String>,
    pub(crate) say: Say,
}

pub(crate) type Say = Arc<dyn Fn(&str) + Send + Sync>;

/// Middle, 99th of 100, and the largest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Spread {
    pub(crate) p50: u64,
    pub(crate) p99: u64,
    pub(crate) max: u64,
}

impl Spread {
    pub(crate) fn of(mut numbers: Vec<u64>) -> Self {
        numbers.sort_unstable();
        let at = |percent: usize| {
            let last = numbers.len().saturating_sub(1);
            numbers.get(last * percent / 100).copied().unwrap_or(0)
        };
        Self {
            p50: at(50),
            p99: at(99),
            max: at(100),
        }
    }
}
