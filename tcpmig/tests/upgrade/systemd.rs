//! A service that systemd starts, reloads, and starts again after a crash: a stand-in for systemd says and keeps what that does.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;

use futures_util::{SinkExt, StreamExt};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tcpmig_sys::process::{exec, monotonic, passing};
use tokio_tungstenite::WebSocketStream;

use crate::service::{ARGUMENTS, SOCKET};
use crate::support::PATIENCE;
use crate::{are_whole, downloads};

/// What systemd is for one service.
struct Systemd {
    folder: tempfile::TempDir,
    socket: UnixDatagram,
    /// That of the socket unit.
    listener: TcpListener,
    stored: Vec<(String, OwnedFd)>,
    child: Option<Child>,
    /// The service, and its next versions, end with it.
    stdin: Option<ChildStdin>,
    lines: mpsc::Receiver<String>,
}

impl Systemd {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let lines = mpsc::channel().1;
        let mut systemd = Self {
            folder,
            socket,
            listener,
            stored: Vec::new(),
            child: None,
            stdin: None,
            lines,
        };
        systemd.start();
        systemd
    }

    fn start(&mut self) {
        // Its own number is known to nobody else.
        let mut command = Command::new("sh");
        command.args(["-c", "LISTEN_PID=$$ exec \"$0\" \"$@\""]);
        command
            .arg(std::env::current_exe().unwrap())
            .args(ARGUMENTS);
        let mut names = vec!["http".to_owned()];
        let mut descriptors = vec![OwnedFd::from(self.listener.try_clone().unwrap())];
        for (name, descriptor) in &self.stored {
            names.push(name.clone());
            descriptors.push(descriptor.try_clone().unwrap());
        }
        exec::pass(&mut command, &descriptors).unwrap();
        command
            .env("LISTEN_FDNAMES", names.join(":"))
            .env("NOTIFY_SOCKET", self.folder.path().join("notify"))
            .env(SOCKET, self.folder.path().join("app.sock"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        self.stdin = child.stdin.take();
        (self.child, self.lines) = (Some(child), lines);
        assert_eq!(self.told(), ["READY=1"]);
    }

    /// Waits until the service writes a line with that.
    fn says(&self, part: &str) {
        while !self
            .lines
            .recv_timeout(PATIENCE)
            .expect(part)
            .contains(part)
        {}
    }

    /// The next thing that systemd is told, but for what it is to keep or forget.
    fn told(&mut self) -> Vec<String> {
        loop {
            let told = self.next().expect("the service says something");
            if !told.is_empty() {
                return told;
            }
        }
    }

    /// The next message; nothing of one about descriptors.
    fn next(&mut self) -> Option<Vec<String>> {
        let mut message = [0; 4096];
        let (len, descriptors) = passing::receive_message(&self.socket, &mut message).ok()?;
        let text = std::str::from_utf8(&message[..len]).unwrap();
        let lines: Vec<_> = text.lines().map(str::to_owned).collect();
        let name = lines.iter().find_map(|line| line.strip_prefix("FDNAME="));
        match (&*lines[0], name) {
            ("FDSTORE=1", Some(name)) => {
                assert!(!descriptors.is_empty());
                let named = descriptors.into_iter().map(|fd| (name.to_owned(), fd));
                self.stored.extend(named);
            }
            ("FDSTOREREMOVE=1", Some(name)) => self.stored.retain(|(known, _)| known != name),
            _ => return Some(lines),
        }
        Some(Vec::new())
    }

    /// Hears what has been said until now.
    fn hears(&mut self) {
        self.socket.set_nonblocking(true).unwrap();
        while self.next().is_some_and(|told| told.is_empty()) {}
        self.socket.set_nonblocking(false).unwrap();
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.as_ref().unwrap().id().cast_signed())
    }

    fn port(&self) -> String {
        self.listener.local_addr().unwrap().port().to_string()
    }

    fn connect(&self) -> Client {
        let stream = TcpStream::connect(self.listener.local_addr().unwrap()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Client(stream)
    }

    fn crashes(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        self.hears();
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A client that keeps its connection.
struct Client(TcpStream);

impl Client {
    fn asks(&mut self) {
        let request = b"GET /who HTTP/1.1\r\nhost: service\r\n\r\n";
        self.0.write_all(request).unwrap();
    }

    fn answer(&mut self, visits: usize) {
        let (mut answer, mut buffer) = (String::new(), [0; 1000]);
        let end = format!("\r\n\r\nservice {visits} \n");
        while !answer.ends_with(&end) {
            let len = self.0.read(&mut buffer).expect("an answer");
            assert!(len > 0, "the connection has ended after {answer:?}");
            answer.push_str(std::str::from_utf8(&buffer[..len]).unwrap());
        }
    }

    fn visits(&mut self, visits: usize) {
        self.asks();
        self.answer(visits);
    }

    fn is_closed(&mut self) {
        assert!(matches!(self.0.read(&mut [0]), Ok(0) | Err(_)));
    }
}

#[test]
fn a_reload_replaces_the_service() {
    let mut systemd = Systemd::new();
    let curls = downloads(&systemd.port());
    let mut client = systemd.connect();
    let mut main = systemd.pid();
    for reload in 1..=3 {
        client.visits(reload);
        let before = monotonic();
        kill(main, Signal::SIGHUP).unwrap();
        let told = systemd.told();
        assert_eq!(told[0], "RELOADING=1");
        let since = told[1].strip_prefix("MONOTONIC_USEC=").unwrap();
        let since: u128 = since.parse().unwrap();
        assert!((before.as_micros()..=monotonic().as_micros()).contains(&since));
        let told = systemd.told();
        assert_eq!(told[1..], ["READY=1"]);
        let next = told[0].strip_prefix("MAINPID=").unwrap();
        let next = Pid::from_raw(next.parse().unwrap());
        assert_ne!(next, main);
        main = next;
        if reload == 1 {
            // It gives away what it has, and ends.
            let status = systemd.child.as_mut().unwrap().wait().unwrap();
            assert!(status.success(), "{status}");
        }
    }
    client.visits(4);
    are_whole(curls);
    assert!(systemd.stored.is_empty());
}

#[tokio::test]
async fn sessions_at_rest_outlive_a_crash() {
    let mut systemd = Systemd::new();
    let mut clients: Vec<_> = (0..3).map(|_| systemd.connect()).collect();
    for visit in 1..=2 {
        clients.iter_mut().for_each(|client| client.visits(visit));
    }
    let stream = tokio::net::TcpStream::connect(systemd.listener.local_addr().unwrap());
    let url = "ws://service/chat";
    let connected = tokio_tungstenite::client_async(url, stream.await.unwrap()).await;
    let (mut chat, _): (WebSocketStream<_>, _) = connected.unwrap();
    let mut ask = async |count: usize| {
        chat.send("who".into()).await.unwrap();
        let said = chat.next().await.unwrap().unwrap();
        assert_eq!(said.to_text().unwrap(), format!("service {count}"));
    };
    ask(1).await;
    let note = |systemd: &mut Systemd, sessions: usize| {
        kill(systemd.pid(), Signal::SIGUSR1).unwrap();
        systemd.says(&format!("noted {sessions}"));
        systemd.hears();
        assert_eq!(systemd.stored.len(), 2 * sessions);
    };
    note(&mut systemd, 4);
    // They go on as before; of one that ends nothing is kept.
    clients.pop();
    ask(2).await;
    clients.iter_mut().for_each(|client| client.visits(3));
    while systemd.stored.len() > 6 {
        assert_eq!(systemd.next().unwrap(), [""; 0]);
    }
    note(&mut systemd, 3);
    for crash in 1..=2 {
        systemd.crashes();
        // What comes meanwhile waits.
        clients[0].asks();
        let mut new = systemd.connect();
        new.asks();
        systemd.start();
        systemd.says("3 came back");
        new.answer(1);
        drop(new);
        clients[0].answer(3 + crash);
        ask(2 + crash).await;
        if crash == 1 {
            note(&mut systemd, 3);
        }
    }
    // What was used since is closed: nobody knows what it was.
    systemd.crashes();
    systemd.start();
    systemd.says("1 came back");
    clients[0].is_closed();
    clients[1].visits(4);
    systemd.hears();
    assert_eq!(systemd.stored.len(), 2);
}
