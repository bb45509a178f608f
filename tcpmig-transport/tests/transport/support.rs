//! Hosts for the tests.

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use tcpmig_transport::keys::{Authority, Issued};
use tcpmig_transport::{Authorities, Endpoint, Exchange, Identity, Peer, TransportLimits, Trust};

pub(crate) const SOURCE: &str = "source.example";
pub(crate) const TARGET: &str = "target.example";

/// A test that hangs fails.
pub(crate) async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future)
        .await
        .expect("done in time")
}

pub(crate) fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

pub(crate) fn authority() -> Authority {
    Authority::create("tests").expect("an authority")
}

pub(crate) fn identity(issued: &Issued) -> Identity {
    Identity::from_pem(issued.cert_pem.as_bytes(), issued.key_pem.as_bytes()).expect("usable")
}

pub(crate) fn authorities(authority: &Authority) -> Authorities {
    Authorities::from_pem(authority.ca_pem().as_bytes()).expect("usable")
}

pub(crate) fn trust(authority: &Authority) -> Trust {
    Trust::anyone_signed_by(authorities(authority))
}

/// A host of `authority` that lets every host of it in.
pub(crate) fn host(authority: &Authority, name: &str) -> Endpoint {
    host_at(loopback(), authority, name, TransportLimits::default())
}

pub(crate) fn host_at(
    addr: SocketAddr,
    authority: &Authority,
    name: &str,
    limits: TransportLimits,
) -> Endpoint {
    let issued = authority.issue(name).expect("issued");
    Endpoint::bind(addr, &identity(&issued), &trust(authority), limits).expect("bound")
}

/// Two hosts that trust each other, and their connection seen from either.
pub(crate) struct Hosts {
    pub(crate) source: Endpoint,
    pub(crate) target: Endpoint,
    pub(crate) to_target: Peer,
    pub(crate) to_source: Peer,
}

pub(crate) async fn hosts(addr: SocketAddr, limits: TransportLimits) -> Hosts {
    let authority = authority();
    let source = host_at(addr, &authority, SOURCE, limits.clone());
    let target = host_at(addr, &authority, TARGET, limits);
    let address = target.local_addr().expect("bound");
    let (to_target, to_source) = tokio::join!(source.connect(address, TARGET), target.accept());
    Hosts {
        source,
        target,
        to_target: to_target.expect("connected"),
        to_source: to_source.expect("open").expect("let in"),
    }
}

impl Hosts {
    /// An exchange between the two, by which the byte 0 has gone each way.
    pub(crate) async fn exchange(&self) -> (Exchange, Exchange) {
        let mut here = self.to_target.open().await.expect("opened");
        here.send(Bytes::from_static(&[0])).await.expect("sent");
        let mut there = self.to_source.accept().await.expect("open").expect("came");
        let first = there.recv().await.expect("received").expect("a frame");
        there.send(first).await.expect("sent");
        here.recv().await.expect("received").expect("a frame");
        (here, there)
    }
}

/// Bytes that differ from place to place.
pub(crate) fn bytes(len: usize) -> Bytes {
    (0..len)
        .map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8)
        .collect::<Vec<_>>()
        .into()
}
