//! Any windows, any cuts, moves at any time: every stream has its bytes.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use h2::client::Builder;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::app::bytes;
use crate::client::Client;
use crate::host::{Hosts, in_time};
use crate::uploads;

#[derive(Debug, Clone)]
struct Case {
    stream_window: u32,
    connection_window: u32,
    frame: u32,
    table: u32,
    /// Of what is passed on at a time in either direction.
    cuts: Vec<usize>,
    streams: Vec<Stream>,
    /// How long before each move, in milliseconds.
    moves: Vec<u64>,
}

#[derive(Debug, Clone)]
struct Stream {
    route: &'static str,
    len: usize,
    piece: usize,
    wait: u64,
    /// Before room is made for more, in microseconds.
    pause: u64,
    /// It is reset when so much has come.
    reset: Option<usize>,
}

fn stream() -> impl Strategy<Value = Stream> {
    let route = prop_oneof![
        Just("file"),
        Just("sized"),
        Just("plain"),
        Just("consume"),
        Just("both")
    ];
    let reset = prop_oneof![3 => Just(None), 1 => (0..100_000_usize).prop_map(Some)];
    let wait = prop_oneof![3 => Just(0), 1 => 1..5_u64];
    (
        route,
        0..150_000_usize,
        500..40_000_usize,
        wait,
        0..500_u64,
        reset,
    )
        .prop_map(|(route, len, piece, wait, pause, reset)| Stream {
            route,
            len,
            piece,
            wait,
            pause,
            reset,
        })
}

fn case() -> impl Strategy<Value = Case> {
    let windows = (1..100_000_u32, 65_535..200_000_u32, 16_384..40_000_u32);
    let table = prop_oneof![Just(4096), Just(0), Just(200), Just(65_536)];
    let cuts = prop::collection::vec(1..9000_usize, 1..20);
    let streams = prop::collection::vec(stream(), 1..11);
    let moves = prop::collection::vec(0..30_u64, 1..8);
    (windows, table, cuts, streams, moves).prop_map(|(windows, table, cuts, streams, moves)| Case {
        stream_window: windows.0,
        connection_window: windows.1,
        frame: windows.2,
        table,
        cuts,
        streams,
        moves,
    })
}

/// Passes bytes on in pieces of these sizes.
async fn relay(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    cuts: Vec<usize>,
) {
    for cut in cuts.iter().cycle() {
        let mut piece = vec![0; *cut];
        match from.read(&mut piece).await {
            Ok(0) | Err(_) => break,
            Ok(len) => {
                if to.write_all(&piece[..len]).await.is_err() {
                    break;
                }
            }
        }
    }
    let _ = to.shutdown().await;
}

/// Where a client is to connect, to reach this address by a relay.
async fn cutting(address: SocketAddr, cuts: Vec<usize>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let here = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (client, _) = listener.accept().await.unwrap();
        let server = TcpStream::connect(address).await.unwrap();
        client.set_nodelay(true).unwrap();
        server.set_nodelay(true).unwrap();
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        let backwards = cuts.iter().rev().copied().collect();
        tokio::join!(
            relay(from_client, to_server, cuts),
            relay(from_server, to_client, backwards)
        );
    });
    here
}

/// Sends a body, and has it consumed, or sent back.
async fn send(client: Client, stream: Stream) {
    let content = bytes(uploads::FILE, 0, stream.len);
    let (answer, mut body) = client.post(&format!("/{}", stream.route)).await;
    let reads = tokio::spawn(async move { answer.body().await.whole().await.0 });
    let mut sent = 0;
    for piece in content.chunks(stream.piece) {
        body.send_data(Bytes::copy_from_slice(piece), false)
            .unwrap();
        sent += piece.len();
        if stream.reset.is_some_and(|most| sent >= most) {
            body.send_reset(h2::Reason::CANCEL);
            reads.abort();
            return;
        }
        tokio::time::sleep(Duration::from_micros(stream.pause)).await;
    }
    body.send_data(Bytes::new(), true).unwrap();
    let said = in_time(reads).await.unwrap();
    if stream.route == "both" {
        assert!(said == content);
    } else {
        assert!(said.starts_with(stream.len.to_string().as_bytes()));
    }
}

async fn read(client: Client, file: u64, stream: Stream) {
    let Stream {
        route,
        len,
        piece,
        wait,
        ..
    } = stream;
    let target = format!("/{route}/{file}?len={len}&piece={piece}&wait={wait}");
    let mut reading = client.get(&target).await.body().await;
    reading.pause = Duration::from_micros(stream.pause);
    let expected = bytes(file, 0, len);
    let mut got = Vec::new();
    while let Some(data) = reading.next().await {
        got.extend_from_slice(&data);
        assert!(expected.starts_with(&got), "file {file} at {}", got.len());
        if stream.reset.is_some_and(|most| got.len() >= most) {
            return;
        }
    }
    assert_eq!(got.len(), len, "file {file}");
}

async fn run(case: Case) {
    let hosts = Hosts::new().await;
    let address = cutting(hosts.address, case.cuts).await;
    let mut builder = Builder::new();
    builder
        .initial_window_size(case.stream_window)
        .initial_connection_window_size(case.connection_window)
        .max_frame_size(case.frame)
        .header_table_size(case.table);
    let client = Client::with(address, &builder).await;
    let mut streams = JoinSet::new();
    for (file, stream) in (0..).zip(case.streams) {
        match stream.route {
            "consume" | "both" => streams.spawn(send(client.clone(), stream)),
            _ => streams.spawn(read(client.clone(), file, stream)),
        };
    }
    for wait in case.moves {
        tokio::time::sleep(Duration::from_millis(wait)).await;
        // A response that cannot move may take longer than is waited for.
        let _ = hosts.try_move().await;
    }
    while let Some(read) = streams.join_next().await {
        read.unwrap();
    }
    assert!(["a", "b"].contains(&&*client.text("/").await));
    assert_eq!(hosts.others().await, 0);
}

#[test]
fn every_stream_has_its_bytes() {
    let mut runner = TestRunner::new(Config {
        cases: 40,
        max_shrink_iters: 20,
        failure_persistence: None,
        ..Config::default()
    });
    let ran = runner.run(&case(), |case| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.unwrap().block_on(run(case));
        Ok(())
    });
    ran.unwrap();
}
