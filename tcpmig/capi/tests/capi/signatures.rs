//! Each function of the header is declared as the library has it.

use std::collections::BTreeMap;

use crate::built::HEADER;

/// The files with functions for C.
const SOURCES: &[&str] = &[
    include_str!("../../src/agent/event.rs"),
    include_str!("../../src/agent/handle.rs"),
    include_str!("../../src/border.rs"),
    include_str!("../../src/connection/frozen.rs"),
    include_str!("../../src/connection/image.rs"),
    include_str!("../../src/connection/locker.rs"),
    include_str!("../../src/connection/prepared.rs"),
    include_str!("../../src/connection/probe.rs"),
    include_str!("../../src/flow.rs"),
    include_str!("../../src/upgrade/handle.rs"),
];

/// What a type of Rust is in C.
fn in_c(rust: &str) -> String {
    let text = match rust {
        "" => "void",
        "c_int" => "int",
        "usize" => "size_t",
        "u32" => "uint32_t",
        "u64" => "uint64_t",
        "*const c_char" => "const char *",
        "*const c_void" => "const void *",
        "*mut c_void" => "void *",
        "*const c_int" => "const int *",
        "*mut c_int" | "Option<&mut MaybeUninit<c_int>>" => "int *",
        "Option<&mut MaybeUninit<usize>>" => "size_t *",
        "Option<&mut MaybeUninit<*const c_void>>" => "const void **",
        "Option<&mut [MaybeUninit<c_char>; FLOW_TEXT]>" => "char *",
        "Option<&Flow>" => "const struct tcpmig_flow *",
        "Option<&mut MaybeUninit<Flow>>" => "struct tcpmig_flow *",
        "*mut Probe" => "struct tcpmig_probe *",
        "*const LayerStruct" => "const struct tcpmig_layer *",
        "*mut LayerStruct" => "struct tcpmig_layer *",
        "*const ServiceStruct" => "const struct tcpmig_service *",
        "*const SessionStruct" => "const struct tcpmig_session *",
        "*mut EventStruct" => "struct tcpmig_event *",
        "*const LockOperations" => "const struct tcpmig_lock_operations *",
        "*const Option<&ImageHandle>" => "const struct tcpmig_image *const *",
        other => return handle(other),
    };
    text.to_owned()
}

fn handle(rust: &str) -> String {
    let at = rust
        .find("Handle")
        .unwrap_or_else(|| panic!("what is {rust} in C?"));
    let begin = rust[..at]
        .rfind(|c: char| !c.is_ascii_alphabetic())
        .unwrap()
        + 1;
    let name = format!("struct tcpmig_{}", rust[begin..at].to_lowercase());
    let pattern = rust.replace(&rust[begin..at + "Handle".len()], "T");
    match &*pattern {
        "Option<&T>" => format!("const {name} *"),
        "Option<&mut T>" => format!("{name} *"),
        "*mut Option<Box<T>>"
        | "Option<&mut Option<Box<T>>>"
        | "Option<&mut MaybeUninit<Option<Box<T>>>>" => format!("{name} **"),
        other => panic!("what is {other} in C?"),
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// `(` to its `)`, and what follows.
fn parenthesized(text: &str) -> (&str, &str) {
    let mut depth = 0;
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return (&text[1..at], &text[at + 1..]);
        }
    }
    panic!("{text} does not end");
}

fn of_the_library() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for source in SOURCES {
        for (at, _) in source.match_indices("\n    fn tcpmig_") {
            let rest = &source[at + "\n    fn ".len()..];
            let open = rest.find('(').unwrap();
            let (arguments, after) = parenthesized(&rest[open..]);
            let result = after.split('{').next().unwrap().trim();
            let result = in_c(result.trim_start_matches("->").trim());
            let arguments = arguments.split(", ").flat_map(|part| part.split(",\n"));
            let arguments = arguments.map(str::trim).filter(|part| !part.is_empty());
            let types: Vec<_> = arguments
                .map(|argument| {
                    in_c(one_line(argument.split_once(':').unwrap().1).trim_end_matches(','))
                })
                .collect();
            let types = if types.is_empty() {
                "void".to_owned()
            } else {
                types.join(", ")
            };
            found.insert(rest[..open].to_owned(), format!("{result} ({types})"));
        }
    }
    found
}

/// A parameter without its name.
fn type_of(parameter: &str) -> String {
    let parameter = parameter.trim();
    if let Some(array) = parameter.strip_suffix("[TCPMIG_FLOW_TEXT]") {
        let name = array.rfind(' ').unwrap();
        return format!("{} *", &array[..name]);
    }
    let end = parameter.rfind([' ', '*']).map_or(0, |at| at + 1);
    match parameter[..end].trim() {
        "" => parameter.to_owned(),
        type_ => type_.to_owned(),
    }
}

pub(crate) fn of_the_header() -> BTreeMap<String, String> {
    let mut text = String::new();
    let mut rest = HEADER;
    while let Some((before, comment)) = rest.split_once("/*") {
        text.push_str(before);
        rest = comment.split_once("*/").unwrap().1;
    }
    text.push_str(rest);
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let text = lines.collect::<Vec<_>>().join("\n");
    let mut found = BTreeMap::new();
    for declaration in text.split(';') {
        let declaration = one_line(declaration.rsplit("{ }").next().unwrap());
        let Some(open) = declaration.find('(') else {
            continue;
        };
        let before = declaration[..open]
            .trim_start_matches("extern \"C\" {")
            .trim();
        let name = before.rfind([' ', '*']).map_or(0, |at| at + 1);
        let (result, name) = (before[..name].trim(), &before[name..]);
        if !name.starts_with("tcpmig_") {
            continue;
        }
        let (parameters, _) = parenthesized(&declaration[open..]);
        let types: Vec<_> = parameters.split(',').map(type_of).collect();
        found.insert(name.to_owned(), format!("{result} ({})", types.join(", ")));
    }
    found
}

#[test]
fn functions_are_declared_as_they_are() {
    let (ours, theirs) = (of_the_library(), of_the_header());
    assert!(ours.len() > 30, "{}", ours.len());
    let names: Vec<_> = theirs.keys().collect();
    assert_eq!(names, ours.keys().collect::<Vec<_>>());
    for (name, declared) in &theirs {
        assert_eq!(declared, &ours[name], "{name}");
    }
}
