//! Who may connect, and what each side learns when one may not.

use std::time::{Duration, SystemTime};

use tcpmig_transport::keys::Authority;
use tcpmig_transport::{
    Authorities, ConfigError, Endpoint, Identity, TransportError, TransportLimits, Trust,
};

use crate::support::{
    SOURCE, TARGET, authorities, authority, host, identity, in_time, loopback, trust,
};

fn endpoint(identity: &Identity, trust: &Trust) -> Endpoint {
    Endpoint::bind(loopback(), identity, trust, TransportLimits::default()).expect("bound")
}

/// The error on either side when `source` connects to `target` under `name`.
async fn refusal(
    source: &Endpoint,
    target: &Endpoint,
    name: &str,
) -> (TransportError, TransportError) {
    let address = target.local_addr().expect("bound");
    let (connected, accepted) =
        in_time(async { tokio::join!(source.connect(address, name), target.accept()) }).await;
    (
        connected.expect_err("refused"),
        accepted.expect("open").expect_err("refused"),
    )
}

#[tokio::test]
async fn names_are_those_of_the_certificates() {
    let authority = authority();
    let source = host(&authority, SOURCE);
    let target = endpoint(
        &identity(&authority.issue(TARGET).expect("issued")),
        &Trust::only(authorities(&authority), ["other.example", SOURCE]),
    );
    let address = target.local_addr().expect("bound");
    let (connected, accepted) =
        in_time(async { tokio::join!(source.connect(address, TARGET), target.accept()) }).await;
    assert_eq!(connected.expect("let in").name(), TARGET);
    let accepted = accepted.expect("open").expect("let in");
    assert_eq!(accepted.name(), SOURCE);
    assert_eq!(accepted.address(), source.local_addr().expect("bound"));
}

#[tokio::test]
async fn a_host_of_another_authority_is_not_let_in() {
    let (ours, theirs) = (authority(), authority());
    let target = host(&ours, TARGET);
    // It trusts us, but we do not trust it.
    let source = endpoint(
        &identity(&theirs.issue(SOURCE).expect("issued")),
        &trust(&ours),
    );
    let (connecting, accepting) = refusal(&source, &target, TARGET).await;
    assert!(
        matches!(&connecting, TransportError::Rejected { reason, .. } if reason.contains("certificate")),
        "{connecting}"
    );
    assert!(
        matches!(&accepting, TransportError::UntrustedCertificate { reason, .. } if reason.contains("signed by another authority")),
        "{accepting}"
    );
}

#[tokio::test]
async fn a_target_of_another_authority_is_not_believed() {
    let (ours, theirs) = (authority(), authority());
    let source = host(&ours, SOURCE);
    let target = endpoint(
        &identity(&theirs.issue(TARGET).expect("issued")),
        &trust(&ours),
    );
    let (connecting, accepting) = refusal(&source, &target, TARGET).await;
    assert!(
        matches!(&connecting, TransportError::UntrustedCertificate { reason, .. } if reason.contains("signed by another authority")),
        "{connecting}"
    );
    assert!(
        matches!(accepting, TransportError::Rejected { .. }),
        "{accepting}"
    );
}

#[tokio::test]
async fn a_target_of_another_name_is_not_believed() {
    let authority = authority();
    let (source, target) = (host(&authority, SOURCE), host(&authority, "wrong.example"));
    let (connecting, _) = refusal(&source, &target, TARGET).await;
    match connecting {
        TransportError::WrongName {
            expected,
            presented,
            ..
        } => {
            assert_eq!(expected, TARGET);
            assert_eq!(presented, ["wrong.example"]);
        }
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_host_that_names_nobody_lets_nobody_in() {
    let authority = authority();
    let source = host(&authority, SOURCE);
    let target = endpoint(
        &identity(&authority.issue(TARGET).expect("issued")),
        &Trust::only(authorities(&authority), [""; 0]),
    );
    let (_, accepting) = refusal(&source, &target, TARGET).await;
    assert!(
        matches!(&accepting, TransportError::NotAllowed { names, .. } if names[..] == [SOURCE]),
        "{accepting}"
    );
}

#[tokio::test]
async fn a_name_that_is_not_allowed_is_refused_with_the_reason() {
    let authority = authority();
    let source = host(&authority, SOURCE);
    let target = endpoint(
        &identity(&authority.issue(TARGET).expect("issued")),
        &Trust::only(authorities(&authority), ["friend.example"]),
    );
    let (connecting, accepting) = refusal(&source, &target, TARGET).await;
    assert!(
        matches!(&connecting, TransportError::Rejected { reason, .. } if reason.contains(SOURCE) && reason.contains("allowed")),
        "{connecting}"
    );
    assert!(
        matches!(&accepting, TransportError::NotAllowed { names, .. } if names[..] == [SOURCE]),
        "{accepting}"
    );

    // The endpoint goes on.
    let friend = host(&authority, "friend.example");
    let address = target.local_addr().expect("bound");
    let (connected, accepted) =
        in_time(async { tokio::join!(friend.connect(address, TARGET), target.accept()) }).await;
    connected.expect("let in");
    accepted.expect("open").expect("let in");
}

fn expired(authority: &Authority, name: &str) -> Identity {
    let hour = Duration::from_secs(3600);
    let now = SystemTime::now();
    identity(
        &authority
            .issue_for(name, now - 2 * hour, now - hour)
            .expect("issued"),
    )
}

#[tokio::test]
async fn expired_certificates_are_refused_on_either_side() {
    let authority = authority();
    let (source, target) = (host(&authority, SOURCE), host(&authority, TARGET));

    let old_source = endpoint(&expired(&authority, SOURCE), &trust(&authority));
    let (connecting, accepting) = refusal(&old_source, &target, TARGET).await;
    assert!(
        matches!(&connecting, TransportError::Rejected { reason, .. } if reason.contains("xpired")),
        "{connecting}"
    );
    assert!(
        matches!(accepting, TransportError::Expired { .. }),
        "{accepting}"
    );

    let old_target = endpoint(&expired(&authority, TARGET), &trust(&authority));
    let (connecting, _) = refusal(&source, &old_target, TARGET).await;
    assert!(
        matches!(connecting, TransportError::Expired { .. }),
        "{connecting}"
    );
}

#[tokio::test]
async fn names_that_no_certificate_can_carry_are_found_early() {
    let authority = authority();
    let source = host(&authority, SOURCE);
    let address = source.local_addr().expect("bound");
    let connected = source.connect(address, "not a name").await;
    assert!(matches!(connected, Err(TransportError::InvalidName { .. })));

    let issued = authority.issue(TARGET).expect("issued");
    let bound = Endpoint::bind(
        loopback(),
        &identity(&issued),
        &Trust::only(authorities(&authority), ["not a name"]),
        TransportLimits::default(),
    );
    assert!(matches!(bound, Err(TransportError::InvalidName { .. })));
}

#[test]
fn unusable_pem_names_the_file_and_what_is_missing() {
    let dir = tempfile::tempdir().expect("a directory");
    let (authority, path) = (authority(), |name: &str| dir.path().join(name));
    authority.write_to(dir.path()).expect("written");
    for name in [SOURCE, TARGET] {
        let issued = authority.issue(name).expect("issued");
        issued.write_to(dir.path()).expect("written");
    }
    let (cert, key) = (path("source.example.pem"), path("source.example.key"));
    Identity::from_pem_files(&cert, &key).expect("usable");
    Authorities::from_pem_file(&path("ca.pem")).expect("usable");

    let swapped = Identity::from_pem_files(&key, &cert).expect_err("no certificate");
    assert!(matches!(
        &swapped,
        ConfigError::Missing {
            what: "certificate",
            ..
        }
    ));
    assert!(swapped.to_string().contains("source.example.key"));
    let other = Identity::from_pem_files(&cert, &path("target.example.key"));
    assert!(matches!(other, Err(ConfigError::KeyMismatch { .. })));
    let absent = Authorities::from_pem_file(&path("absent.pem"));
    assert!(matches!(absent, Err(ConfigError::Read { .. })));
    let damaged = b"-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n";
    assert!(matches!(
        Authorities::from_pem(damaged),
        Err(ConfigError::Pem { .. })
    ));
    let hollow = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    assert!(matches!(
        Authorities::from_pem(hollow),
        Err(ConfigError::Certificate { .. })
    ));
}
