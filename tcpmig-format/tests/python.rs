//! A reader in another language (`tests/python/read_image.py`), written from FORMAT.md with the standard package for
//! `MessagePack`, reads the files of every version and refuses what is none.
//!
//! It runs with Debian's Python, whose packages another one does not see.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use common::json;
use common::wire;
use serde_json::Value as Json;
use tcpmig_format::{Envelope, FORMAT_VERSION};

fn run(file: &Path) -> Output {
    let reader = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/read_image.py");
    Command::new("/usr/bin/python3")
        .arg(reader)
        .arg(file)
        .output()
        .expect("Debian's python3 is installed")
}

/// Takes the absent fields out; how many there were.
fn without_absent(value: &mut Json) -> usize {
    match value {
        Json::Object(fields) => {
            let before = fields.len();
            fields.retain(|_, value| !value.is_null());
            let here = before - fields.len();
            here + fields.values_mut().map(without_absent).sum::<usize>()
        }
        Json::Array(values) => values.iter_mut().map(without_absent).sum(),
        _ => 0,
    }
}

#[test]
fn the_python_reader_reads_the_files_of_every_version() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut count = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|end| end != "tcpmig") {
            continue;
        }
        let output = run(&path);
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {complaint}", path.display());
        let mut read: Json = serde_json::from_slice(&output.stdout).unwrap();
        let absent = without_absent(&mut read);
        assert!(
            absent > 0,
            "it knows no field that {} lacks",
            path.display()
        );
        let bytes = fs::read(&path).unwrap();
        let payload = rmpv::decode::read_value(&mut &bytes[Envelope::LEN..]).unwrap();
        assert_eq!(read, json::of(&payload), "{}", path.display());
        count += 1;
    }
    assert!(count >= 22, "{count} files");
}

#[test]
fn the_python_reader_refuses_what_is_no_image() {
    let good = common::full().encode().unwrap().to_vec();
    let damaged = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        bytes
    };
    let newer = FORMAT_VERSION + 1;
    let layer = wire::layered(&wire::layer());
    let twice = [wire::layer(), wire::layer()].concat();
    let layers = |all: &[_]| {
        let fields = [
            wire::critical(&[]),
            wire::connection(&[]),
            wire::layers(all),
        ];
        wire::sealed(&wire::map(&fields))
    };
    let named = |name| {
        wire::sealed(&wire::map(&[
            wire::critical(&[name]),
            wire::connection(&[]),
        ]))
    };
    let of = |subject: &[(&str, Vec<u8>)]| {
        let subject = ("subject", wire::map(subject));
        wire::sealed(&wire::map(&[wire::critical(&[]), subject]))
    };
    let connection = || ("connection", wire::map(&[]));
    let listener = (
        "listener",
        wire::map(&[("local", wire::end(&[0; 4])), ("backlog", wire::number(37))]),
    );
    let deep = [vec![0x91; 31], wire::nil()].concat();
    let cases: [(&str, Vec<u8>); 16] = [
        ("not an image", b"GIF89a".to_vec()),
        ("cut off", good[..good.len() - 1].to_vec()),
        ("octets after", [&good[..], b"x"].concat()),
        ("damaged", damaged(100)),
        ("needs a reader", wire::sealed_as(newer, newer, &layer)),
        ("'new' is not known", named("new")),
        // That of an earlier version.
        ("'app' is not known", named("app")),
        ("'ip' is missing", named("ip")),
        ("'layers' is missing", named("layers")),
        (
            "layers[1].kind: not text",
            layers(&[
                wire::layer(),
                wire::with(wire::layer(), "kind", wire::number(1)),
            ]),
        ),
        (
            "layers[0].payload is missing",
            layers(&[wire::layer()[..2].to_vec()]),
        ),
        ("layers: more than 16", layers(&vec![wire::layer(); 17])),
        ("subject: neither", of(&[])),
        ("subject: a listener and", of(&[connection(), listener])),
        ("a key twice", wire::sealed(&wire::layered(&twice))),
        (
            "too deep",
            wire::sealed(&wire::map(&[
                wire::critical(&[]),
                wire::connection(&[]),
                ("later", deep),
            ])),
        ),
    ];
    let folder = tempfile::tempdir().unwrap();
    for (why, bytes) in cases {
        let file = folder.path().join("image");
        fs::write(&file, bytes).unwrap();
        let output = run(&file);
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{why}: {complaint}");
        assert!(complaint.contains(why), "{why}: {complaint}");
    }
    // A later image that an earlier reader can read.
    let file = folder.path().join("newer");
    let fields = [
        wire::critical(&["layers"]),
        ("later", wire::text("x")),
        wire::connection(&[]),
        wire::layers(&[wire::layer()]),
    ];
    fs::write(&file, wire::sealed_as(newer, 3, &wire::map(&fields))).unwrap();
    assert!(run(&file).status.success());
}

/// It does not look at what values mean, which is the last step of FORMAT.md.
#[test]
fn the_python_reader_refuses_the_files_to_be_refused() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/refused");
    let list: Json =
        serde_json::from_slice(&fs::read(folder.join("refused.json")).unwrap()).unwrap();
    let mut count = 0;
    for (name, entry) in list.as_object().unwrap() {
        if entry["step"].as_u64().unwrap() < 8 {
            let output = run(&folder.join(name));
            assert_eq!(output.status.code(), Some(1), "{name}");
            count += 1;
        }
    }
    assert!(count >= 15, "{count} files");
}
