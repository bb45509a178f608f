//! What moves.

use std::time::Duration;

use bytes::Bytes;
use h2::client::Builder;
use tcpmig::http::HTTP2_KIND;
use tokio::task::JoinSet;

use crate::app::bytes;
use crate::client::Client;
use crate::host::{Hosts, in_time, moment};

const MOVES: usize = 20;

#[tokio::test]
async fn a_connection_at_rest_moves_twenty_times() {
    let hosts = Hosts::new().await;
    let client = Client::new(hosts.address).await;
    assert_eq!(client.text("/").await, "a");
    for round in 1..=MOVES {
        let layers = hosts.hop().await;
        assert_eq!(layers[0].kind, HTTP2_KIND);
        let here = if round % 2 == 1 { "b" } else { "a" };
        assert_eq!(client.text("/").await, here);
        // The connection's state came with it, and so did the tables of both.
        assert_eq!(client.text("/visits").await, round.to_string());
        assert_eq!(client.text("/headers").await, client.text("/headers").await);
        let (answer, mut body) = client.post("/echo").await;
        body.send_data(Bytes::from(vec![7; 50_000]), true).unwrap();
        let (echo, _) = answer.body().await.whole().await;
        assert!(echo == vec![7; 50_000]);
    }
    assert_eq!(hosts.others().await, 0);
}

#[tokio::test]
async fn a_connection_moves_before_its_first_bytes() {
    let hosts = Hosts::new().await;
    let tcp = tokio::net::TcpStream::connect(hosts.address).await.unwrap();
    hosts.hop().await;
    let handshake = h2::client::handshake(tcp);
    let (mut client, connection) = in_time(handshake).await.unwrap();
    tokio::spawn(connection);
    let request = axum::http::Request::get("http://x.example/")
        .body(())
        .unwrap();
    let (answer, _) = client.send_request(request, true).unwrap();
    let mut body = in_time(answer).await.unwrap().into_body();
    assert_eq!(in_time(body.data()).await.unwrap().unwrap(), "b");
}

/// Ten downloads at once, over windows of this size.
async fn downloads(stream: u32, connection: u32, pause: Duration) {
    const LEN: usize = 3_000_000;
    let hosts = Hosts::new().await;
    let mut builder = Builder::new();
    builder
        .initial_window_size(stream)
        .initial_connection_window_size(connection);
    let client = Client::with(hosts.address, &builder).await;
    let mut readers = JoinSet::new();
    for file in 0..10 {
        let route = if file % 2 == 0 { "file" } else { "sized" };
        let piece = 3_000 + 9_000 * file;
        let target = format!("/{route}/{file}?len={LEN}&piece={piece}");
        let mut reading = client.get(&target).await.body().await;
        reading.pause = pause;
        readers.spawn(async move { (file, reading.whole().await.0) });
    }
    let mut middles = 0;
    for _ in 0..MOVES {
        let layers = hosts.hop().await;
        middles += usize::from(layers[0].payload.len() > 2000);
        moment().await;
    }
    assert_eq!(client.text("/").await, "a");
    while let Some(read) = readers.join_next().await {
        let (file, got) = read.unwrap();
        let expected = bytes(file, 0, LEN);
        let differs = got
            .iter()
            .zip(&expected)
            .position(|(got, expected)| got != expected);
        assert_eq!((differs, got.len()), (None, LEN), "file {file}");
    }
    assert!(
        middles >= MOVES / 2,
        "{middles} of {MOVES} moves came in the middle"
    );
    assert_eq!(hosts.others().await, 0);
}

#[tokio::test]
async fn ten_downloads_go_on_through_twenty_moves() {
    downloads(1 << 20, 1 << 22, Duration::from_millis(1)).await;
}

#[tokio::test]
async fn ten_downloads_go_on_when_the_connections_window_is_spent() {
    downloads(1 << 20, 65_535, Duration::from_micros(200)).await;
}

#[tokio::test]
async fn ten_downloads_go_on_when_each_streams_window_is_spent() {
    downloads(20_000, 1 << 22, Duration::from_micros(200)).await;
}

#[tokio::test]
async fn requests_are_held_back_while_a_stream_has_to_end() {
    let hosts = Hosts::new().await;
    let client = Client::new(hosts.address).await;
    let download = client.get("/file/3?len=200000&wait=1").await.body().await;
    let slow = client.get("/slow").await;
    while hosts.begun() < 1 {
        moment().await;
    }
    let moving = hosts.try_move();
    tokio::pin!(moving);
    assert!(
        tokio::time::timeout(Duration::from_millis(200), &mut moving)
            .await
            .is_err()
    );
    // They begin while the slow one is waited for.
    let (held, mut body) = client.post("/echo").await;
    body.send_data("one ".into(), false).unwrap();
    let here = client.get("/").await;
    body.send_data("two".into(), true).unwrap();
    assert!(
        tokio::time::timeout(Duration::from_millis(200), &mut moving)
            .await
            .is_err()
    );
    hosts.slow.release.notify_waiters();
    let (last, _) = slow.body().await.whole().await;
    assert_eq!(last, b"at last");
    moving.await.expect("it moves");
    assert_eq!(held.body().await.whole().await.0, b"one two");
    assert_eq!(here.body().await.whole().await.0, b"b");
    assert!(download.whole().await.0 == bytes(3, 0, 200_000));
}

#[tokio::test]
async fn a_response_that_has_ended_but_for_the_peers_window_moves() {
    let hosts = Hosts::new().await;
    let mut builder = Builder::new();
    builder.initial_window_size(1000);
    let client = Client::with(hosts.address, &builder).await;
    let mut plain = client
        .get("/plain/5?len=30000&piece=30000")
        .await
        .body()
        .await;
    // It has been asked for, and the peer reads nothing of it.
    let first = plain.next().await.unwrap();
    for _ in 0..3 {
        hosts.hop().await;
    }
    let (rest, trailers) = plain.whole().await;
    assert!([&first[..], &rest].concat() == bytes(5, 0, 30_000));
    assert_eq!(trailers.unwrap()["x-end"], "7");
    assert_eq!(client.text("/").await, "b");
}

#[tokio::test]
async fn a_stream_that_is_reset_ends_alone() {
    let hosts = Hosts::new().await;
    let client = Client::new(hosts.address).await;
    let mut reset = client.get("/file/1?len=100000000").await.body().await;
    let kept = client.get("/file/2?len=1000000&wait=1").await.body().await;
    reset.next().await;
    hosts.hop().await;
    reset.next().await;
    drop(reset);
    hosts.hop().await;
    let again = client.get("/file/1?len=100000000").await.body().await;
    drop(again);
    hosts.hop().await;
    assert!(kept.whole().await.0 == bytes(2, 0, 1_000_000));
    assert_eq!(client.text("/").await, "b");
}

#[tokio::test]
async fn the_body_of_a_request_moves_with_its_response() {
    let hosts = Hosts::new().await;
    let client = Client::new(hosts.address).await;
    let (answer, mut body) = client.post("/file/4?len=1000000&wait=1").await;
    body.send_data("a form".into(), true).unwrap();
    let mut reading = answer.body().await;
    let first = reading.next().await.unwrap();
    for _ in 0..5 {
        hosts.hop().await;
        moment().await;
    }
    let (rest, _) = reading.whole().await;
    assert!([&first[..], &rest].concat() == bytes(4, 0, 1_000_000));
}
