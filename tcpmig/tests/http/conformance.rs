//! What h2spec says of a server whose HTTP/2 connections can move, beside the same server of hyper alone.

use std::collections::BTreeMap;
use std::env;

use axum::Router;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use tcpmig::http::Movable;
use tcpmig::session::Tcp;
use tokio::net::TcpListener;

use crate::app::App;
use crate::clients::client_test;
use crate::scene::Scene;

fn app() -> App {
    TowerToHyperService::new(Router::new().fallback(async || "hello, world\n"))
}

async fn serve_plain() {
    let listener = TcpListener::bind("198.18.0.80:8081").await.unwrap();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        tokio::spawn(async {
            let http = http2::Builder::new(TokioExecutor::new());
            // Its client breaks rules on purpose.
            let _ = http.serve_connection(TokioIo::new(stream), app()).await;
        });
    }
}

/// Whether the server at this port passed each test.
fn verdicts(scene: &Scene, port: &str) -> BTreeMap<String, bool> {
    let program = env::var("TCPMIG_H2SPEC").expect("TCPMIG_H2SPEC names h2spec");
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report");
    let mut command = scene.command(&program);
    command.args(["--strict", "--host", "198.18.0.80", "--port", port]);
    command.arg("--junit-report").arg(&report);
    // It fails if one test does.
    command.output().expect("h2spec runs");
    let report = std::fs::read_to_string(report).expect("h2spec reports");
    let mut verdicts = BTreeMap::new();
    for case in report.split("<testcase ").skip(1) {
        let attribute = |name: &str| {
            let (_, value) = case.split_once(&format!("{name}=\""))?;
            Some(value.split_once('"')?.0)
        };
        let [package, name] = ["package", "classname"].map(|name| attribute(name).unwrap());
        let passed = !case.contains("<failure") && !case.contains("<error");
        let before = verdicts.insert(format!("{package}: {name}"), passed);
        assert_eq!(before, None, "two tests are called {package}: {name}");
    }
    verdicts
}

/// What passes in one of three runs: some of them depend on what is faster, the server's answer or the end of the connection.
fn passes(scene: &Scene, port: &str) -> BTreeMap<String, bool> {
    let mut passes = verdicts(scene, port);
    for _ in 0..2 {
        for (name, passed) in verdicts(scene, port) {
            *passes.get_mut(&name).expect("the same tests") |= passed;
        }
    }
    passes
}

/// The server speaks HTTP/1 as well, and takes this for a bad request of it.
const OTHER_PREFACE: &str = "http2/3.5: Sends invalid connection preface";

client_test!(h2spec, "h2spec, whose path TCPMIG_H2SPEC is", || {
    let hosts = [(); 2].map(|()| Movable::new(app()).with_http2().over(Tcp));
    let scene = Scene::serving_over(hosts);
    scene.also(0, serve_plain);
    let [movable, plain] = ["8080", "8081"].map(|port| passes(&scene, port));
    assert!(plain.len() > 100, "{} tests", plain.len());
    let passed = |of: &BTreeMap<_, bool>| of.values().filter(|passed| **passed).count();
    println!(
        "h2spec: {} of {} through the layer, {} without it",
        passed(&movable),
        plain.len(),
        passed(&plain)
    );
    let differ = plain
        .iter()
        .filter(|&(name, passed)| movable.get(name) != Some(passed))
        .map(|(name, _)| &**name);
    assert_eq!(differ.collect::<Vec<_>>(), [OTHER_PREFACE]);
});
