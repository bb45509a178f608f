//! A browser, which knows nothing of moves, through ten of them: headless Chromium's `EventSource`, fetch and `WebSocket`.
//!
//! `.ci/clients` runs these.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout};

use axum::extract::Extension;
use axum::response::Html;
use axum::routing::get;
use hyper_util::service::TowerToHyperService;
use tcpmig::http::Movable;
use tcpmig::session::{Carriers, Tcp};
use tcpmig::tls::Tls;
use tempfile::TempDir;

use crate::app::{App, Host};
use crate::clients::client_test;
use crate::scene::{self, Scene};
use crate::support::{PATIENCE, until};
use crate::tls::server_config;

const MOVES: u64 = 10;

/// Says `more` after every fiftieth of a thousand events, which it gets in the ways that its address names; `done` at the end of
/// each way, and what is wrong.
const PAGE: &str = r"<!doctype html><script>
const COUNT = 1000;
const say = text => console.log(`said: ${text}`);
const lasts = 'this is event ';
function checker() {
    let next = 1;
    return got => {
        if (got != next) say(`${got} instead of ${next}`);
        if (next == COUNT) say('done');
        else if (next % 50 == 0) say('more');
        next++;
    };
}
const ways = {
    events() {
        const check = checker();
        const source = new EventSource(`/sse/${COUNT}`);
        source.onerror = () => say('the EventSource has an error');
        source.onmessage = event => {
            const number = event.data.slice(lasts.length);
            if (number != event.lastEventId) say(`event ${event.lastEventId} says ${event.data}`);
            if (number == COUNT) source.close();
            check(number);
        };
    },
    async fetch() {
        const check = checker();
        const response = await fetch(`/sse/${COUNT}`);
        let text = '';
        for await (const bytes of response.body.pipeThrough(new TextDecoderStream())) {
            const lines = (text + bytes).split('\n');
            text = lines.pop();
            for (const line of lines)
                if (line.startsWith(`data: ${lasts}`)) check(line.slice(6 + lasts.length));
        }
        if (text) say(`the end is ${text}`);
    },
    socket() {
        const check = checker();
        const socket = new WebSocket(`/axum-chat`);
        const send = number => socket.send(String(number).padEnd(1000));
        socket.onerror = socket.onclose = () => say('the WebSocket has ended');
        socket.onopen = () => send(1);
        socket.onmessage = event => {
            const number = Number(event.data);
            if (number < COUNT) send(number + 1);
            else socket.onclose = null;
            check(number);
        };
    },
};
for (const way of location.search.slice(1).split('+'))
    ways[way]()?.catch(error => say(error));
</script>";

/// The browser, at the peer. All its processes are in a namespace of their own, and end with this.
struct Browser {
    child: Child,
    log: BufReader<ChildStdout>,
    _profile: TempDir,
}

impl Browser {
    fn opens<K: Carriers + Clone>(scene: &Scene<K>, url: &str) -> Self {
        let profile = tempfile::tempdir().unwrap();
        let mut command = scene.command("unshare");
        command.args(["--pid", "--fork", "--kill-child", "--"]);
        // What it logs is on standard error.
        command.args(["sh", "-c", "exec \"$@\" 2>&1", "sh"]);
        command.args(["chromium-headless-shell", "--no-sandbox", "--disable-gpu"]);
        command.args(["--enable-logging=stderr", "--no-proxy-server"]);
        // Its authorities are those of the system, and the certificate is that of a test.
        command.arg("--ignore-certificate-errors");
        command.arg("--host-resolver-rules=MAP server.example 198.18.0.80");
        command.arg(format!("--user-data-dir={}", profile.path().display()));
        let mut child = command.arg(url).spawn().expect("unshare starts");
        let log = BufReader::new(child.stdout.take().expect("it was piped"));
        Self {
            child,
            log,
            _profile: profile,
        }
    }

    /// What the page says next.
    fn says(&mut self) -> String {
        let mut logged = String::new();
        loop {
            let begin = logged.len();
            let read = self.log.read_line(&mut logged).unwrap();
            assert!(read > 0, "the browser has ended: {logged}");
            let said = logged[begin..].split_once("CONSOLE").and_then(|(_, said)| {
                let (_, said) = said.split_once("] \"")?;
                said.rsplit_once("\", source: ")
            });
            if let Some((said, _)) = said {
                let said = said.strip_prefix("said: ");
                return said.unwrap_or_else(|| panic!("{logged}")).to_owned();
            }
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn movable(name: &'static str) -> Movable<App> {
    let page = get(async || Html(PAGE));
    let host = Host {
        name,
        slow: std::sync::Arc::default(),
    };
    let router = crate::more_routes().route("/browser", page);
    let router = router.layer(Extension(host));
    let movable = Movable::new(TowerToHyperService::new(router));
    movable.answer_within(PATIENCE)
}

/// Moves all connections of the browser ten times while its page gets events in these ways, over so many connections.
fn browses<K: Carriers + Clone>(hosts: [Movable<App, K>; 2], url: &str, ways: &str, over: usize) {
    let mut scene = Scene::serving_over(hosts);
    let mut browser = Browser::opens(&scene, &format!("{url}/browser?{ways}"));
    let (mut moves, mut done) = (0, 0);
    while done < ways.split('+').count() {
        match &*browser.says() {
            "more" if moves < MOVES => {
                until("all live here", || scene.counts()[scene.at] == over);
                assert_eq!(scene.hop_all(), over);
                moves += 1;
            }
            "more" => {}
            "done" => done += 1,
            wrong => panic!("{wrong}"),
        }
    }
    assert_eq!(moves, MOVES);
    assert!(scene.errors.lock().unwrap().is_empty());
    drop(browser);
}

fn plain(ways: &str, over: usize) {
    let hosts = ["a", "b"].map(|name| movable(name).over(Tcp));
    browses(hosts, scene::URL, ways, over);
}

fn secure(protocols: &[&[u8]], ways: &str, over: usize) {
    let (_authority, mut config) = server_config();
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    let tls = Tls::new(config);
    let hosts = ["a", "b"].map(|name| movable(name).with_http2().over(tls.clone()));
    browses(hosts, "https://server.example:8080", ways, over);
}

client_test!(events, "Chromium: .ci/clients", || plain("events", 1));
client_test!(fetch, "Chromium: .ci/clients", || plain("fetch", 1));
// Beside the connection that its page came by, which is at rest.
client_test!(websocket, "Chromium: .ci/clients", || plain("socket", 2));
client_test!(all_at_once, "Chromium: .ci/clients", || plain(
    "events+fetch+socket",
    3
));
client_test!(over_tls, "Chromium: .ci/clients", || secure(
    &[b"http/1.1"],
    "events+socket",
    2
));
client_test!(streams_of_http2, "Chromium: .ci/clients", || secure(
    &[b"h2", b"http/1.1"],
    "events+fetch+events",
    1
));
