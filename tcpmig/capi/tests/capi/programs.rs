//! Programs that use the library on one host.

use std::path::Path;
use std::process::Command;

use tcpmig_sys::kernel_test;
use tcpmig_sys::lab::World;

use crate::built::{How, Installed, VALGRIND, run};

/// Runs a program in a network of its own.
fn alone(installed: &Installed, before: &[&str], program: &Path, arguments: &[&str]) -> String {
    let world = World::new();
    let mut command = match before {
        [first, others @ ..] => {
            let mut command = world.a.command(first).unwrap();
            command.args(others).arg(program);
            command
        }
        [] => world.a.command(program.to_str().unwrap()).unwrap(),
    };
    run(installed.with_library(command.args(arguments)))
}

kernel_test!(many_connections_and_a_lock_of_ones_own, || {
    let installed = Installed::new();
    let many = installed.compile("many.c", How::default());
    assert!(alone(&installed, &[], &many, &[]).contains("fine"));
    assert!(alone(&installed, &VALGRIND, &many, &[]).contains("fine"));
    let sanitized = How {
        sanitized: true,
        ..How::default()
    };
    let many = installed.compile("many.c", sanitized);
    assert!(alone(&installed, &[], &many, &[]).contains("fine"));
});

kernel_test!(python_uses_the_library, || {
    let installed = Installed::new();
    let library = installed.libraries().join("libtcpmig.so.0");
    let test = installed.path("ctypes_test.py");
    let arguments = [test.to_str().unwrap(), library.to_str().unwrap()];
    let said = alone(&installed, &[], Path::new("python3"), &arguments);
    assert!(said.contains("fine"), "{said}");
});

#[test]
fn whatever_it_is_given_it_answers_with_a_code() {
    let installed = Installed::new();
    let misuse = installed.compile("misuse.c", How::default());
    let mut command = Command::new(VALGRIND[0]);
    command.args(&VALGRIND[1..]).arg(misuse);
    assert!(run(installed.with_library(&mut command)).contains("fine"));
}
