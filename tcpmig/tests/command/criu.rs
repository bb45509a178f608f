//! Connections of CRIU's images go on. The images are made here, of what the kernel says of real connections.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tcpmig_format::{Image, Limits, TcpParts, TcpState};
use tcpmig_sys::lab::isolated;

use crate::support::{Echo, Net, Program, TCPMIG, fails, succeeds, tcpmig, text, until};

/// A message of protobuf, by the numbers of CRIU's `.proto` files.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn number(mut self, tag: u64, value: impl Into<u64>) -> Self {
        self.varint(tag << 3);
        self.varint(value.into());
        self
    }

    fn message(mut self, tag: u64, of: Self) -> Self {
        self.varint(tag << 3 | 2);
        self.varint(of.0.len() as u64);
        self.0.extend(of.0);
        self
    }
}

fn file(magic: u32, message: &Message, rest: &[&[u8]]) -> Vec<u8> {
    let mut file = [0x5456_4319, magic, message.0.len() as u32]
        .map(u32::to_le_bytes)
        .concat();
    file.extend(&message.0);
    file.extend(rest.concat());
    file
}

/// What CRIU writes of a connection: numbers with the FINs that its state tells of, queues without.
fn tcp_stream(tcp: &TcpParts) -> Vec<u8> {
    let (send, receive) = (&tcp.send, &tcp.receive);
    let (sent, received) = (tcp.state.fin_sent(), tcp.state.fin_received());
    let rcv_nxt = receive.rcv_nxt + u32::from(received);
    let agreed = &tcp.negotiated;
    let scale = agreed.window_scale.unwrap_or_default();
    let clock = agreed.timestamps.unwrap_or_default();
    let mask = u32::from(agreed.timestamps.is_some())
        | u32::from(agreed.sack) << 1
        | u32::from(agreed.window_scale.is_some()) << 2;
    let of_fin = |seq| if seq == receive.rcv_nxt { rcv_nxt } else { seq };
    let message = Message::default()
        .number(1, receive.queue.len() as u64)
        .number(2, rcv_nxt.get())
        .number(3, (send.sent.len() + send.unsent.len()) as u64)
        .number(4, (send.write_seq() + u32::from(sent)).get())
        .number(5, mask)
        .number(6, scale.snd)
        .number(7, agreed.mss_clamp)
        .number(8, scale.rcv)
        .number(9, clock.value)
        .number(12, send.unsent.len() as u64)
        .number(13, tcp.window.snd_wl1.get())
        .number(14, tcp.window.snd_wnd)
        .number(15, tcp.window.max_window)
        .number(16, tcp.window.rcv_wnd)
        .number(17, of_fin(tcp.window.rcv_wup).get());
    file(
        0x5146_5506,
        &message,
        &[&receive.queue, &send.sent, &send.unsent],
    )
}

/// A `files.img` with one connection of IPv4.
fn files(inode: u32, state: TcpState, flow: &str) -> Vec<u8> {
    let (local, remote) = flow.split_once(',').unwrap();
    let end = |end: &str| {
        let end: std::net::SocketAddrV4 = end.parse().unwrap();
        (u32::from_le_bytes(end.ip().octets()), end.port())
    };
    let ((src_addr, src_port), (dst_addr, dst_port)) = (end(local), end(remote));
    let options = Message::default()
        .number(1, 87_040_u32)
        .number(2, 131_072_u32)
        .number(3, 0_u32)
        .number(4, 0_u32)
        .number(5, 0_u32)
        .number(6, 0_u32)
        .number(7, 1_u32);
    let socket = Message::default()
        .number(1, 2_u32)
        .number(2, inode)
        .number(3, 2_u32)
        .number(4, 1_u32)
        .number(5, 6_u32)
        .number(6, state.number())
        .number(7, src_port)
        .number(8, dst_port)
        .number(9, 2_u32)
        .number(10, 0_u32)
        .number(11, src_addr)
        .number(12, dst_addr)
        .message(13, Message::default())
        .message(14, options);
    let entry = Message::default()
        .number(1, 4_u32)
        .number(2, 2_u32)
        .message(4, socket);
    file(0x5630_3138, &entry, &[])
}

/// The connection is dumped, and what CRIU would have written of it is there: the name of its stream.
fn dumped(net: &Net, echo: &Echo) -> PathBuf {
    let image = net.file("own.image");
    let dump = ["dump", "--flow", &echo.flow, "-o", image.to_str().unwrap()];
    succeeds(&tcpmig(&net.a, &dump));
    let image = Image::decode(&std::fs::read(image).unwrap(), &Limits::default()).unwrap();
    let tcp = image.tcp().unwrap().parts();
    std::fs::write(net.file("files.img"), files(0x2a, tcp.state, &echo.flow)).unwrap();
    let stream = net.file("tcp-stream-2a.img");
    std::fs::write(&stream, tcp_stream(tcp)).unwrap();
    stream
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// It reads nothing more.
fn stop(server: &Child) {
    let pid = Pid::from_raw(server.id().cast_signed());
    kill(pid, Signal::SIGSTOP).unwrap();
}

#[test]
fn a_connection_of_criu_goes_on() {
    isolated("criu::a_connection_of_criu_goes_on", || {
        let net = Net::new();
        let mut echo = net.echo();
        let stream = dumped(&net, &echo);

        let listed = succeeds(&tcpmig(&net.a, &["inspect", path(&net.file("files.img"))]));
        for said in ["tcp-stream-2a.img", "ESTABLISHED", &echo.flow] {
            assert!(listed.contains(said), "{listed}");
        }
        let shown = succeeds(&tcpmig(&net.a, &["inspect", path(&stream)]));
        for said in ["CRIU", "198.18.0.80:7000", "ESTABLISHED"] {
            assert!(shown.contains(said), "{shown}");
        }
        let image = net.file("imported.image");
        let import = ["--json", "import", path(&stream), "-o", path(&image)];
        let said: serde_json::Value =
            serde_json::from_str(&succeeds(&tcpmig(&net.a, &import))).unwrap();
        assert_eq!(said["flow"], echo.flow);
        let lacks = said["lacks"].as_array().unwrap();
        assert!(lacks.contains(&"congestion_control".into()), "{said}");

        let mut restore = net.a.command(&TCPMIG).unwrap();
        restore.args(["restore", path(&image), "--", "sed", "-u", "s/^/again: /"]);
        let mut server = Program::spawn(&mut restore);
        echo.client.say("two");
        assert_eq!(echo.client.hear(), "again: two");
        assert!(echo.client.ends());
        assert!(server.ends());
    });
}

#[test]
fn a_connection_that_its_peer_has_closed_goes_on() {
    isolated(
        "criu::a_connection_that_its_peer_has_closed_goes_on",
        || {
            let net = Net::new();
            let mut talk = net.talk();
            // What is in front of the FIN waits to be read.
            use nix::sys::signal::{Signal, kill};
            let server = nix::unistd::Pid::from_raw(talk.server.child.id().cast_signed());
            kill(server, Signal::SIGSTOP).unwrap();
            talk.client.say("the last words");
            talk.client.stdin = None;
            until("the peer has closed", || {
                let table = net
                    .a
                    .run(|| std::fs::read_to_string("/proc/thread-self/net/tcp"));
                // CLOSE-WAIT
                let table = table.unwrap().unwrap();
                table
                    .lines()
                    .any(|line| line.split_whitespace().nth(3) == Some("08"))
            });
            let stream = dumped(&net, &talk);
            let image = net.file("imported.image");
            succeeds(&tcpmig(
                &net.a,
                &["import", path(&stream), "-o", path(&image)],
            ));
            let shown = succeeds(&tcpmig(&net.a, &["inspect", path(&image)]));
            assert!(shown.contains("CLOSE-WAIT"), "{shown}");

            let mut restore = net.a.command(&TCPMIG).unwrap();
            restore.args(["restore", path(&image), "--", "sed", "-u", "s/^/heard: /"]);
            let mut server = Program::spawn(&mut restore);
            assert_eq!(talk.client.hear(), "heard: the last words");
            assert!(server.ends());
            assert!(talk.client.ends());
        },
    );
}

/// By CRIU itself, where there is one that runs.
#[test]
#[ignore = "needs a criu(8) that runs on this kernel: .ci/kernels has one on 6.1"]
fn a_dump_of_criu_itself_goes_on() {
    isolated("criu::a_dump_of_criu_itself_goes_on", || {
        let net = Net::new();
        let criu = |arguments: &[&str]| {
            let output = net.a.command("criu").unwrap().args(arguments).output();
            let output = output.expect("criu is installed");
            let said = text(&output.stdout) + &text(&output.stderr);
            (output.status.success(), said)
        };
        let (runs, said) = criu(&["check"]);
        if !runs {
            println!("not applicable: criu does not run here: {said}");
            return;
        }
        let mut command = net.a.command("setsid").unwrap();
        command.args([
            "socat",
            "TCP-LISTEN:7000,bind=198.18.0.80,reuseaddr",
            "PIPE",
        ]);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut server = command.spawn().unwrap();
        let has = |what: &str| {
            let table = net
                .a
                .run(|| std::fs::read_to_string("/proc/thread-self/net/tcp"));
            table.unwrap().unwrap().contains(what)
        };
        until("socat listens", || has(":1B58 00000000:0000 0A"));
        let mut client = Program::start(&net.peer, "nc", &["-N", "198.18.0.80", "7000"]);
        client.say("one");
        assert_eq!(client.hear(), "one");
        stop(&server);
        client.say("unread");
        until("the line is there", || has("00000000:00000007"));

        let folder = net.file("dump");
        std::fs::create_dir(&folder).unwrap();
        let pid = server.id().to_string();
        let dump = [
            "dump",
            "--tcp-established",
            "-t",
            &pid,
            "-D",
            path(&folder),
            "-o",
            "log",
        ];
        let (dumped, said) = criu(&dump);
        let log = || std::fs::read_to_string(folder.join("log")).unwrap_or_default();
        assert!(dumped, "{said}\n{}", log());
        server.wait().unwrap();
        let files = std::fs::read_dir(&folder).unwrap();
        let stream = files
            .map(|file| file.unwrap().path())
            .find(|file| path(file).contains("tcp-stream-"));
        let stream = stream.expect("a connection was dumped");
        let image = net.file("imported.image");
        succeeds(&tcpmig(
            &net.a,
            &["import", path(&stream), "-o", path(&image)],
        ));
        let mut restore = net.a.command(&TCPMIG).unwrap();
        restore.args(["restore", path(&image), "--", "sed", "-u", "s/^/again: /"]);
        let mut server = Program::spawn(&mut restore);
        until("the connection lives here", || has(":1B58 090012C6:"));
        // What CRIU keeps the packets away with.
        net.a
            .command("iptables")
            .unwrap()
            .arg("-F")
            .status()
            .unwrap();
        assert_eq!(client.hear(), "again: unread");
        client.say("two");
        assert_eq!(client.hear(), "again: two");
        assert!(client.ends());
        assert!(server.ends());
    });
}

#[test]
fn what_is_no_dump_of_a_connection_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let in_folder = |name: &str| folder.path().join(name);
    let run = |arguments: &[&str]| Command::new(&*TCPMIG).args(arguments).output().unwrap();
    let image = in_folder("image");
    let import = |stream: &Path, more: &[&str]| {
        let arguments = [&["import", path(stream), "-o", path(&image)], more].concat();
        let output = run(&arguments);
        // Nothing is left of what was not made.
        assert!(!image.exists());
        output
    };
    let stream = in_folder("tcp-stream-2a.img");
    std::fs::write(&stream, file(0x5146_5506, &Message::default(), &[])).unwrap();
    fails(&import(&stream, &[]), 1, &["files.img", "--files"]);

    let flow = "10.0.0.1:80,10.0.0.9:51234";
    let files_img = in_folder("files.img");
    std::fs::write(&files_img, files(0x2a, TcpState::Established, flow)).unwrap();
    fails(&import(&stream, &[]), 1, &["has no inq_len"]);
    let swapped = ["--files", path(&stream)];
    fails(
        &import(&stream, &swapped),
        1,
        &["not a files image of CRIU"],
    );

    // The socket of another dump.
    std::fs::write(&files_img, files(0x2b, TcpState::Established, flow)).unwrap();
    let whole = Message::default().number(1, 0_u32).number(3, 0_u32);
    std::fs::write(&stream, file(0x5146_5506, &whole, &[])).unwrap();
    fails(
        &import(&stream, &[]),
        1,
        &["no connection with inode 2a", "same dump"],
    );

    std::fs::write(&files_img, files(0x2a, TcpState::SynSent, flow)).unwrap();
    fails(&import(&stream, &[]), 1, &["SYN-SENT"]);
    let no_files = in_folder("inventory.img");
    std::fs::write(&no_files, file(0x5831_3116, &Message::default(), &[])).unwrap();
    fails(
        &run(&["inspect", path(&no_files)]),
        1,
        &["says nothing about connections"],
    );
    std::fs::write(
        &files_img,
        file(0x5630_3138, &Message::default().number(1, 1_u32), &[]),
    )
    .unwrap();
    let nothing = run(&["inspect", path(&files_img)]);
    assert_eq!(nothing.status.code(), Some(4), "{}", text(&nothing.stdout));
}
