//! HTTP/2 connections that move between hosts under curl, over TLS by ALPN and by prior knowledge.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Extension, Path};
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use hyper_util::service::TowerToHyperService;
use tcpmig::http::{IntoMovable, Movable, Resume};
use tcpmig::session::Carriers;
use tcpmig::tls::Tls;
use tempfile::NamedTempFile;
use tokio::sync::watch;

use crate::app::App;
use crate::scene::Scene;
use crate::support::{PATIENCE, kernel_test, numbered, until};
use crate::tls::server_config;

const SIZE: u64 = 2_000_000;
const PIECE: u64 = 10_000;
const HOPS: u64 = 8;

/// Lets downloads go on to the next of so many places, and no further.
struct Gate {
    open: watch::Sender<u64>,
    /// Which file stands at which place.
    reached: Mutex<BTreeSet<(u64, u64)>>,
}

impl Gate {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            open: watch::Sender::new(0),
            reached: Mutex::default(),
        })
    }

    /// Waits until each of so many files stands at the place.
    fn stand(&self, files: u64, place: u64) {
        until("all downloads stand still", || {
            let reached = self.reached.lock().unwrap();
            (0..files).all(|file| reached.contains(&(file, place)))
        });
    }
}

async fn file(
    Path(file): Path<u64>,
    Extension(gate): Extension<Arc<Gate>>,
    resume: Resume<u64>,
) -> impl IntoResponse {
    let pieces = resume.unfold(0, move |at| {
        let gate = gate.clone();
        async move {
            let left = SIZE.checked_sub(at).filter(|left| *left > 0)?;
            let place = at / (SIZE / (HOPS + 1)).next_multiple_of(PIECE);
            let mut open = gate.open.subscribe();
            if *open.borrow_and_update() < place {
                gate.reached.lock().unwrap().insert((file, place));
                open.wait_for(|open| *open >= place).await.ok()?;
            }
            let len = left.min(PIECE);
            let bytes = Bytes::from(numbered(at + file, usize::try_from(len).ok()?));
            Some((Ok::<_, Infallible>(bytes), at + len))
        }
    });
    let length = [(header::CONTENT_LENGTH, SIZE)];
    (length, Body::from_stream(pieces)).movable(resume)
}

fn movable(name: &'static str, gate: &Arc<Gate>) -> Movable<App> {
    let router = Router::new()
        .route("/file/{file}", get(file))
        .route("/who", get(async move || Json(name)))
        .layer(Extension(gate.clone()));
    let movable = Movable::new(TowerToHyperService::new(router)).with_http2();
    let movable = movable.settle(Duration::from_millis(20));
    movable.answer_within(PATIENCE)
}

/// Downloads of so many files, which all stand in the middle whenever their connection moves.
fn downloads<K: Carriers + Clone>(carriers: [K; 2], url: &str, files: u64, options: &[&str]) {
    let gate = Gate::new();
    let [a, b] = carriers;
    let hosts = [movable("a", &gate).over(a), movable("b", &gate).over(b)];
    let mut scene = Scene::serving_over(hosts);
    let folder = tempfile::tempdir().unwrap();
    // On standard error it shows its progress, of transfers that are parallel.
    let said = [
        "--write-out",
        "%{num_connects} %{http_code} %{http_version}\n",
    ];
    let mut arguments = [options, &said].concat();
    let mut arguments: Vec<String> = arguments.drain(..).map(str::to_owned).collect();
    for number in 0..files {
        let into = folder.path().join(number.to_string());
        arguments.extend(["--output".to_owned(), into.to_str().unwrap().to_owned()]);
        arguments.push(format!("{url}/file/{number}"));
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let curl = scene.curl(&arguments);
    for place in 1..=HOPS {
        gate.stand(files, place);
        scene.hop();
        gate.open.send_replace(place);
    }
    let said = String::from_utf8(curl.end().stdout).unwrap();
    let mut connects: Vec<_> = said.lines().collect();
    connects.sort_unstable();
    assert_eq!(connects.pop(), Some("1 200 2"), "{said}");
    assert_eq!(connects.len() as u64, files - 1, "{said}");
    assert!(connects.iter().all(|&line| line == "0 200 2"), "{said}");
    for number in 0..files {
        let got = std::fs::read(folder.path().join(number.to_string())).unwrap();
        let pieces = (0..SIZE).step_by(PIECE as usize);
        let expected: Vec<u8> = pieces
            .flat_map(|at| numbered(at + number, PIECE as usize))
            .collect();
        assert!(got == expected, "file {number}: {} octets", got.len());
    }
    assert!(scene.errors.lock().unwrap().is_empty());
}

kernel_test!(three_downloads_at_once_over_tls_go_on, || {
    let (authority, mut config) = server_config();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(authority.ca_pem().as_bytes()).unwrap();
    let trusted = file.path().to_str().unwrap();
    let options = ["--http2", "--parallel", "--cacert", trusted];
    let resolve = ["--resolve", "server.example:8080:198.18.0.80"];
    let tls = Tls::new(config);
    downloads(
        [tls.clone(), tls],
        "https://server.example:8080",
        3,
        &[&options[..], &resolve].concat(),
    );
});

kernel_test!(a_download_by_prior_knowledge_goes_on, || {
    // A second one on the connection curl 7.88 does not know how to begin, whoever serves it.
    downloads(
        [tcpmig::session::Tcp; 2],
        crate::scene::URL,
        1,
        &["--http2-prior-knowledge"],
    );
});
