//! Clients that do what they should not, and an agent that goes on.

use std::process::Output;
use std::time::Instant;

use tcpmig_sys::kernel_test;

use crate::hosts::{DESCRIPTORS, Hosts, PYTHON, open_service, signal};
use crate::support::{Program, succeeds, text, until};
use crate::traffic::Traffic;

/// What scripts begin with.
const BEGIN: &str = r#"
import asyncio, os, socket, struct, sys, time
from tcpmig_agent import *
from tcpmig_agent import _flow

def link(path=sys.argv[1]):
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.settimeout(60)
    sock.connect(path)
    return sock

def hello(sock):
    sock.send(pack({"hello": {"oldest": 1, "newest": 1}}))
    assert "welcome" in unpack(sock.recv(MAX_PACKET))

def ask(sock, name, fields, *descriptors):
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(descriptors)}i", *descriptors))]
    sock.sendmsg([pack({name: fields})], rights if descriptors else [])
    return next(iter(unpack(sock.recv(MAX_PACKET)).items()))

def is_closed(sock):
    try:
        while sock.recv(MAX_PACKET):
            pass
        return True
    except ConnectionError:
        return True
"#;

/// A script of a user without privileges on host A, with the agent's socket as its argument.
fn script(hosts: &Hosts, code: &str) -> std::process::Command {
    hosts.python_files();
    let mut command = hosts.unprivileged("a", PYTHON);
    let folder = hosts.file("");
    command
        .arg("-B")
        .arg("-c")
        .arg(format!("{BEGIN}\n{code}"))
        .arg(&hosts.agent("a").socket)
        .env("PYTHONPATH", folder);
    command
}

fn runs(hosts: &Hosts, code: &str) {
    let Output { status, stderr, .. } = script(hosts, code).output().unwrap();
    assert!(status.success(), "{}", text(&stderr));
}

kernel_test!(what_breaks_the_protocol_ends_its_own_link_only, || {
    let hosts = Hosts::new();
    runs(
        &hosts,
        r#"
good = link()
hello(good)
for packet in [b"\xc1", b"x", pack({"give": {}}), pack({"nonsense": {"id": 1}}), pack({"take": {"id": 1}}) + b"x", pack([]),
               pack({"hello": {"oldest": 1, "newest": 1}}), b"\xdd\xff\xff\xff\xff", b"\x91" * 1000, pack({"status": {"id": -1}})]:
    bad = link()
    if packet[:6] != b"\x81\xa5hel":
        hello(bad)
    bad.send(packet)
    if packet[:6] == b"\x81\xa5hel":
        bad.recv(MAX_PACKET)
        bad.send(packet)
    assert is_closed(bad), packet
# Too many descriptors.
bad = link()
hello(bad)
pipe = os.pipe()
bad.sendmsg([pack({"status": {"id": 1}})], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("4i", *pipe, *pipe))])
assert is_closed(bad)
# Other versions, and no hello at all.
bad = link()
bad.send(pack({"hello": {"oldest": 2, "newest": 9}}))
assert is_closed(bad)
bad = link()
bad.send(pack({"status": {"id": 1}}))
assert is_closed(bad)
silent = link()
assert is_closed(silent)
name, fields = ask(good, "status", {"id": 5, "new field": [1]})
assert name == "status" and fields["id"] == 5 and fields["status"]["host"] == "a.example"
"#,
    );
});

kernel_test!(what_is_not_allowed_is_denied_by_name, || {
    let hosts = Hosts::with(|of| {
        let service = open_service(of).replace(r#"to = ["b.example"]"#, "to = []");
        service + "\n[services.other]\nusers = []\nports = [7001]\n"
    });
    let listener = r#"
listener = socket.create_server(("127.0.0.1", 7000))
stream = socket.create_connection(listener.getsockname())
there, _ = listener.accept()
"#;
    runs(
        &hosts,
        &(listener.to_owned()
            + r#"
agent = link()
hello(agent)
def fails(code, name, fields, *descriptors):
    said, answer = ask(agent, name, {"id": 1, **fields}, *descriptors)
    assert said in ("failed", "kept") and answer["code"] == code, (said, answer)
service = {"service": "counter", "addresses": ["198.18.0.80:7000"], "takes": False}
fails("denied", "register", {**service, "service": "other"})
fails("denied", "register", {**service, "service": "nothing"})
fails("denied", "register", {**service, "addresses": ["198.18.0.80:7001"]})
fails("denied", "register", {**service, "addresses": ["198.18.0.81:7000"]})
fails("invalid", "register", {**service, "addresses": []})
give = {"service": "counter", "to": "b.example", "layers": b""}
fails("unknown", "give", {**give, "to": "c.example"}, there.fileno())
fails("denied", "give", give, there.fileno())
fails("denied", "give", {**give, "service": "other"}, there.fileno())
fails("full", "give", give)
if os.getuid() != 0:
    fails("denied", "drain", {"to": ["b.example"]})
    fails("denied", "move", {"to": "b.example", "flow": _flow(there)}, there.fileno())
    assert ask(agent, "status", {"id": 2})[1]["status"]["services"] == []
stream.send(b"still here")
assert there.recv(10) == b"still here"
"#),
    );
});

kernel_test!(
    only_connections_of_the_service_and_of_this_host_are_taken,
    || {
        let hosts = Hosts::new();
        runs(
            &hosts,
            r#"
agent = link()
hello(agent)
def fails(code, descriptor):
    give = {"id": 1, "service": "counter", "to": "b.example", "layers": b""}
    said, answer = ask(agent, "give", give, descriptor)
    assert said == "kept" and answer["code"] == code, (said, answer)
listener = socket.create_server(("127.0.0.1", 7001))
stream = socket.create_connection(listener.getsockname())
fails("invalid", os.pipe()[0])
for one in [socket.socket(socket.AF_UNIX), socket.socket(), socket.socket(type=socket.SOCK_DGRAM), listener]:
    fails("invalid", one.fileno())
fails("denied", stream.fileno())
"#,
        );
    }
);

kernel_test!(a_flood_holds_nobody_up, || {
    let hosts = Hosts::new();
    let servers = [hosts.python("a"), hosts.python("b")];
    let traffic = Traffic::start(&hosts.peer);
    traffic.goes_on();
    // One reads nothing of its answers, one sends as much as it can, one sends pieces of what never comes.
    let floods = [
        r#"
agent = link()
hello(agent)
agent.setblocking(False)
sent = 0
end = time.monotonic() + 60
print("floods", flush=True)
while time.monotonic() < end:
    try:
        agent.send(pack({"status": {"id": 1}}))
        sent += 1
    except BlockingIOError:
        time.sleep(0.01)
    assert sent < 20000, "nothing limits what it sends and never reads"
"#,
        r#"
agent = link()
hello(agent)
print("floods", flush=True)
while True:
    assert ask(agent, "give", {"id": 1, "service": "counter", "to": "b.example", "layers": b""}, 0)[0] == "kept"
"#,
        r#"
print("floods", flush=True)
while True:
    agent = link()
    hello(agent)
    try:
        while True:
            agent.send(pack({"piece": {"id": 1, "octets": bytes(PIECE)}}))
    except (ConnectionError, socket.timeout):
        agent.close()
"#,
    ];
    let mut flooding: Vec<Program> = floods
        .iter()
        .map(|code| Program::spawn(&mut script(&hosts, code)))
        .collect();
    for flood in &flooding {
        assert_eq!(flood.hear(), "floods");
    }
    let begin = Instant::now();
    for round in 0..6 {
        traffic.goes_on();
        signal(&servers[round % 2], "USR1");
        until("it has moved", || {
            servers[round % 2].hear().starts_with("moved")
        });
    }
    println!("six moves beside floods took {:?}", begin.elapsed());
    for flood in &mut flooding {
        assert_eq!(flood.child.try_wait().unwrap(), None, "a flood has ended");
    }
    traffic.ends_well();
});

kernel_test!(
    a_server_that_hangs_refuses_nothing_and_holds_nobody_up,
    || {
        let hosts = Hosts::new();
        let a = hosts.python("a");
        let mut b = hosts.python("b");
        let traffic = Traffic::start(&hosts.peer);
        traffic.goes_on();
        signal(&b, "STOP");
        signal(&a, "USR1");
        // It stands still for as long as the agent of the other host waits.
        let kept = a.hear();
        assert!(kept.starts_with("kept"), "{kept}");
        traffic.goes_on();
        signal(&b, "CONT");
        until("it moves to one that goes on", || {
            signal(&a, "USR1");
            a.hear().starts_with("moved")
        });
        traffic.goes_on();
        assert_eq!(b.child.try_wait().unwrap(), None);
        traffic.ends_well();
    }
);

kernel_test!(a_configuration_that_changes_holds_for_what_comes, || {
    let hosts = Hosts::new();
    let servers = [hosts.python("a"), hosts.python("b")];
    let traffic = Traffic::start(&hosts.peer);
    traffic.goes_on();
    let folder = hosts.file("").to_str().unwrap().to_owned();
    let reload = |of: &str, change: &dyn Fn(String) -> String, outcome: &str, count: usize| {
        hosts.agent(of).reload(change);
        let said = format!(r#"tcpmig_reloads_total{{outcome="{outcome}"}} {count}"#);
        until("it was read again", || hosts.metrics(of).contains(&said));
    };
    // New certificates of both.
    for of in ["a", "b"] {
        for file in ["pem", "key"] {
            std::fs::remove_file(hosts.file(&format!("{of}.example.{file}"))).unwrap();
        }
        let host = format!("{of}.example");
        let keys = ["keys", &folder, "--host", &host];
        succeeds(&crate::support::tcpmig(&hosts.a, &keys));
        reload(of, &|text| text, "done", 1);
    }
    let hears = |server: &Program, beginning: &str| {
        let line = server.hear();
        assert!(line.starts_with(beginning), "{line}");
        traffic.goes_on();
    };
    signal(&servers[0], "USR1");
    hears(&servers[0], "moved");
    hears(&servers[1], "arrived");
    reload(
        "b",
        &|text| text.replace(r#"to = ["a.example"]"#, "to = []"),
        "done",
        2,
    );
    signal(&servers[1], "USR1");
    hears(&servers[1], "kept");
    reload("b", &|_| "nonsense".to_owned(), "failed", 1);
    signal(&servers[1], "USR1");
    hears(&servers[1], "kept");
    traffic.ends_well();
});

kernel_test!(
    an_agent_without_descriptors_recovers_when_there_are_some,
    || {
        let hosts = Hosts::new();
        let servers = [hosts.python("a"), hosts.python("b")];
        let traffic = Traffic::start(&hosts.peer);
        traffic.goes_on();
        let code = format!(
            r#"
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (1000, 1000))
links = []
for _ in range({DESCRIPTORS}):
    links.append(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    links[-1].setblocking(False)
    try:
        links[-1].connect(sys.argv[1])
        links[-1].send(pack({{"hello": {{"oldest": 1, "newest": 1}}}}))
    except BlockingIOError:
        pass
print("full", flush=True)
sys.stdin.readline()
"#
        );
        let mut full = Program::spawn(&mut script(&hosts, &code));
        assert_eq!(full.hear(), "full");
        // It may be refused as long as the descriptors are taken, and goes on here.
        signal(&servers[0], "USR1");
        let first = servers[0].hear();
        traffic.goes_on();
        full.say("end");
        assert!(full.ends());
        if !first.starts_with("moved") {
            until("it moves", || {
                signal(&servers[0], "USR1");
                servers[0].hear().starts_with("moved")
            });
        }
        traffic.goes_on();
        traffic.ends_well();
    }
);
