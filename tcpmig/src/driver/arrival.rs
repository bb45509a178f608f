//! A connection that comes to this host: what is offered, on which terms it is taken, and what the application gets.

use std::any::Any;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;

use tcpmig_format::{FourTuple, Layer, LayerReader, SecretBytes};

use super::Options;
use super::policy::Policy;
use crate::handover::{HandoverId, Refusal};
use crate::options::NotSet;

/// A connection that moved to this host.
#[derive(Debug)]
#[non_exhaustive]
pub struct Arrived {
    /// The handover by which it came; both hosts name it in what they log.
    pub id: HandoverId,
    /// Its socket.
    pub socket: OwnedFd,
    /// Its addresses and ports.
    pub flow: FourTuple,
    /// What has still to be written before anything else, which is nothing as a rule: see
    /// [`Restored::unwritten`](crate::restore::Restored::unwritten).
    pub unwritten: SecretBytes,
    /// What runs on it, from the bottom up: each is the application's to consume.
    pub layers: Vec<Layer>,
    /// What the application made ready for it: the result of [`Acceptor::accept_async`](super::Acceptor::accept_async).
    pub ready: Option<Ready>,
    /// Those of [`Restored::not_set`](crate::restore::Restored::not_set).
    pub not_set: Vec<NotSet>,
    /// The name of the host that it comes from.
    pub from: String,
}

/// What an application made ready for a connection that it agreed to take.
pub type Ready = Box<dyn Any + Send>;

/// A connection that a host offers, before anything of it is built.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Offered<'a> {
    /// Its addresses and ports, seen from this host: the local end would live here.
    pub flow: FourTuple,
    /// The name of the host that offers it, from its certificate.
    pub from: &'a str,
    /// What runs on it, from the bottom up.
    pub layers: &'a [Layer],
}

impl<'a> Offered<'a> {
    /// The layers, to be consumed from the bottom up: one that is left when it
    /// [finishes](LayerReader::finish) is to be refused.
    pub fn read_layers(&self) -> LayerReader<'a> {
        LayerReader::new(self.layers)
    }
}

/// What [`Offered`] tells, for who takes time to decide.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Offer {
    /// Like [`Offered::flow`].
    pub flow: FourTuple,
    /// Like [`Offered::from`].
    pub from: Arc<str>,
    /// Like [`Offered::layers`].
    pub layers: Vec<Layer>,
}

/// On which terms connections are taken in.
pub(super) struct Terms {
    pub(super) options: Options,
    pub(super) policy: Policy,
    pub(super) accepts: Option<Box<Accepts>>,
    pub(super) accepts_async: Option<Box<AcceptsAsync>>,
}

/// Decides on what is offered.
pub(super) type Accepts = dyn Fn(&Offered<'_>) -> Result<(), Refusal> + Send + Sync;

/// Decides on what is offered, and takes its time.
pub(super) type AcceptsAsync = dyn Fn(Offer) -> Deciding + Send + Sync;

pub(super) type Deciding = Pin<Box<dyn Future<Output = Result<Ready, Refusal>> + Send>>;
