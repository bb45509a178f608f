//! The module for nginx: its connections at rest go from host to host.

use std::fs::{self, File, Permissions};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tcpmig::agent::{Client, Fate, Service};
use tcpmig::session::{Departed, Parts, Way};
use tcpmig_format::{FourTuple, Layer};
use tcpmig_sys::kernel_test;
use tcpmig_sys::lab::{Host, PATIENCE, World, eventually, pattern, until};

use crate::agents::{Hosts, PORT, runtime};
use crate::built::{Installed, run, said};

const WORKERS: usize = 2;

/// A port whose connections begin with a line about the client, and stay.
const STAYS: &str = "8081";

/// Whether this is root of more than itself: only then can nginx run its workers as somebody else.
fn has_other_users() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap();
    map.split_whitespace().nth(2) != Some("1")
}

/// The user of nginx's workers, who is unprivileged.
fn user() -> &'static str {
    if has_other_users() {
        "www-data"
    } else {
        "root"
    }
}

/// Puts the module into the folder, built as its README says; once for all tests of this process.
fn module(installed: &Installed) -> PathBuf {
    static BUILT: OnceLock<Vec<u8>> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        let mut build = Command::new("bash");
        build.arg(installed.path("nginx/build"));
        build.arg(installed.path("nginx"));
        run(build.env("PREFIX", installed.path("prefix/usr")));
        fs::read(installed.path("nginx/ngx_http_tcpmig_module.so")).unwrap()
    });
    let path = installed.path("module.so");
    // An nginx that runs has it mapped: it must not change.
    if !path.exists() {
        fs::write(&path, built).unwrap();
    }
    path
}

/// The configuration of an nginx that has what is said of events and of HTTP.
fn config(installed: &Installed, of: &str, http: &str) -> PathBuf {
    let folder = installed.path(&format!("nginx.{of}"));
    fs::create_dir_all(&folder).unwrap();
    let module = module(installed);
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|one| format!("{one}_temp_path {}/{one};", folder.display()))
        .join("\n");
    let text = format!(
        "load_module {};
        user {user} {group};
        worker_processes {WORKERS};
        pid {folder}/pid;
        events {{ worker_connections 256; }}
        http {{
            access_log off;
            keepalive_requests 100000000;
            {temporary}
            {http}
        }}",
        module.display(),
        user = user(),
        group = user(),
        folder = folder.display(),
    );
    let path = folder.join("nginx.conf");
    fs::write(&path, text).unwrap();
    path
}

/// An nginx. Its processes are in a namespace of their own, so that they end when this does.
struct Nginx {
    child: Child,
    log: PathBuf,
}

impl Nginx {
    fn start(hosts: &Hosts, of: &str) -> Self {
        let installed = &hosts.installed;
        // For the user of the workers.
        fs::set_permissions(installed.path("."), Permissions::from_mode(0o711)).unwrap();
        let address = World::SERVICE[0];
        let socket = hosts.socket(of);
        let http = format!(
            "tcpmig_agent {};
            server {{
                listen {address}:{PORT};
                listen {address}:{STAYS} proxy_protocol;
                tcpmig_service web;
                add_header X-Host {of};
                add_header X-Requests $connection_requests;
                location / {{ return 200 hello; }}
            }}",
            socket.display()
        );
        let config = config(installed, of, &http);
        let log = installed.path(&format!("nginx.{of}/log"));
        let mut command = hosts.host(of).command("unshare").unwrap();
        command.args(["--pid", "--fork", "--kill-child", "--"]);
        if !has_other_users() {
            command.args(["setpriv", "--no-new-privs", "--inh-caps=-all"]);
            command.args(["--bounding-set=-all", "--"]);
        }
        command.args(["nginx", "-c"]).arg(config);
        command
            .arg("-g")
            .arg(format!("daemon off; error_log {} notice;", log.display()));
        let said = File::create(installed.path(&format!("nginx.{of}/said"))).unwrap();
        command.stderr(said.try_clone().unwrap()).stdout(said);
        let child = installed.with_library(&mut command).spawn().unwrap();
        Self { child, log }
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until so many lines have this in them.
    fn says(&mut self, part: &str, times: usize) {
        until(part, || {
            let log = self.log();
            let has = log.lines().filter(|line| line.contains(part)).count() >= times;
            let ended = self.child.try_wait().unwrap();
            assert!(has || ended.is_none(), "{ended:?} {log}");
            has
        });
    }

    /// The process that is the parent of the workers.
    fn master(&self) -> Pid {
        let id = self.child.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
        Pid::from_raw(children.trim().parse().unwrap())
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("{}: {}", self.log.display(), self.log());
        }
    }
}

/// The processes that are registered at an agent.
fn registered(hosts: &Hosts, of: &str) -> Vec<u32> {
    let status = runtime().block_on(async {
        let client = Client::connect(hosts.socket(of)).await.ok()?;
        client.status().await.ok()
    });
    let services = status.into_iter().flat_map(|status| status.services);
    let mut processes: Vec<u32> = services.map(|one| one.process).collect();
    processes.sort_unstable();
    processes
}

fn until_registered(hosts: &Hosts, of: &str) {
    until("each worker is registered", || {
        registered(hosts, of).len() == WORKERS
    });
}

/// Two hosts with an agent and an nginx each.
fn both() -> (Hosts, Nginx, Nginx) {
    let hosts = Hosts::new();
    let (a, b) = (Nginx::start(&hosts, "a"), Nginx::start(&hosts, "b"));
    until_registered(&hosts, "a");
    until_registered(&hosts, "b");
    (hosts, a, b)
}

/// Reads an answer: its head and its body.
fn answer(stream: &mut TcpStream) -> (String, Vec<u8>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.extend(byte);
    }
    let head = String::from_utf8(head).unwrap();
    let length = field(&head, "Content-Length").parse().unwrap();
    let mut body = vec![0; length];
    stream.read_exact(&mut body).unwrap();
    (head, body)
}

fn field<'a>(head: &'a str, name: &str) -> &'a str {
    let lines = head.lines().filter_map(|line| line.split_once(": "));
    let mut found = lines.filter(|(this, _)| this.eq_ignore_ascii_case(name));
    found.next().unwrap_or_else(|| panic!("{head}")).1
}

/// A client with one connection.
struct Visitor(TcpStream);

impl Visitor {
    fn new(peer: &Host) -> Self {
        Self::at(peer, PORT)
    }

    fn at(peer: &Host, port: &str) -> Self {
        let connect = || TcpStream::connect(format!("{}:{port}", World::SERVICE[0]));
        let stream = peer.run(connect).unwrap().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(stream)
    }

    fn say(&mut self, bytes: &str) {
        self.0.write_all(bytes.as_bytes()).unwrap();
    }

    /// Which host answers, and how many requests it knows of on this connection.
    fn hears(&mut self) -> (String, u64) {
        let (head, body) = answer(&mut self.0);
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        assert_eq!(body, b"hello");
        let requests = field(&head, "X-Requests").parse().unwrap();
        (field(&head, "X-Host").to_owned(), requests)
    }

    fn asks(&mut self) -> (String, u64) {
        self.say("GET / HTTP/1.1\r\nHost: example\r\n\r\n");
        self.hears()
    }
}

kernel_test!(connections_at_rest_go_to_and_fro, || {
    let (hosts, mut a, _b) = both();
    let peer = &hosts.world.peer;
    let mut rest = [(); 5].map(|()| Visitor::new(peer));
    for one in &mut rest {
        assert_eq!(one.asks(), ("a".to_owned(), 1));
    }
    let mut stays = Visitor::at(peer, STAYS);
    stays.say("PROXY TCP4 198.18.0.7 198.18.0.80 1 2\r\n");
    assert_eq!(stays.asks(), ("a".to_owned(), 1));
    let mut fresh = Visitor::new(peer);
    let mut half = Visitor::new(peer);
    half.say("GET / HTTP/1.1\r\nHo");
    let moved = thread::scope(|scope| {
        let drain = scope.spawn(|| hosts.drain("a", "b"));
        // They go on meanwhile.
        for one in &mut rest {
            eventually("it is at b", || (one.asks().0 == "b").then_some(()));
        }
        a.says("connections leave", WORKERS);
        assert!(!drain.is_finished());
        half.say("st: example\r\n\r\n");
        assert_eq!(half.hears(), ("a".to_owned(), 1));
        drain.join().unwrap()
    });
    assert_eq!(moved, 7);
    assert_eq!(fresh.asks(), ("b".to_owned(), 1));
    assert_eq!(half.asks(), ("b".to_owned(), 2));
    assert_eq!(stays.asks(), ("a".to_owned(), 2));
    for requests in [2, 4, 6] {
        assert_eq!(hosts.drain("b", "a"), 7);
        assert_eq!(fresh.asks(), ("a".to_owned(), requests));
        assert_eq!(hosts.drain("a", "b"), 7);
        assert_eq!(fresh.asks(), ("b".to_owned(), requests + 1));
    }
    for one in rest.iter_mut().chain([&mut half]) {
        assert_eq!(one.asks().0, "b");
    }
    // nginx notices the end of a connection that has come.
    drop(rest);
    fresh.0.shutdown(Shutdown::Write).unwrap();
    assert_eq!(fresh.0.read(&mut [0]).unwrap(), 0);
    until("only one is left", || {
        hosts.drain("b", "a");
        hosts.drain("a", "b") == 1
    });
});

// Two workers serve the address, and both are asked.
kernel_test!(
    one_that_somebody_wants_leaves_whichever_worker_has_it,
    || {
        let (hosts, _a, _b) = both();
        let peer = &hosts.world.peer;
        let mut stays = Visitor::new(peer);
        assert_eq!(stays.asks(), ("a".to_owned(), 1));
        for _ in 0..6 {
            let mut wanted = Visitor::new(peer);
            assert_eq!(wanted.asks(), ("a".to_owned(), 1));
            let (local, remote) = (wanted.0.peer_addr(), wanted.0.local_addr());
            let flow = FourTuple::new(local.unwrap(), remote.unwrap()).unwrap();
            let fate = hosts.moves("a", "b", flow);
            assert!(matches!(fate, Fate::Moved(_)), "{fate:?}");
            assert_eq!(wanted.asks(), ("b".to_owned(), 2));
        }
        assert_eq!(stays.asks(), ("a".to_owned(), 2));
    }
);

/// Stops wrk, and looks at what it says.
fn nothing_failed(wrk: Child) -> u64 {
    kill(Pid::from_raw(wrk.id().cast_signed()), Signal::SIGINT).unwrap();
    let output = wrk.wait_with_output().unwrap();
    let report = said(&output);
    assert!(output.status.success(), "{report}");
    assert!(!report.contains("Socket errors"), "{report}");
    assert!(!report.contains("Non-2xx"), "{report}");
    let line = report.lines().find(|line| line.contains(" requests in "));
    let requests = line.unwrap_or_else(|| panic!("{report}"));
    requests.split_whitespace().next().unwrap().parse().unwrap()
}

kernel_test!(wrk_has_no_failure_while_they_go_to_and_fro, || {
    const CONNECTIONS: u64 = 20;
    let (hosts, _a, _b) = both();
    // Some think for a moment between two requests.
    let script = hosts.installed.path("think.lua");
    fs::write(&script, "function delay() return math.random(0, 9) end\n").unwrap();
    let mut wrk = hosts.world.peer.command("wrk").unwrap();
    wrk.args(["-t1", "-d1h", "--timeout", "120s"]);
    wrk.arg(format!("-c{CONNECTIONS}"));
    wrk.arg("-s").arg(script);
    wrk.arg(format!("http://{}:{PORT}/", World::SERVICE[0]));
    let wrk = wrk.stdout(Stdio::piped()).stderr(Stdio::piped());
    let wrk = wrk.spawn().unwrap();
    // wrk needs a moment until it has opened all of them.
    until("all connections go to and fro", || {
        hosts.drain("a", "b");
        hosts.drain("b", "a") >= CONNECTIONS
    });
    let mut moved = 0;
    for _ in 0..5 {
        moved += hosts.drain("a", "b");
        moved += hosts.drain("b", "a");
    }
    let requests = nothing_failed(wrk);
    println!(
        "{CONNECTIONS} connections, {moved} moves in 10 drains, {requests} requests, no failure"
    );
    assert!(moved >= 10 * CONNECTIONS, "{moved} moves");
    assert!(requests > moved, "{requests} requests, {moved} moves");
});

kernel_test!(it_goes_on_without_an_agent_and_finds_the_next, || {
    let mut hosts = Hosts::without_agents();
    let (mut a, mut b) = (Nginx::start(&hosts, "a"), Nginx::start(&hosts, "b"));
    for nginx in [&mut a, &mut b] {
        nginx.says("TCPMIG_UNREACHABLE", WORKERS);
    }
    let mut visitor = Visitor::new(&hosts.world.peer);
    assert_eq!(visitor.asks(), ("a".to_owned(), 1));
    let restart = |hosts: &mut Hosts| {
        for of in ["a", "b"] {
            hosts.stop_agent(of);
        }
        for of in ["a", "b"] {
            hosts.start_agent(of);
            until_registered(hosts, of);
        }
    };
    restart(&mut hosts);
    assert_eq!(hosts.drain("a", "b"), 1);
    assert_eq!(visitor.asks(), ("b".to_owned(), 2));
    restart(&mut hosts);
    assert_eq!(visitor.asks(), ("b".to_owned(), 3));
    assert_eq!(hosts.drain("b", "a"), 1);
    assert_eq!(visitor.asks(), ("a".to_owned(), 4));

    // New workers take the place of the old ones, which close what is at rest.
    let before = registered(&hosts, "b");
    kill(b.master(), Signal::SIGHUP).unwrap();
    until("the new workers are registered", || {
        let now = registered(&hosts, "b");
        now.len() == WORKERS && now.iter().all(|process| !before.contains(process))
    });
    assert_eq!(hosts.drain("a", "b"), 1);
    assert_eq!(visitor.asks(), ("b".to_owned(), 5));
    assert!(!a.log().contains("[alert]"), "{}", a.log());
    assert!(!b.log().contains("[alert]"), "{}", b.log());
});

/// What another server on host A gives away: bytes that it had not written, and the module's layer.
fn given(hosts: &Hosts, server: TcpStream, unsent: &[u8], kind: &str) -> String {
    let mut buffers = vec![0; 8];
    buffers.extend(unsent);
    let mut state = Vec::new();
    state.extend(4_u32.to_be_bytes());
    state.extend(7_u32.to_be_bytes());
    state.extend(60_000_u64.to_be_bytes());
    state.extend(600_000_u64.to_be_bytes());
    let parts = Parts {
        socket: OwnedFd::from(server),
        layers: vec![
            Layer::new("org.tcpmig.buffers", 1, buffers),
            Layer::new(kind, 1, state),
        ],
    };
    runtime().block_on(async {
        let client = Client::connect(hosts.socket("a")).await.unwrap();
        let address: SocketAddr = format!("{}:{PORT}", World::SERVICE[0]).parse().unwrap();
        let service = Service::new("web").address(address);
        let _events = client.register(service).await.unwrap();
        let to = "b.example".to_owned();
        match client.way("web").depart(parts, &to).await {
            Departed::Moved(_) => "moved".to_owned(),
            Departed::Kept { cause, .. } => cause.to_string(),
            other => format!("{other:?}"),
        }
    })
}

kernel_test!(what_was_not_written_goes_before_the_next_answer, || {
    let hosts = Hosts::new();
    let _b = Nginx::start(&hosts, "b");
    until_registered(&hosts, "b");
    let listen = || TcpListener::bind(format!("{}:{PORT}", World::SERVICE[0]));
    let listener = hosts.world.a.run(listen).unwrap().unwrap();
    let connection = || {
        let visitor = Visitor::new(&hosts.world.peer);
        (visitor, listener.accept().unwrap().0)
    };

    let (_visitor, server) = connection();
    let reason = given(&hosts, server, b"", "org.example.chat");
    assert!(
        reason.contains("not a connection at rest of nginx"),
        "{reason}"
    );

    // More than the socket takes before the peer reads.
    let body = pattern(1, 8 << 20);
    let mut unsent =
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
    unsent.extend(&body);
    let (mut visitor, server) = connection();
    assert_eq!(given(&hosts, server, &unsent, "org.tcpmig.nginx"), "moved");
    assert!(answer(&mut visitor.0).1 == body);
    assert_eq!(visitor.asks(), ("b".to_owned(), 8));
});

kernel_test!(wrong_configuration_is_named, || {
    let host = Host::alone("nginx").unwrap();
    let installed = Installed::new();
    let test = |http: &str| {
        let config = config(&installed, "t", http);
        let mut command = host.command("nginx").unwrap();
        command.arg("-t").arg("-c").arg(config);
        command.arg("-g").arg("error_log stderr info;");
        let output = installed.with_library(&mut command).output().unwrap();
        (output.status.success(), said(&output))
    };
    let plain = "listen 127.0.0.1:8080;";
    let (is_right, said) = test(&format!(
        "server {{ {plain} listen 127.0.0.1:8081 http2; tcpmig_service web; }}"
    ));
    assert!(is_right, "{said}");
    assert!(
        said.contains("connections to 127.0.0.1:8081 stay (http2)"),
        "{said}"
    );
    let long = "x".repeat(108);
    for (http, says) in [
        (format!("tcpmig_agent /a; tcpmig_agent /b; server {{ {plain} tcpmig_service web; }}"), "\"tcpmig_agent\" directive is duplicate"),
        (format!("tcpmig_agent ''; server {{ {plain} }}"), "\"tcpmig_agent\" directive has an empty path"),
        (format!("tcpmig_agent /{long}; server {{ {plain} }}"), "at most 107 bytes"),
        (format!("server {{ {plain} tcpmig_service a; tcpmig_service b; }}"), "\"tcpmig_service\" directive is duplicate"),
        (format!("server {{ {plain} tcpmig_service ''; }}"), "\"tcpmig_service\" directive has an empty name"),
        (format!("server {{ {plain} tcpmig_service web; }} server {{ {plain} server_name other; }}"), "server \"other\" and the default server of 127.0.0.1:8080 have different tcpmig_service"),
        ("server { listen 127.0.0.1:8080 proxy_protocol; listen 127.0.0.1:8081 http2; tcpmig_service web; }".to_owned(), "tcpmig_service \"web\" has no address whose connections can move"),
    ] {
        let (is_right, said) = test(&http);
        assert!(!is_right && said.contains(says), "{http}: {said}");
    }
    let (is_right, said) = test(&format!("tcpmig_agent /a; server {{ {plain} }}"));
    assert!(
        is_right && said.contains("tcpmig_agent is of no use"),
        "{said}"
    );
});
