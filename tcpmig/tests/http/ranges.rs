//! Downloads behind the layer for `Range`, where the other host has another file.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use axum::Router;
use tcpmig::http::{RangeLayer, Served, Site, serve};
use tokio::net::TcpListener;
use tower_http::compression::CompressionLayer;
use tower_http::services::ServeDir;

use crate::served::{Pair, Term};
use crate::support::{PATIENCE, kernel_test, numbered};

const SIZE: usize = 30_000_000;

async fn server(
    listener: TcpListener,
    site: Site,
    term: Term,
    folder: PathBuf,
    to: &'static str,
) -> Served {
    let app = Router::new()
        .fallback_service(ServeDir::new(folder))
        .layer(RangeLayer)
        .layer(CompressionLayer::new());
    let term = async {
        let _ = term.await;
    };
    serve(listener, app.into_make_service(), site)
        .with(|movable| {
            movable
                .drain_within(Duration::from_millis(100))
                .answer_within(PATIENCE)
        })
        .with_drain(term, to)
        // Tried once: a download that is over soon after would move.
        .within(Duration::ZERO)
        .end_within(PATIENCE)
        .await
        .unwrap()
}

/// The file of a host; it was last changed when this is said.
fn folder(pair: &Pair, host: &str, size: usize, changed: SystemTime) -> PathBuf {
    let folder = pair.folder().join(host);
    fs::create_dir(&folder).unwrap();
    let file = folder.join("film.txt");
    fs::write(&file, numbered(0, size)).unwrap();
    File::options()
        .write(true)
        .open(&file)
        .unwrap()
        .set_modified(changed)
        .unwrap();
    folder
}

/// Reads the head and the first bytes of the film, which is asked for with these headers.
fn begin<'a>(mut stream: &'a TcpStream, headers: &str) -> (BufReader<&'a TcpStream>, Vec<u8>) {
    let request = format!("GET /film.txt HTTP/1.1\r\nhost: x\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        reader.read_line(&mut line).unwrap();
    }
    let mut body = vec![0; 1_000_000];
    reader.read_exact(&mut body).unwrap();
    (reader, body)
}

/// The download stays at host A, because of what host B has, and comes to its end there.
fn stays(headers: &str, prepare: impl FnOnce(&Pair, SystemTime) -> PathBuf, words: &[&str]) {
    let pair = Pair::new();
    let changed = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let of_a = folder(&pair, "a", SIZE, changed);
    let of_b = prepare(&pair, changed);
    let a = pair.run(0, |listener, site, term| {
        server(listener, site, term, of_a, "host-b")
    });
    let stream = pair.connect();
    let (mut reader, mut body) = begin(&stream, headers);
    let b = pair.run(1, |listener, site, term| {
        server(listener, site, term, of_b, "host-a")
    });
    pair.listens(1);
    let reading = std::thread::scope(|scope| {
        let ending = scope.spawn(|| a.end());
        reader.read_to_end(&mut body).unwrap();
        ending.join().unwrap()
    });
    let why: Vec<_> = reading
        .stayed
        .iter()
        .map(|stayed| stayed.why.to_string())
        .collect();
    assert_eq!(why.len(), 1, "{reading:?}");
    for word in words {
        assert!(why[0].contains(word), "{word:?} is not in {why:?}");
    }
    if headers.is_empty() {
        assert!(body == numbered(0, SIZE), "{} bytes", body.len());
    }
    drop(reader);
    drop(stream);
    b.end();
}

kernel_test!(a_file_that_was_changed, || stays(
    "",
    |pair, changed| folder(pair, "b", SIZE, changed + Duration::from_secs(7)),
    &["refused it", "409 Conflict", "last-modified", "22:13:27"]
));
kernel_test!(a_file_that_is_shorter, || stays(
    "",
    |pair, changed| folder(pair, "b", SIZE / 2, changed),
    &["refused it", "409 Conflict", "does not give that range"]
));
kernel_test!(a_file_that_is_not_there, || stays(
    "",
    |pair, _| Path::join(pair.folder(), "nowhere"),
    &["refused it", "404 Not Found"]
));
kernel_test!(a_file_that_is_compressed_on_its_way, || stays(
    "accept-encoding: gzip\r\n",
    |pair, changed| folder(pair, "b", SIZE, changed),
    &["changes the body"]
));
