//! FORMAT.md against the files of every version: each field that is written is described there with its type and its
//! version, in the order of the page, and each field that is described is in a file. The JSON beside the files is theirs.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

#[path = "common/json.rs"]
mod json;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use rmpv::Value;
use tcpmig_format::{Envelope, FORMAT_VERSION};

#[derive(Debug)]
struct Field {
    name: String,
    kind: String,
    required: bool,
    since: u16,
}

/// The structure that an image of versions 1 and 2 is.
const BEFORE_3: &str = "The image before version 3";

/// The structure that is in its place since version 3.
fn current(name: &str) -> &str {
    match name {
        "app" => "layers",
        "listen" => "listener",
        BEFORE_3 => "The image",
        other => other,
    }
}

/// The fields of each structure, in the order of FORMAT.md.
fn described() -> BTreeMap<String, Vec<Field>> {
    let mut structures: BTreeMap<String, Vec<Field>> = BTreeMap::new();
    let (mut names, mut columns) = (Vec::new(), Vec::new());
    for line in include_str!("../FORMAT.md").lines() {
        if let Some(heading) = line.strip_prefix("### ") {
            names = heading
                .split(" and ")
                .map(|name| name.replace('`', ""))
                .collect();
        } else if line.starts_with("| Field |") {
            columns = cells(line);
        } else if line.is_empty() {
            columns.clear();
        } else if !columns.is_empty() && !line.starts_with("|---") {
            let row = cells(line);
            assert_eq!(row.len(), columns.len(), "{line}");
            let get = |column: &str| {
                let at = columns.iter().position(|name| name == column)?;
                Some(row[at].clone())
            };
            for name in &names {
                structures.entry(name.clone()).or_default().push(Field {
                    name: get("Field").unwrap().replace('`', ""),
                    kind: get("Type").unwrap(),
                    required: get("Required").is_some_and(|required| required == "yes"),
                    since: get("Since").unwrap().parse().unwrap(),
                });
            }
        }
    }
    structures
}

fn cells(row: &str) -> Vec<String> {
    let row = row.strip_prefix('|').unwrap().strip_suffix('|').unwrap();
    row.split('|').map(|cell| cell.trim().to_owned()).collect()
}

fn files() -> Vec<(u16, PathBuf, Value)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let files = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let images = files.filter(|path| path.extension().is_some_and(|end| end == "tcpmig"));
    images
        .map(|path| {
            let image = fs::read(&path).unwrap();
            let version = Envelope::peek(&image).unwrap().version;
            let mut payload = &image[Envelope::LEN..];
            let value = rmpv::decode::read_value(&mut payload).unwrap();
            (version, path, value)
        })
        .collect()
}

fn has_type(value: &Value, kind: &str) -> bool {
    let below = |bits: u32| {
        value
            .as_u64()
            .is_some_and(|v| v.checked_shr(bits).unwrap_or(0) == 0)
    };
    match kind.split(',').next().unwrap() {
        "bool" => value.is_bool(),
        "u8" => below(8),
        "u16" => below(16),
        "u32" => below(32),
        "u64" => below(64),
        "i32" => value.as_i64().is_some_and(|v| i32::try_from(v).is_ok()),
        "text" => value.is_str(),
        "octets" => value.is_bin(),
        "map" => value.is_map(),
        "list of text" => value.as_array().unwrap().iter().all(Value::is_str),
        "list of maps" => value.as_array().unwrap().iter().all(Value::is_map),
        other => panic!("a type that this test does not know: {other}"),
    }
}

#[test]
fn the_specification_describes_the_files() {
    let described = described();
    // The structure and the version of a file, and the fields that were seen there.
    let mut seen: BTreeSet<(String, String, u16)> = BTreeSet::new();
    for (version, file, image) in files() {
        let root = if version < 3 { BEFORE_3 } else { "The image" };
        let mut open = vec![(root.to_owned(), image)];
        while let Some((structure, value)) = open.pop() {
            let fields = &described[&structure];
            let mut last = None;
            for (key, value) in value.as_map().unwrap() {
                let key = key.as_str().unwrap();
                let place = format!("{}: {structure}.{key}", file.display());
                let at = fields.iter().position(|field| field.name == key);
                let at = at.unwrap_or_else(|| panic!("{place} is not described"));
                assert!(last.is_none_or(|last| last < at), "{place}: order");
                last = Some(at);
                assert!(has_type(value, &fields[at].kind), "{place}: {value}");
                assert!(fields[at].since <= version, "{place}: too early");
                seen.insert((current(&structure).to_owned(), key.to_owned(), version));
                let inner = match value {
                    Value::Array(values) => &values[..],
                    one => std::slice::from_ref(one),
                };
                let inner = inner.iter().filter(|value| value.is_map());
                open.extend(inner.map(|value| (key.to_owned(), value.clone())));
            }
            let there = |name: &str| {
                value
                    .as_map()
                    .unwrap()
                    .iter()
                    .any(|(key, _)| key.as_str() == Some(name))
            };
            for field in fields.iter().filter(|field| field.required) {
                assert!(
                    there(&field.name),
                    "{}: {structure}.{} is required",
                    file.display(),
                    field.name
                );
            }
        }
    }
    for (structure, fields) in described {
        let last = if structure == BEFORE_3 {
            2
        } else {
            FORMAT_VERSION
        };
        for field in fields {
            for version in field.since..=last {
                let structure = current(&structure).to_owned();
                let key = (structure, field.name.clone(), version);
                assert!(
                    seen.contains(&key),
                    "no file of version {version} has {key:?}"
                );
            }
        }
    }
}

/// The name and the type of each row of a table, as the specification has them.
macro_rules! rows {
    ($($(#[$doc:meta])* $name:ident $(: $plain:ident)? $(= $kind:ident $of:tt)? $unit:literal $restored:tt;)*) => {
        [$((stringify!($name), concat!($(stringify!($plain),)? $(stringify!($kind),)?))),*]
    };
}

/// The table from which structures and schema are made has the fields of the specification, in its order.
#[test]
fn the_specification_describes_the_rows_of_the_tables() {
    let described = described();
    let ip = tcpmig_format::ip_fields!(rows);
    let socket = tcpmig_format::socket_fields!(rows);
    // Addresses and the family are in no row.
    for (structure, rows, before) in [("ip", &ip[..], 3), ("socket", &socket[..], 0)] {
        let fields = described[structure].iter().skip(before);
        let fields: Vec<_> = fields
            .map(|field| (&field.name[..], &field.kind[..]))
            .collect();
        let kind = |kind| match kind {
            "bytes" => "octets",
            "always" => "bool",
            plain => plain,
        };
        let rows: Vec<_> = rows.iter().map(|(name, of)| (*name, kind(*of))).collect();
        assert_eq!(rows, fields, "{structure}");
    }
}

#[test]
fn json_beside_the_files_is_what_they_hold() {
    for (_, file, image) in files() {
        let described = fs::read(file.with_extension("json")).unwrap();
        let described: serde_json::Value = serde_json::from_slice(&described).unwrap();
        assert_eq!(described, json::of(&image), "{}", file.display());
    }
}

#[test]
fn the_specification_is_that_of_this_version() {
    let first = include_str!("../FORMAT.md").lines().next().unwrap();
    assert_eq!(
        first,
        format!("# The image format, version {FORMAT_VERSION}")
    );
    let newest = described()
        .into_values()
        .flatten()
        .map(|field| field.since)
        .max();
    assert_eq!(newest, Some(FORMAT_VERSION));
}
