//! The manual pages, which are made of the header, and the programs in them.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::Path;

use tcpmig_sys::kernel_test;
use tcpmig_sys::lab::{Host, PATIENCE, World};

use crate::agents::{Hosts, PORT, Server};
use crate::built::{HEADER, How, Installed, VALGRIND};

/// Those with a program.
const PAGES: [(&str, &str); 3] = [
    (
        "tcpmig_agent",
        include_str!("../../examples/counter_agent.c"),
    ),
    (
        "tcpmig_connection",
        include_str!("../../examples/dump_restore.c"),
    ),
    (
        "tcpmig_upgrade",
        include_str!("../../examples/counter_upgrade.c"),
    ),
];

/// What troff is asked for.
const REQUESTS: [&str; 13] = [
    ".\\\"", ".BR", ".IP", ".PP", ".RE", ".RS", ".SH", ".SS", ".TH", ".fi", ".ft", ".nf", ".so",
];

fn page(installed: &Installed, name: &str) -> String {
    let path = installed.path(&format!("prefix/usr/share/man/man3/{name}.3"));
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The names of all functions of the header.
fn functions() -> Vec<String> {
    let lines = HEADER.lines().filter(|line| {
        let first = line.bytes().next().unwrap_or(b' ');
        first.is_ascii_lowercase() && !line.starts_with("struct tcpmig_lock_")
    });
    let name = |line: &str| {
        let (before, _) = line.split_once('(')?;
        let name = before.rsplit([' ', '*']).next()?;
        Some(name.to_owned()).filter(|name| name.starts_with("tcpmig_"))
    };
    lines.filter_map(name).collect()
}

/// A page as a person reads it, as far as that is text.
fn shown(page: &str) -> String {
    page.replace("\\-", "-")
        .replace("\\&", "")
        .replace("\\e", "\\")
}

#[test]
fn each_function_has_a_page_and_each_page_is_sound() {
    let installed = Installed::new();
    let functions = functions();
    assert!(functions.len() > 50, "{functions:?}");
    for name in &functions {
        let own = page(&installed, name);
        let (_, of) = own.trim_end().split_once(".so man3/").unwrap();
        let text = shown(&page(&installed, of.strip_suffix(".3").unwrap()));
        assert!(text.contains(&format!("{name}(")), "{name} in {of}");
    }
    for name in PAGES.map(|(name, _)| name).into_iter().chain(["tcpmig"]) {
        let page = page(&installed, name);
        let count = |request: &str| {
            page.lines()
                .filter(|line| line.starts_with(request))
                .count()
        };
        assert_eq!(count(".nf"), count(".fi"), "{name}");
        assert_eq!(count(".RS"), count(".RE"), "{name}");
        for line in page.lines().filter(|line| line.starts_with(['.', '\''])) {
            let known = REQUESTS.iter().any(|request| line.starts_with(request));
            assert!(known, "{name}: {line}");
        }
    }
    // What holds for all is said once, and the sections of a group are named.
    assert!(page(&installed, "tcpmig").contains("Rules that hold for every function"));
    assert!(page(&installed, "tcpmig_connection").contains(".SS Taking it in\n"));
}

#[test]
fn each_group_has_a_complete_program() {
    let installed = Installed::new();
    for (name, program) in PAGES {
        let page = page(&installed, name);
        let (_, rest) = page.split_once(".SH EXAMPLES").unwrap();
        let (_, rest) = rest.split_once(".nf\n").unwrap();
        let (listed, _) = rest.split_once(".fi\n").unwrap();
        assert_eq!(shown(listed), program, "{name}");
    }
}

/// A connection to the service, which is answered how many lines it has sent.
fn client(peer: &Host) -> BufReader<TcpStream> {
    let address = format!("{}:{PORT}", World::SERVICE[0]);
    let stream = peer.run(|| TcpStream::connect(address)).unwrap().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    BufReader::new(stream)
}

fn counts(client: &mut BufReader<TcpStream>, number: u32) {
    client.get_mut().write_all(b"a line\n").unwrap();
    let mut answer = String::new();
    client.read_line(&mut answer).unwrap();
    assert_eq!(answer, format!("{number}\n"));
}

/// One version after another takes the counter over, each of one of these programs in turn.
fn versions(installed: &Installed, programs: &[&Path]) {
    let world = World::new();
    let version = |number: usize| {
        let program = programs[number % programs.len()];
        let mut command = world.a.command(program.to_str().unwrap()).unwrap();
        command.args([World::SERVICE[0], PORT]);
        command.arg(installed.path("counter.sock"));
        let log = installed.path(&format!("counter {number}.log"));
        Server::start(installed.with_library(&mut command), log)
    };
    let mut running = version(0);
    let mut clients = [client(&world.peer), client(&world.peer)];
    for number in 1..5 {
        for client in &mut clients {
            counts(client, number);
        }
        let next = version(number as usize);
        running.ends_well();
        running = next;
    }
}

kernel_test!(the_counter_goes_on_in_its_next_version, || {
    let installed = Installed::new();
    let how = How {
        cxx: true,
        sanitized: true,
        ..How::default()
    };
    let program = installed.compile("counter_upgrade.c", how);
    versions(&installed, &[&program]);
});

kernel_test!(the_counter_goes_on_in_go_and_comes_back, || {
    let installed = Installed::new();
    let c = installed.compile("counter_upgrade.c", How::default());
    let go = installed.compile_go("counter_upgrade.go");
    versions(&installed, &[&c, &go]);
    // From one of Go to one of Go.
    versions(&installed, &[&go]);
});

kernel_test!(the_counter_goes_on_at_another_host, || {
    let hosts = Hosts::new();
    // No memory is lost, and in C++ it is the same program.
    let in_cxx = How {
        cxx: true,
        ..How::default()
    };
    hosts.installed.compile("counter_agent.c", in_cxx);
    let program = hosts.installed.compile("counter_agent.c", How::default());
    let server = |of| hosts.server(of, &VALGRIND, &program);
    let mut there = server("a");
    let mut client = client(&hosts.world.peer);
    // One that was drained ends, and takes nothing in.
    for (number, (of, to)) in (1..).zip([("a", "b"), ("b", "a"), ("a", "b")]) {
        counts(&mut client, number);
        let next = server(to);
        assert_eq!(hosts.drain(of, to), 1);
        there.ends_well();
        there = next;
    }
    counts(&mut client, 4);
});
