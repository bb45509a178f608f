//! The header has what the library has, and both are what was committed.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::mem::{align_of, offset_of, size_of};
use std::process::Command;

use tcpmig_c::{
    Code, EventKind, EventStruct, FLOW_TEXT, Flow, INJECT_MARK, LENIENT, LOCK_EXEMPTS, LayerStruct,
    LockOperations, Probe, SERVICE_TAKES, ServiceStruct, SessionStruct,
};

use crate::built::{HEADER, How, Installed, built, run};
use crate::signatures::of_the_header;

const COMMITTED: &str = include_str!("../../abi.txt");

/// Each struct with its fields, as Rust has it, and the C that prints the same.
macro_rules! layouts {
    ($($name:literal $type:ident { $($field:ident),* $(,)? })*) => {{
        let (mut ours, mut theirs) = (String::new(), String::new());
        $(
            let (size, align) = (size_of::<$type>(), align_of::<$type>());
            writeln!(ours, "struct {} {size} {align}", $name).unwrap();
            writeln!(
                theirs,
                "struct a_{0} {{ char before; struct {0} it; }};\n#define ALIGN_{0} offsetof(struct a_{0}, it)",
                $name
            ).unwrap();
        )*
        writeln!(theirs, "int main(void) {{").unwrap();
        let mut fields = String::new();
        $(
            writeln!(theirs, "printf(\"struct {0} %zu %zu\\n\", sizeof(struct {0}), ALIGN_{0});", $name).unwrap();
            $(
                let field = stringify!($field);
                writeln!(fields, "field {}.{field} {}", $name, offset_of!($type, $field)).unwrap();
            )*
        )*
        $($(
            writeln!(
                theirs,
                "printf(\"field {0}.{1} %zu\\n\", offsetof(struct {0}, {1}));",
                $name, stringify!($field)
            ).unwrap();
        )*)*
        ours.push_str(&fields);
        (ours, theirs)
    }};
}

fn layouts() -> (String, String) {
    layouts! {
        "tcpmig_event" EventStruct {
            size, id, kind, fd, flow, service, host, hosts, host_count, code, reason, layer_count, unwritten, unwritten_length,
            unprocessed, unprocessed_length
        }
        "tcpmig_flow" Flow { local, remote, local_port, remote_port, family, reserved }
        "tcpmig_layer" LayerStruct { size, kind, payload, payload_length, version }
        "tcpmig_lock_operations" LockOperations { size, flags, lock, renew, unlock, leave }
        "tcpmig_probe" Probe { size, flow, state, unread, unacked, unsent }
        "tcpmig_service" ServiceStruct { size, name, addresses, address_count, flags }
        "tcpmig_session" SessionStruct {
            size, layers, layer_count, unprocessed, unprocessed_count, unsent, unsent_count
        }
    }
}

fn constants() -> Vec<(String, i64)> {
    let code = |(code, name): &(Code, &std::ffi::CStr)| {
        (name.to_str().unwrap().to_owned(), i64::from(*code as i32))
    };
    let mut constants: Vec<_> = Code::NAMES.iter().map(code).collect();
    let kind = |(kind, name): &(EventKind, &str)| ((*name).to_owned(), i64::from(*kind as u32));
    constants.extend(EventKind::NAMES.iter().map(kind));
    constants.extend([
        ("TCPMIG_SERVICE_TAKES".to_owned(), i64::from(SERVICE_TAKES)),
        ("TCPMIG_FLOW_TEXT".to_owned(), FLOW_TEXT as i64),
        ("TCPMIG_INJECT_MARK".to_owned(), i64::from(INJECT_MARK)),
        ("TCPMIG_LENIENT".to_owned(), i64::from(LENIENT)),
        ("TCPMIG_LOCK_EXEMPTS".to_owned(), i64::from(LOCK_EXEMPTS)),
    ]);
    constants
}

/// The names that follow `before` in the header, as far as they are of this library.
fn named<'a>(before: &str, begins: &str) -> BTreeSet<&'a str> {
    let found = HEADER.match_indices(before).filter_map(|(at, _)| {
        let rest = &HEADER[at + before.len()..];
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_')?;
        Some(&rest[..end])
    });
    found.filter(|name| name.starts_with(begins)).collect()
}

fn symbols() -> BTreeSet<String> {
    let mut nm = Command::new("nm");
    nm.args(["--dynamic", "--defined-only", "--format=just-symbols"]);
    let listed = run(nm.arg(built().join("libtcpmig_c.so")));
    listed.lines().map(str::to_owned).collect()
}

/// What a program that is linked depends on.
fn abi() -> String {
    let mut text = String::new();
    for symbol in symbols() {
        writeln!(text, "symbol {symbol}").unwrap();
    }
    for (name, value) in constants() {
        writeln!(text, "constant {name} {value}").unwrap();
    }
    text + &layouts().0
}

#[test]
fn the_header_has_the_structs_and_numbers_of_the_library() {
    let installed = Installed::new();
    let (mut ours, body) = layouts();
    let mut program =
        format!("#include <stdio.h>\n#include <stddef.h>\n#include <tcpmig.h>\n{body}");
    for (name, value) in constants() {
        writeln!(ours, "constant {name} {value}").unwrap();
        writeln!(
            program,
            "printf(\"constant {name} %lld\\n\", (long long){name});"
        )
        .unwrap();
    }
    program.push_str("return 0; }\n");
    std::fs::write(installed.path("layout.c"), program).unwrap();
    for cxx in [false, true] {
        let how = How {
            cxx,
            ..How::default()
        };
        let layout = installed.compile("layout.c", how);
        let theirs = run(installed.with_library(&mut Command::new(layout)));
        assert_eq!(theirs, ours, "C++: {cxx}");
    }
    // None is missing here.
    let known = ours.split_whitespace();
    let known: BTreeSet<_> = known.filter(|word| word.starts_with("TCPMIG_")).collect();
    let macros = named("#define ", "TCPMIG_").into_iter();
    let is_number = |name: &&str| {
        let others = ["TCPMIG_H", "TCPMIG_VERSION_", "TCPMIG_AGENT_SOCKET"];
        !name.ends_with("_INIT") && !others.iter().any(|other| name.starts_with(other))
    };
    let missing: Vec<_> = macros
        .filter(is_number)
        .filter(|name| !known.contains(name))
        .collect();
    assert_eq!(missing, Vec::<&str>::new());
    for name in named("\nstruct ", "tcpmig_") {
        let is_opaque = HEADER.contains(&format!("\nstruct {name};"));
        assert!(
            is_opaque || ours.contains(&format!("struct {name} ")),
            "{name}"
        );
    }
}

#[test]
fn the_version_is_that_of_the_crate() {
    let parts = ["MAJOR", "MINOR", "PATCH"].map(|part| {
        let define = format!("#define TCPMIG_VERSION_{part} ");
        let at = HEADER.find(&define).unwrap() + define.len();
        HEADER[at..].lines().next().unwrap()
    });
    assert_eq!(parts.join("."), env!("CARGO_PKG_VERSION"));
}

#[test]
fn the_library_has_the_functions_of_the_header_and_no_others() {
    let declared: BTreeSet<_> = of_the_header().into_keys().collect();
    assert_eq!(symbols(), declared);
}

/// `TCPMIG_WRITE_ABI=1 cargo test -p tcpmig-capi` writes what is there now.
#[test]
fn the_abi_is_the_one_that_was_committed() {
    let now = abi();
    if std::env::var_os("TCPMIG_WRITE_ABI").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/abi.txt");
        std::fs::write(path, now).unwrap();
        return;
    }
    let (before, after): (BTreeSet<_>, BTreeSet<_>) =
        (COMMITTED.lines().collect(), now.lines().collect());
    let gone: Vec<_> = before.difference(&after).collect();
    let new: Vec<_> = after.difference(&before).collect();
    assert!(
        gone.is_empty() && new.is_empty(),
        "programs that are linked with the library have {gone:#?}, and now there is {new:#?}"
    );
}

#[test]
fn the_shared_library_has_its_name() {
    let mut readelf = Command::new("readelf");
    let said = run(readelf.arg("--dynamic").arg(built().join("libtcpmig_c.so")));
    assert!(said.contains("Library soname: [libtcpmig.so.0]"), "{said}");
}
