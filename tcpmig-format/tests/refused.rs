//! The files that FORMAT.md gives to test a reader with: each is refused at the step that is said of it.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use tcpmig_format::{DecodeError, Image, Limits};

/// The step of "Reading" in FORMAT.md that fails.
fn step(error: &DecodeError) -> u64 {
    match error {
        // What is longer than an envelope is cut off.
        DecodeError::TooShort { needed: 24, .. } | DecodeError::BadMagic => 1,
        DecodeError::UnsupportedVersion { .. } | DecodeError::VersionOrder { .. } => 2,
        DecodeError::TooShort { .. } | DecodeError::TrailingBytes { .. } => 3,
        DecodeError::ChecksumMismatch { .. } => 4,
        DecodeError::Malformed { .. } | DecodeError::TrailingPayload => 5,
        DecodeError::UnknownCritical(_) | DecodeError::MissingCritical(_) => 6,
        DecodeError::TooLong { .. } => 7,
        _ => 8,
    }
}

#[test]
fn each_file_is_refused_at_its_step() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/refused");
    let list = fs::read(folder.join("refused.json")).unwrap();
    let list: serde_json::Value = serde_json::from_slice(&list).unwrap();
    let list = list.as_object().unwrap();
    let mut steps = BTreeSet::new();
    for (name, entry) in list {
        let bytes = fs::read(folder.join(name)).unwrap();
        let error = Image::decode(&bytes, &Limits::default()).unwrap_err();
        let expected = entry["step"].as_u64().unwrap();
        assert_eq!(step(&error), expected, "{name}: {error}");
        assert!(!entry["why"].as_str().unwrap().is_empty());
        steps.insert(expected);
    }
    assert!(steps.into_iter().eq(1..=8), "no file for a step");
    let named = |name: &str| list.contains_key(name) || name == "refused.json";
    for entry in fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(named(&name), "{name} is in no list");
    }
}
