//! Output that nobody takes, and input that is not a file.

use std::fs::{File, OpenOptions};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use tcpmig_sys::lab::isolated;

use crate::disks::place;
use crate::support::{Net, TCPMIG, fails, succeeds, tcpmig, text};

/// Where nothing fits.
fn full() -> Stdio {
    OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap()
        .into()
}

/// A pipe that nobody reads.
fn closed() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(&*TCPMIG);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::piped());
    command
}

fn code(output: &Output) -> Option<i32> {
    let said = text(&output.stderr);
    assert!(!said.contains("panicked"), "{said}");
    output.status.code()
}

#[test]
fn what_only_shows_something_fails_if_it_cannot() {
    for arguments in [
        &["doctor"][..],
        &["--json", "doctor"],
        &["completions", "bash"],
    ] {
        let output = command(arguments).stdout(full()).output().unwrap();
        assert_eq!(code(&output), Some(1), "{arguments:?}");
        let said = text(&output.stderr);
        assert!(said.contains("standard output: No space left"), "{said}");
        // A reader that has seen enough is not a failure.
        let seen = command(arguments).stdout(closed()).output().unwrap();
        let normally = command(arguments).stdout(Stdio::null()).output().unwrap();
        assert_eq!(code(&seen), code(&normally), "{arguments:?}");
        assert_eq!(text(&seen.stderr), text(&normally.stderr), "{arguments:?}");
    }
    let output = command(&["--help"]).stdout(full()).output().unwrap();
    assert_ne!(code(&output), Some(101));
}

#[test]
fn what_was_done_is_done_whoever_reads_of_it() {
    isolated(
        "unprinted::what_was_done_is_done_whoever_reads_of_it",
        || {
            let net = Net::new();
            let (echo, image) = (net.echo(), place(&net));
            let run = |arguments: &[&str], stdout: Stdio, stderr: Stdio| {
                let mut command = net.a.command(&TCPMIG).unwrap();
                command.args(arguments).stdin(Stdio::null());
                command.stdout(stdout).stderr(stderr).output().unwrap()
            };
            let image_name = image.to_str().unwrap();
            let keep = ["dump", "--flow", &echo.flow, "-o", image_name, "--keep"];
            let output = run(&keep, full(), Stdio::piped());
            assert_eq!(code(&output), Some(0));
            assert!(text(&output.stderr).contains("warning: standard output"));
            let shown = run(&["inspect", image_name], full(), Stdio::piped());
            fails(&shown, 1, &["standard output"]);
            let shown = run(&["inspect", image_name], closed(), Stdio::piped());
            assert_eq!((code(&shown), text(&shown.stderr).as_str()), (Some(0), ""));
            std::fs::remove_file(&image).unwrap();
            // Nobody reads anything.
            let leave = ["dump", "--flow", &echo.flow, "-o", image_name];
            assert_eq!(code(&run(&leave, closed(), full())), Some(0));
            assert!(succeeds(&tcpmig(&net.a, &["inspect", image_name])).contains("ESTABLISHED"));
            let swept = run(&["locks", "--sweep"], full(), full());
            assert_eq!(code(&swept), Some(0));
        },
    );
}

#[test]
fn an_image_is_a_file_and_its_beginning_tells() {
    let folder = tempfile::tempdir().unwrap();
    let inspect = |path: &Path, says: &[&str]| {
        let output = command(&["inspect", path.to_str().unwrap()])
            .stdout(Stdio::null())
            .output();
        fails(&output.unwrap(), 1, says);
    };
    let fifo = folder.path().join("fifo");
    assert!(
        Command::new("mkfifo")
            .arg(&fifo)
            .status()
            .unwrap()
            .success()
    );
    inspect(&fifo, &["is not a file"]);
    inspect(folder.path(), &["is not a file"]);
    inspect(Path::new("/dev/zero"), &["is not a file"]);
    // More than any memory has.
    let zeros = folder.path().join("zeros");
    File::create(&zeros).unwrap().set_len(1 << 42).unwrap();
    inspect(&zeros, &["not an image of tcpmig"]);
    // A header that promises as much as there is.
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/decode");
    let mut seeds = std::fs::read_dir(corpus)
        .unwrap()
        .map(|seed| std::fs::read(seed.unwrap().path()).unwrap());
    let image = seeds.find(|seed| tcpmig_format::Envelope::peek(seed).is_ok());
    let mut promising = image.expect("a seed is an image")[..24].to_vec();
    promising[12..20].copy_from_slice(&(1u64 << 41).to_be_bytes());
    let path = folder.path().join("promising");
    std::fs::write(&path, &promising).unwrap();
    OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(1 << 42)
        .unwrap();
    inspect(&path, &["more than"]);
}
