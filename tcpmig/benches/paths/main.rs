//! How a connection goes on after a move where the peer is far away: beside the same connection that stays, over a path that
//! loses the same frames.
//!
//! `cargo bench -p tcpmig --bench paths -- --help` says what can be chosen.
#![allow(clippy::unwrap_used, reason = "a failed set-up ends the benchmark")]

#[allow(dead_code, reason = "each benchmark uses its own part")]
#[path = "../gaps/app.rs"]
mod app;
mod case;
mod choice;
mod file;
mod peer;
#[path = "../../tests/support/mod.rs"]
mod support;
mod table;

use std::sync::Mutex;

use case::Measured;
use choice::{Choice, HELP};

fn main() {
    let choice = match Choice::from_arguments(std::env::args().skip(1)) {
        Ok(choice) => choice,
        Err(said) if said == HELP => return print!("{HELP}"),
        Err(said) => {
            eprintln!("{said}\n{HELP}");
            std::process::exit(2);
        }
    };
    if !tcpmig_sys::netns::has_capabilities() {
        tcpmig_sys::netns::enter_user_namespace().unwrap();
    }
    let cases = Mutex::new(choice.cases().into_iter().enumerate());
    let done: Mutex<Vec<(usize, Measured)>> = Mutex::default();
    if !choice.json {
        table::print_head();
    }
    // They wait more than they compute, and each has networks of its own.
    std::thread::scope(|scope| {
        for _ in 0..choice.at_once {
            scope.spawn(|| {
                loop {
                    let next = cases.lock().unwrap().next();
                    let Some((number, case)) = next else { return };
                    let measured = case.measure();
                    if !choice.json {
                        table::print(&measured);
                    }
                    done.lock().unwrap().push((number, measured));
                }
            });
        }
    });
    if choice.json {
        let mut done = done.into_inner().unwrap();
        done.sort_by_key(|(number, _)| *number);
        let measured: Vec<_> = done.into_iter().map(|(_, measured)| measured).collect();
        println!("{}", serde_json::to_string_pretty(&measured).unwrap());
    }
}
