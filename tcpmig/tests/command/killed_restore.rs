//! A restore that is killed at any moment, and one whose command cannot be started.

use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tcpmig_format::{Image, Limits, TcpImage};
use tcpmig_sys::lab::isolated;
use tcpmig_sys::process::owners;
use tcpmig_sys::process::take::descriptor;
use tcpmig_sys::sockopt;

use crate::killed::{is_worked_on, kills, state};
use crate::support::{TCPMIG, text, until};
use crate::way_back::{Talk, full_pipe};

/// Kills it, unless it has become its command; whether it was killed.
fn kill_before_the_command(restore: &Child) -> bool {
    let pid = Pid::from_raw(restore.id().cast_signed());
    kill(pid, Signal::SIGSTOP).unwrap();
    until("it stands still", || {
        matches!(state(restore.id()), None | Some('t' | 'T' | 'Z' | 'X'))
    });
    let tcpmig = Path::new(&*TCPMIG).canonicalize().unwrap();
    let is_its = |program: std::path::PathBuf| program == tcpmig;
    let is_killed = std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(is_its);
    let signal = if is_killed {
        Signal::SIGKILL
    } else {
        Signal::SIGCONT
    };
    kill(pid, signal).unwrap();
    is_killed
}

fn ends(restore: &mut Child) -> bool {
    let mut status = None;
    until("it ends", || {
        status = restore.try_wait().unwrap();
        status.is_some()
    });
    status.unwrap().success()
}

/// Whether more bytes than those of the image wait in the connection's socket on A.
fn has_more_unread(talk: &Talk, than: usize) -> bool {
    let (local, remote) = talk.flow.split_once(',').unwrap();
    let (local, remote) = (local.parse().unwrap(), remote.parse().unwrap());
    let owners = talk.net.a.run(|| owners::find(local, remote));
    owners.unwrap().unwrap().iter().any(|owner| {
        let socket = descriptor(owner.pid, owner.fd);
        socket
            .is_ok_and(|socket| sockopt::receive_queue_len(socket.as_fd()).unwrap() as usize > than)
    })
}

#[test]
fn kills_at_any_moment_lose_no_connection() {
    isolated(
        "killed_restore::kills_at_any_moment_lose_no_connection",
        || {
            let mut talk = Talk::new();
            // The whole of a restore, with what starting it takes.
            let image = talk.net.file("first.image");
            talk.dump(image.to_str().unwrap(), &[]);
            let begin = Instant::now();
            let mut whole = talk.restore_to_background(&image);
            assert!(ends(&mut whole));
            let whole = begin.elapsed() * 5 / 4;
            let seed = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
            let seed = seed.as_nanos() as u64;
            println!("seed {seed}");
            let mut random = seed | 1;
            let (mut killed, mut complete) = (0, 0);
            for n in 0..kills() {
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                let after = whole.mul_f64((random >> 11) as f64 / (1u64 << 53) as f64);
                let image = talk.net.file(&format!("{n}.image"));
                talk.dump(image.to_str().unwrap(), &[]);
                let mut restore = talk.restore_to_background(&image);
                thread::sleep(after);
                if kill_before_the_command(&restore) {
                    killed += 1;
                    assert!(!ends(&mut restore));
                    until("nothing of it is left", || !is_worked_on(&image));
                    let mut again = talk.restore_to_background(&image);
                    assert!(ends(&mut again), "after {after:?}");
                } else {
                    complete += 1;
                    assert!(ends(&mut restore));
                }
                talk.goes_on();
                assert_eq!(talk.locks()["held"], Value::Array(Vec::new()));
                std::fs::remove_file(&image).unwrap();
            }
            println!("{killed} killed, {complete} complete");
            assert!(killed > 0);
            talk.ends_whole();
        },
    );
}

/// Nobody reads what it has to say before it becomes its command.
#[test]
fn one_that_is_killed_when_the_connection_lives_puts_it_back() {
    isolated(
        "killed_restore::one_that_is_killed_when_the_connection_lives_puts_it_back",
        || {
            let mut talk = Talk::new();
            let file = talk.net.file("connection.image");
            let path = file.to_str().unwrap();
            talk.dump(path, &[]);
            let decode = || Image::decode(&std::fs::read(&file).unwrap(), &Limits::default());
            let mut image = decode().unwrap();
            let mut tcp = image.tcp().unwrap().parts().clone();
            let before = tcp.receive.rcv_nxt;
            let unread = tcp.receive.queue.len();
            tcp.socket.congestion = Some("elsewhere".to_owned());
            image.connection_mut().unwrap().tcp = Some(TcpImage::new(tcp).unwrap());
            std::fs::write(&file, image.encode().unwrap()).unwrap();
            let (reader, writer) = full_pipe();
            let mut command = talk.net.a.command(&TCPMIG).unwrap();
            command
                .args(["restore", path, "--options", "warn", "--", "cat"])
                .stdin(Stdio::null())
                .stderr(writer);
            let mut restore = command.spawn().unwrap();
            drop(command);
            until("the connection lives", || {
                talk.locks()["held"] == Value::Array(Vec::new())
            });
            until("something has come since", || {
                has_more_unread(&talk, unread)
            });
            assert!(kill_before_the_command(&restore));
            drop(reader);
            assert!(!ends(&mut restore));
            until("nothing of it is left", || !is_worked_on(&file));
            // It took in what the peer has sent meanwhile, and is silent.
            let after = decode().unwrap();
            assert_ne!(after.tcp().unwrap().receive().rcv_nxt, before);
            assert_eq!(talk.locks()["held"].as_array().unwrap().len(), 1);
            let _server = talk.restore(path, &[]);
            talk.goes_on();
            assert_eq!(talk.locks()["held"], Value::Array(Vec::new()));
            talk.ends_whole();
        },
    );
}

#[test]
fn a_command_that_cannot_be_started_costs_no_connection() {
    isolated(
        "killed_restore::a_command_that_cannot_be_started_costs_no_connection",
        || {
            let mut talk = Talk::new();
            let file = talk.net.file("connection.image");
            let path = file.to_str().unwrap();
            talk.dump(path, &[]);
            let program = talk.net.file("program");
            std::fs::write(&program, "#!/nowhere\n").unwrap();
            let mode = std::fs::Permissions::from_mode(0o755);
            std::fs::set_permissions(&program, mode).unwrap();
            let mut command = talk.net.a.command(&TCPMIG).unwrap();
            command.args(["restore", path, "--"]).arg(&program);
            let output = command.stdin(Stdio::null()).output().unwrap();
            assert_eq!(output.status.code(), Some(1));
            let said = text(&output.stderr);
            assert!(said.contains("start the command"), "{said}");
            // By the other process, which has the same standard error.
            assert!(said.contains("is in") && said.contains(path), "{said}");
            let _server = talk.restore(path, &[]);
            talk.goes_on();
            talk.ends_whole();
        },
    );
}
