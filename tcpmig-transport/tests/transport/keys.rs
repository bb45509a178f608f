//! Authorities and certificates as files.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use tcpmig_transport::keys::{Authority, KeysError};
use tcpmig_transport::{Authorities, Identity, Trust};

use crate::support::{SOURCE, TARGET, host, in_time, loopback};

#[tokio::test]
async fn a_loaded_authority_issues_for_the_same_trust() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name);
    let created = Authority::create("our cluster").expect("made");
    created.write_to(dir.path()).expect("written");
    let loaded = Authority::load(dir.path()).expect("loaded");
    let issued = loaded.issue(SOURCE).expect("issued");
    assert_eq!(issued.name(), SOURCE);
    issued.write_to(dir.path()).expect("written");

    let identity =
        Identity::from_pem_files(&path("source.example.pem"), &path("source.example.key"));
    let source = tcpmig_transport::Endpoint::bind(
        loopback(),
        &identity.expect("usable"),
        &Trust::anyone_signed_by(Authorities::from_pem_file(&path("ca.pem")).expect("usable")),
        tcpmig_transport::TransportLimits::default(),
    )
    .expect("bound");
    let target = host(&created, TARGET);
    let address = target.local_addr().expect("bound");
    let (connected, accepted) =
        in_time(async { tokio::join!(source.connect(address, TARGET), target.accept()) }).await;
    connected.expect("let in");
    assert_eq!(accepted.expect("open").expect("let in").name(), SOURCE);
}

#[test]
fn keys_are_private_and_nothing_is_overwritten() {
    let dir = tempfile::tempdir().expect("a directory");
    let authority = Authority::create("our cluster").expect("made");
    authority.write_to(dir.path()).expect("written");
    let issued = authority.issue(SOURCE).expect("issued");
    issued.write_to(dir.path()).expect("written");
    for key in ["ca.key", "source.example.key"] {
        let mode = fs::metadata(dir.path().join(key))
            .expect("there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{key}");
    }

    let before = fs::read(dir.path().join("ca.key")).expect("readable");
    let again = Authority::create("another")
        .expect("made")
        .write_to(dir.path());
    assert!(matches!(again, Err(KeysError::Exists { .. })));
    let again = authority
        .issue(SOURCE)
        .expect("issued")
        .write_to(dir.path());
    assert!(matches!(again, Err(KeysError::Exists { .. })));
    assert_eq!(
        fs::read(dir.path().join("ca.key")).expect("readable"),
        before
    );

    // A key that is there without its certificate is not overwritten either.
    fs::remove_file(dir.path().join("ca.pem")).expect("removed");
    let again = Authority::create("another")
        .expect("made")
        .write_to(dir.path());
    assert!(matches!(again, Err(KeysError::Exists { .. })));
    assert_eq!(
        fs::read(dir.path().join("ca.key")).expect("readable"),
        before
    );
}

#[test]
fn names_that_would_leave_the_directory_are_refused() {
    let authority = Authority::create("our cluster").expect("made");
    for name in ["", "../host", "a/b", "two words", "ca", "CA", "*.example"] {
        let issued = authority.issue(name);
        assert!(matches!(issued, Err(KeysError::Name { .. })), "{name:?}");
    }
    for name in [String::new(), "x".repeat(65)] {
        let made = Authority::create(&name);
        assert!(matches!(made, Err(KeysError::AuthorityName { .. })));
    }
}

#[test]
fn a_foreign_key_is_no_authority() {
    let dir = tempfile::tempdir().expect("a directory");
    assert!(matches!(
        Authority::load(dir.path()),
        Err(KeysError::File { call: "read", .. })
    ));
    let authority = Authority::create("our cluster").expect("made");
    authority.write_to(dir.path()).expect("written");
    let other = authority.issue(SOURCE).expect("issued").key_pem;
    fs::write(dir.path().join("ca.key"), other).expect("written");
    match Authority::load(dir.path()) {
        Err(KeysError::NotAnAuthority { path, reason }) => {
            assert!(path.ends_with("ca.key"));
            assert!(reason.contains("not the key"));
        }
        other => panic!("{other:?}"),
    }
}
