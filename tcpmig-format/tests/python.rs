//! A reader in another language (`tests/python/read_image.py`), written from FORMAT.md with the standard package for
//! `MessagePack`, reads the files of every version and refuses what is none.
//!
//! It runs with Debian's Python, whose packages another one does not see.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use common::wire;
use rmpv::Value;
use serde_json::{Map, Value as Json, json};
use tcpmig_format::{Envelope, FORMAT_VERSION};

fn run(file: &Path) -> Output {
    let reader = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/read_image.py");
    Command::new("/usr/bin/python3")
        .arg(reader)
        .arg(file)
        .output()
        .expect("Debian's python3 is installed")
}

/// The payload as JSON, read by a third decoder of `MessagePack`.
fn as_json(value: &Value) -> Json {
    match value {
        Value::Boolean(on) => json!(on),
        Value::Integer(number) => match number.as_u64() {
            Some(number) => json!(number),
            None => json!(number.as_i64().unwrap()),
        },
        Value::String(text) => json!(text.as_str().unwrap()),
        Value::Binary(octets) => {
            json!(
                octets
                    .iter()
                    .map(|octet| format!("{octet:02x}"))
                    .collect::<String>()
            )
        }
        Value::Array(values) => values.iter().map(as_json).collect(),
        Value::Map(fields) => {
            let fields = fields.iter();
            fields
                .map(|(key, value)| (key.as_str().unwrap().to_owned(), as_json(value)))
                .collect()
        }
        other => panic!("{other}"),
    }
}

/// Takes the absent fields out; how many there were.
fn without_absent(fields: &mut Map<String, Json>) -> usize {
    let before = fields.len();
    fields.retain(|_, value| !value.is_null());
    let here = before - fields.len();
    let inner = fields.values_mut().filter_map(Json::as_object_mut);
    here + inner.map(without_absent).sum::<usize>()
}

#[test]
fn the_python_reader_reads_the_files_of_every_version() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut count = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let output = run(&path);
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {complaint}", path.display());
        let mut read: Json = serde_json::from_slice(&output.stdout).unwrap();
        let absent = without_absent(read.as_object_mut().unwrap());
        assert!(
            absent > 0,
            "it knows no field that {} lacks",
            path.display()
        );
        let octets = fs::read(&path).unwrap();
        let payload = rmpv::decode::read_value(&mut &octets[Envelope::LEN..]).unwrap();
        assert_eq!(read, as_json(&payload), "{}", path.display());
        count += 1;
    }
    assert!(count >= 14, "{count} files");
}

#[test]
fn the_python_reader_refuses_what_is_no_image() {
    let good = common::full().encode().unwrap().to_vec();
    let damaged = |at: usize| {
        let mut octets = good.clone();
        octets[at] ^= 1;
        octets
    };
    let newer = FORMAT_VERSION + 1;
    let app = wire::layer("app", &wire::app());
    let twice = [wire::app(), wire::app()].concat();
    let deep = [vec![0x91; 31], wire::nil()].concat();
    let cases: [(&str, Vec<u8>); 11] = [
        ("not an image", b"GIF89a".to_vec()),
        ("cut off", good[..good.len() - 1].to_vec()),
        ("octets after", [&good[..], b"x"].concat()),
        ("damaged", damaged(100)),
        ("needs a reader", wire::sealed_as(newer, newer, &app)),
        (
            "'new' is not known",
            wire::sealed(&wire::map(&[wire::critical(&["new"])])),
        ),
        (
            "'ip' is missing",
            wire::sealed(&wire::map(&[wire::critical(&["ip"])])),
        ),
        (
            "app.kind: not text",
            wire::sealed(&wire::layer(
                "app",
                &wire::with(wire::app(), "kind", wire::number(1)),
            )),
        ),
        (
            "app.payload is missing",
            wire::sealed(&wire::layer("app", &wire::app()[..2])),
        ),
        ("a key twice", wire::sealed(&wire::layer("app", &twice))),
        (
            "too deep",
            wire::sealed(&wire::map(&[wire::critical(&[]), ("later", deep)])),
        ),
    ];
    let folder = tempfile::tempdir().unwrap();
    for (why, octets) in cases {
        let file = folder.path().join("image");
        fs::write(&file, octets).unwrap();
        let output = run(&file);
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{why}: {complaint}");
        assert!(complaint.contains(why), "{why}: {complaint}");
    }
    // A later image that an earlier reader can read.
    let file = folder.path().join("newer");
    let fields = [
        wire::critical(&["app"]),
        ("later", wire::text("x")),
        ("app", wire::map(&wire::app())),
    ];
    fs::write(&file, wire::sealed_as(newer, 1, &wire::map(&fields))).unwrap();
    assert!(run(&file).status.success());
}
