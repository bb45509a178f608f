//! The example: a download is dumped on one host and goes on at another.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tcpmig_sys::kernel_test;
use tcpmig_sys::lab::{World, until};

use crate::built::{How, Installed, VALGRIND, run, said};

const PORT: &str = "8080";

/// The body that the example answers with.
fn body() -> Vec<u8> {
    (0..100_000)
        .flat_map(|line| format!("{line:08}\n").into_bytes())
        .collect()
}

fn is_listening(world: &World) -> bool {
    let table = || fs::read_to_string("/proc/thread-self/net/tcp").unwrap();
    let table = world.a.run(table).unwrap();
    // 8080, in the state LISTEN.
    table
        .lines()
        .any(|line| line.contains(":1F90 00000000:0000 0A"))
}

struct Running(Option<Child>);

impl Running {
    fn start(command: &mut Command) -> Self {
        let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Self(Some(command.spawn().unwrap()))
    }

    /// Waits for a line that begins so.
    fn says(&mut self, begins: &str) {
        let stdout = self.0.as_mut().unwrap().stdout.as_mut().unwrap();
        let mut said = Vec::new();
        while !said.ends_with(b"\n") {
            let mut byte = [0];
            stdout.read_exact(&mut byte).expect("it says something");
            said.extend(byte);
        }
        let said = String::from_utf8(said).unwrap();
        assert!(said.starts_with(begins), "{said}");
    }

    /// Presses Enter.
    fn enter(&mut self) {
        let mut stdin = self.0.as_mut().unwrap().stdin.take().unwrap();
        stdin.write_all(b"\n").unwrap();
    }

    /// Its output, once it has ended.
    fn ends_well(mut self) -> String {
        let output = self.0.take().unwrap().wait_with_output().unwrap();
        assert!(
            output.status.success(),
            "{}: {}",
            output.status,
            said(&output)
        );
        said(&output)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Moves a download, and a second one on the same connection follows.
fn moves(installed: &Installed, before: &[&str], program: &Path) -> Vec<u8> {
    let world = World::new();
    let command = |host: &tcpmig_sys::lab::Host, arguments: &[&str]| {
        let program = program.to_str().unwrap();
        let words: Vec<&str> = before.iter().copied().chain([program]).collect();
        let mut command = host.command(words[0]).unwrap();
        command.args(&words[1..]).args(arguments);
        installed.with_library(&mut command);
        command
    };
    let image = installed.path("image");
    let path = image.to_str().unwrap();
    let service = World::SERVICE[0];

    let source = Running::start(&mut command(&world.a, &["serve", service, PORT, path]));
    until("the source listens", || is_listening(&world));
    let url = format!("http://{service}:{PORT}/");
    let outputs = ["first", "second"].map(|name| installed.path(name));
    let mut curl = world.peer.command("curl").unwrap();
    curl.args(["--silent", "--show-error", "--fail", "--max-time", "600"]);
    curl.args(["--write-out", "%{num_connects} "]);
    for output in &outputs {
        curl.arg("--output").arg(output).arg(&url);
    }
    let curl = Running::start(&mut curl);
    source.ends_well();
    let bytes = fs::read(&image).unwrap();

    let mut target = Running::start(command(&world.b, &["resume", path]).stdin(Stdio::piped()));
    target.says("prepared");
    world.point_peer_at_b();
    target.enter();
    assert_eq!(curl.ends_well(), "1 0 ", "connections that curl has made");
    target.ends_well();
    assert!(!image.exists(), "it could be restored once more");
    for output in outputs {
        assert!(fs::read(output).unwrap() == body());
    }
    bytes
}

kernel_test!(a_download_goes_on_at_another_host, || {
    let installed = Installed::new();
    let program = installed.compile("dump_restore.c", How::default());
    let image = moves(&installed, &[], &program);

    // What becomes of an image that is damaged, in every place.
    let path = installed.path("damaged");
    fs::write(&path, image).unwrap();
    let sanitized = How {
        sanitized: true,
        ..How::default()
    };
    let misuse = installed.compile("misuse.c", sanitized);
    let mut command = Command::new(misuse);
    assert!(run(installed.with_library(command.arg(path))).contains("fine"));
});

kernel_test!(a_download_goes_on_and_no_memory_is_lost, || {
    let installed = Installed::new();
    let program = installed.compile("dump_restore.c", How::default());
    moves(&installed, &VALGRIND, &program);
});

kernel_test!(a_download_goes_on_with_the_static_library_in_cxx, || {
    let installed = Installed::with_static();
    let how = How {
        cxx: true,
        is_static: true,
        sanitized: true,
    };
    let program = installed.compile("dump_restore.c", how);
    moves(&installed, &[], &program);
});
