//! Certificates and trust that change while an endpoint works.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tcpmig_transport::keys::Authority;
use tcpmig_transport::{Endpoint, Exchange, Peer, TransportError, TransportLimits, Trust};

use crate::support::{
    SOURCE, TARGET, authorities, authority, host, identity, in_time, loopback, trust,
};

/// Both ends of a connection of `source` to `target`.
async fn connect(source: &Endpoint, target: &Endpoint) -> (Peer, Peer) {
    let address = target.local_addr().expect("bound");
    let both = async { tokio::join!(source.connect(address, TARGET), target.accept()) };
    let (connected, accepted) = in_time(both).await;
    (
        connected.expect("let in"),
        accepted.expect("open").expect("let in"),
    )
}

/// Both ends of an exchange by which a frame has gone each way.
async fn exchange(from: &Peer, to: &Peer) -> (Exchange, Exchange) {
    let mut here = from.open().await.expect("opened");
    here.send(Bytes::from_static(b"there")).await.expect("sent");
    let mut there = in_time(to.accept()).await.expect("open").expect("came");
    both_ways(&mut there, &mut here, 1).await;
    (here, there)
}

async fn both_ways(there: &mut Exchange, here: &mut Exchange, frames: usize) {
    for _ in 0..frames {
        let frame = in_time(there.recv())
            .await
            .expect("received")
            .expect("a frame");
        there.send(frame).await.expect("sent");
        in_time(here.recv())
            .await
            .expect("received")
            .expect("a frame");
    }
}

/// An endpoint that lets in these hosts.
fn target(authority: &Authority, names: &[&str]) -> Endpoint {
    Endpoint::bind(
        loopback(),
        &identity(&authority.issue(TARGET).expect("issued")),
        &Trust::only(authorities(authority), names.iter().copied()),
        TransportLimits::default(),
    )
    .expect("bound")
}

#[tokio::test]
async fn a_name_that_is_no_longer_trusted_loses_its_link_and_others_keep_theirs() {
    let authority = authority();
    let target = target(&authority, &[SOURCE, "other.example"]);
    let (source, other) = (host(&authority, SOURCE), host(&authority, "other.example"));
    let (to_target, from_source) = connect(&source, &target).await;
    let (mut here, _there) = exchange(&to_target, &from_source).await;
    let (other_to_target, from_other) = connect(&other, &target).await;
    let (mut other_here, mut other_there) = exchange(&other_to_target, &from_other).await;

    let renewed = identity(&authority.issue(TARGET).expect("issued"));
    let only_other = Trust::only(authorities(&authority), ["other.example"]);
    target.reload(&renewed, &only_other).expect("usable");

    let ended = in_time(here.recv()).await.expect_err("closed");
    assert!(
        matches!(&ended, TransportError::Rejected { reason, .. } if reason.contains("no longer trusted")),
        "{ended}"
    );
    in_time(from_source.closed()).await;
    let address = target.local_addr().expect("bound");
    let again = async { tokio::join!(source.connect(address, TARGET), target.accept()) };
    let (connected, accepted) = in_time(again).await;
    assert!(
        matches!(connected, Err(TransportError::Rejected { .. })),
        "{connected:?}"
    );
    assert!(
        matches!(accepted, Some(Err(TransportError::NotAllowed { .. }))),
        "{accepted:?}"
    );

    other_here
        .send(Bytes::from_static(b"still"))
        .await
        .expect("sent");
    both_ways(&mut other_there, &mut other_here, 1).await;
}

#[tokio::test]
async fn a_renewed_certificate_and_another_authority_are_used_at_once() {
    let (old, new) = (authority(), authority());
    let source = host(&old, SOURCE);
    let target = target(&old, &[SOURCE]);
    let (to_target, from_source) = connect(&source, &target).await;
    let (mut here, mut there) = exchange(&to_target, &from_source).await;

    // Both believe both authorities while the hosts get certificates of the new one.
    let both = [old.ca_pem(), new.ca_pem()].concat();
    let both = tcpmig_transport::Authorities::from_pem(both.as_bytes()).expect("usable");
    let of_new = |name| identity(&new.issue(name).expect("issued"));
    let both = Trust::anyone_signed_by(both);
    source.reload(&of_new(SOURCE), &both).expect("usable");
    target.reload(&of_new(TARGET), &both).expect("usable");
    // What is open is as good as before.
    here.send(Bytes::from_static(b"still")).await.expect("sent");
    both_ways(&mut there, &mut here, 1).await;

    // Then the old one is given up.
    source
        .reload(&of_new(SOURCE), &trust(&new))
        .expect("usable");
    target
        .reload(&of_new(TARGET), &trust(&new))
        .expect("usable");
    in_time(to_target.closed()).await;
    in_time(from_source.closed()).await;
    let (to_target, from_source) = connect(&source, &target).await;
    exchange(&to_target, &from_source).await;
    let stranger = host(&old, SOURCE);
    let address = target.local_addr().expect("bound");
    let refused = async { tokio::join!(stranger.connect(address, TARGET), target.accept()) };
    let (connected, _) = in_time(refused).await;
    assert!(
        matches!(connected, Err(TransportError::UntrustedCertificate { .. })),
        "{connected:?}"
    );
}

#[tokio::test]
async fn a_warm_connection_is_not_what_connect_gives_after_a_renewal() {
    let authority = authority();
    let (source, target) = (host(&authority, SOURCE), host(&authority, TARGET));
    let (_to_target, from_source) = connect(&source, &target).await;
    let renewed = identity(&authority.issue(SOURCE).expect("issued"));
    source.reload(&renewed, &trust(&authority)).expect("usable");
    let (again, _) = connect(&source, &target).await;
    assert!(!again.is_closed() && !from_source.is_closed());
}

#[tokio::test]
async fn a_reload_that_fails_changes_nothing() {
    let authority = authority();
    let (source, target) = (host(&authority, SOURCE), host(&authority, TARGET));
    let (to_target, from_source) = connect(&source, &target).await;
    let renewed = identity(&authority.issue(TARGET).expect("issued"));
    let misspelt = Trust::only(authorities(&authority), ["not a name"]);
    let error = target.reload(&renewed, &misspelt).expect_err("refused");
    assert!(
        matches!(error, TransportError::InvalidName { .. }),
        "{error}"
    );
    exchange(&to_target, &from_source).await;
}

#[tokio::test]
async fn dates_are_told_when_a_certificate_has_expired_and_a_link_that_rests_on_one_ends() {
    let authority = authority();
    let target = host(&authority, TARGET);
    let (now, soon) = (SystemTime::now(), Duration::from_secs(3));
    let short = authority
        .issue_for(SOURCE, now - soon, now + soon)
        .expect("issued");
    let source = Endpoint::bind(
        loopback(),
        &identity(&short),
        &trust(&authority),
        TransportLimits::default(),
    )
    .expect("bound");
    let (to_target, from_source) = connect(&source, &target).await;
    exchange(&to_target, &from_source).await;
    // Certificates are valid to the second.
    tokio::time::sleep(soon + Duration::from_secs(2)).await;
    let same = identity(&authority.issue(TARGET).expect("issued"));
    target.reload(&same, &trust(&authority)).expect("usable");
    let ended = in_time(to_target.closed()).await.to_string();
    assert!(
        ended.contains("not valid after") && ended.contains(" UTC"),
        "{ended}"
    );

    let address = target.local_addr().expect("bound");
    let refused = async { tokio::join!(source.connect(address, TARGET), target.accept()) };
    let (connecting, accepting) = in_time(refused).await;
    let year = (now + soon)
        .duration_since(SystemTime::UNIX_EPOCH)
        .expect("after 1970")
        .as_secs()
        / 31_556_952
        + 1970;
    for said in [
        connecting.expect_err("refused").to_string(),
        accepting.expect("open").expect_err("refused").to_string(),
    ] {
        for part in ["expired", &format!("not valid after {year}-"), " UTC"] {
            assert!(said.contains(part), "no {part:?} in {said:?}");
        }
    }
}
