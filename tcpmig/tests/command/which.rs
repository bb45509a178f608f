//! The connection that is dumped is the one that was asked for, and no other is touched.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;
use socket2::{Domain, SockRef, Socket, Type};
use tcpmig_sys::lab::isolated;

use crate::support::{Net, Program, TCPMIG, fails, succeeds, tcpmig, until};

const SERVICE: &str = "198.18.0.80:7000";

/// A program of the service on host A.
fn python(net: &Net, script: &str) -> Program {
    let program = Program::start(&net.a, "python3", &["-uc", script]);
    assert_eq!(program.hear(), "listens");
    program
}

const LISTENS: &str = "
import os, socket, sys
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(('198.18.0.80', 7000))
listener.listen()
print('listens')
";

/// From this port of the peer.
fn connect(net: &Net, port: u16) -> TcpStream {
    let to: SocketAddr = SERVICE.parse().unwrap();
    let socket = net.peer.run(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        let from: SocketAddr = format!("198.18.0.9:{port}").parse().unwrap();
        socket.bind(&from.into()).unwrap();
        socket.connect(&to.into()).unwrap();
        socket
    });
    let stream = TcpStream::from(socket.unwrap());
    stream
        .set_read_timeout(Some(Duration::from_secs(120)))
        .unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

fn echoes(mut stream: &TcpStream) {
    stream.write_all(b"hello").unwrap();
    let mut back = [0; 5];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"hello");
}

#[test]
fn a_connection_that_has_ended_does_not_silence_the_next_one_with_its_ports() {
    isolated(
        "which::a_connection_that_has_ended_does_not_silence_the_next_one_with_its_ports",
        || {
            let net = Net::new();
            let script = format!(
                "{LISTENS}
ended, _ = listener.accept()
print(ended.fileno())
lives, _ = listener.accept()
def echo():
    while True:
        lives.sendall(lives.recv(100))
import threading
threading.Thread(target=echo, daemon=True).start()
sys.stdin.readline()
try:
    ended.recv(1)
except ConnectionResetError:
    print('reset')
sys.stdin.readline()
"
            );
            let mut server = python(&net, &script);
            let first = connect(&net, 5555);
            let fd = server.hear();
            let pid = server.child.id().to_string();
            // It ends with an RST.
            SockRef::from(&first)
                .set_linger(Some(Duration::ZERO))
                .unwrap();
            drop(first);
            let closed = || {
                let table = net
                    .a
                    .run(|| std::fs::read_to_string("/proc/thread-self/net/tcp"));
                !table.unwrap().unwrap().contains(":1B58 090012C6:15B3")
            };
            until("the server's end is closed", closed);
            let second = connect(&net, 5555);
            echoes(&second);
            let dump = |image: &str, more: &[&str]| {
                let dump = ["--json", "dump", "--pid", &pid, "--fd", &fd, "-o", image];
                tcpmig(&net.a, &[&dump, more].concat())
            };
            // The error that the application has not read would be lost.
            let refused = net.file("refused");
            fails(
                &dump(refused.to_str().unwrap(), &[]),
                1,
                &["another connection lives"],
            );
            echoes(&second);
            server.say("go on");
            assert_eq!(server.hear(), "reset");
            for (n, more) in [&["--keep"][..], &["--redirect", "198.18.0.2"]]
                .into_iter()
                .enumerate()
            {
                let image = net.file(&format!("image{n}"));
                let image = image.to_str().unwrap();
                let said: Value = serde_json::from_str(&succeeds(&dump(image, more))).unwrap();
                assert_eq!(said["silent_until"], Value::Null, "{said}");
                echoes(&second);
                let held = succeeds(&tcpmig(&net.a, &["--json", "locks"]));
                let held: Value = serde_json::from_str(&held).unwrap();
                assert_eq!(held["held"].as_array().unwrap().len(), 0, "{held}");
                let shown = succeeds(&tcpmig(&net.a, &["inspect", image]));
                assert!(shown.contains("CLOSED\n"), "{shown}");
            }
        },
    );
}

#[test]
fn a_flow_is_found_in_a_process_that_gives_its_descriptors_other_meanings() {
    isolated(
        "which::a_flow_is_found_in_a_process_that_gives_its_descriptors_other_meanings",
        || {
            let net = Net::new();
            let script = format!(
                "{LISTENS}
one, _ = listener.accept()
two, _ = listener.accept()
os.dup2(one.detach(), 50)
os.dup2(two.detach(), 51)
os.closerange(3, 50)
print('swaps')
while True:
    os.dup2(50, 60)
    os.dup2(51, 50)
    os.dup2(60, 51)
    os.close(60)
"
            );
            let server = python(&net, &script);
            let (_one, _two) = (connect(&net, 5555), connect(&net, 5556));
            assert_eq!(server.hear(), "swaps");
            for n in 0..40 {
                let flow = format!("{SERVICE},198.18.0.9:{}", 5555 + n % 2);
                let image = net.file(&format!("image{n}"));
                let image = image.to_str().unwrap();
                let dump = ["--json", "dump", "--flow", &flow, "-o", image, "--keep"];
                let said: Value = serde_json::from_str(&succeeds(&tcpmig(&net.a, &dump))).unwrap();
                assert_eq!(said["flow"], flow);
            }
        },
    );
}

/// Bytes that are not like those before or after them.
fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect()
}

#[test]
fn queues_of_more_than_64_mib_are_carried_by_a_file() {
    isolated(
        "which::queues_of_more_than_64_mib_are_carried_by_a_file",
        || {
            const QUEUED: usize = 70 << 20;
            let net = Net::new();
            for host in [&net.a, &net.b, &net.peer] {
                for name in ["rmem", "wmem"] {
                    let size = if host.name() == "peer" && name == "rmem" {
                        200_000
                    } else {
                        400 << 20
                    };
                    host.set(
                        &format!("net/ipv4/tcp_{name}"),
                        &format!("4096 {size} {size}"),
                    )
                    .unwrap();
                }
            }
            let script = format!(
                "{LISTENS}
c, _ = listener.accept()
data = bytes(((n * 2654435761) % 4294967296) >> 24 for n in range(1 << 16))
c.setblocking(False)
sent = 0
import errno
# It sends the beginning of the pattern again and again.
while sent < {QUEUED}:
    at = sent % (1 << 16)
    sent += c.send(data[at:])
print(c.fileno())
sys.stdin.read()
"
            );
            let server = python(&net, &script);
            let peer = connect(&net, 5555);
            let fd = server.hear();
            // The server reads none of it.
            let sent = pattern(QUEUED);
            let mut up = peer.try_clone().unwrap();
            up.write_all(&sent).unwrap();
            let waits = || {
                let table = net
                    .a
                    .run(|| std::fs::read_to_string("/proc/thread-self/net/tcp"));
                let table = table.unwrap().unwrap();
                let line = table
                    .lines()
                    .find(|line| line.contains(":1B58 090012C6:15B3"))
                    .unwrap();
                let queues = line.split_whitespace().nth(4).unwrap();
                u32::from_str_radix(queues.split_once(':').unwrap().1, 16).unwrap() as usize
                    == QUEUED
            };
            until("all of it waits to be read", waits);
            let image = net.file("image");
            let image = image.to_str().unwrap();
            let pid = server.child.id().to_string();
            let dump = ["--json", "dump", "--pid", &pid, "--fd", &fd, "-o", image];
            let said: Value = serde_json::from_str(&succeeds(&tcpmig(&net.a, &dump))).unwrap();
            assert_eq!(said["receive_queue_bytes"], QUEUED);
            assert!(
                said["send_queue_bytes"].as_u64().unwrap() > 64 << 20,
                "{said}"
            );
            let mut restore = net.b.command(&TCPMIG).unwrap();
            restore.args(["restore", image, "--", "sha256sum"]);
            let program = Program::spawn(&mut restore);
            until("it lives on host B", || {
                let table = net
                    .b
                    .run(|| std::fs::read_to_string("/proc/thread-self/net/tcp"));
                table.unwrap().unwrap().contains(":1B58 090012C6:15B3 01")
            });
            net.point_peer_at_b();
            let mut down = vec![0; QUEUED];
            (&peer).read_exact(&mut down).unwrap();
            let expected = pattern(1 << 16);
            assert!(
                down.chunks(1 << 16)
                    .all(|chunk| *chunk == expected[..chunk.len()])
            );
            peer.shutdown(std::net::Shutdown::Write).unwrap();
            // The new owner has read the other 70 MiB, and says so to the peer.
            let mut sum = String::new();
            (&peer).read_to_string(&mut sum).unwrap();
            drop(program);
            let mut check = std::process::Command::new("sha256sum")
                .stdin(std::process::Stdio::piped())
                .stdout(std::process::Stdio::piped())
                .spawn()
                .unwrap();
            check.stdin.take().unwrap().write_all(&sent).unwrap();
            let check = check.wait_with_output().unwrap();
            assert_eq!(sum, String::from_utf8(check.stdout).unwrap());
        },
    );
}
