//! Requests: cut anywhere, held back, still arriving.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::scene::{OnB, Scene, URL};
use crate::support::{PATIENCE, kernel_test, numbered, until};

pub(crate) fn connect(scene: &Scene) -> TcpStream {
    let stream = scene
        .net
        .peer
        .run(|| TcpStream::connect("198.18.0.80:8080"));
    let stream = stream.unwrap().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Reads one response with a length: its head and body.
pub(crate) fn response(reader: &mut BufReader<&TcpStream>) -> (String, Vec<u8>) {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(reader.read_line(&mut head).unwrap() > 0, "ends in {head:?}");
    }
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    reader.read_exact(&mut body).unwrap();
    (head, body)
}

fn text(reader: &mut BufReader<&TcpStream>) -> String {
    String::from_utf8(response(reader).1).unwrap()
}

const HELLO: &str = "GET /who HTTP/1.1\r\nhost: x\r\nx-say: hello\r\n\r\n";

kernel_test!(a_head_may_be_cut_anywhere, || {
    let mut scene = Scene::new();
    let stream = connect(&scene);
    let mut reader = BufReader::new(&stream);
    for (count, cut) in (1..HELLO.len()).enumerate() {
        (&stream).write_all(&HELLO.as_bytes()[..cut]).unwrap();
        scene.hop();
        (&stream).write_all(&HELLO.as_bytes()[cut..]).unwrap();
        let host = ["a", "b"][scene.at];
        assert_eq!(text(&mut reader), format!("{host} {} hello\n", count + 1));
    }
});

kernel_test!(pipelined_requests_are_answered_once_and_in_order, || {
    let mut scene = Scene::new();
    let stream = connect(&scene);
    let mut reader = BufReader::new(&stream);
    // The first holds the connection until the move has been asked for.
    let slow = "GET /slow HTTP/1.1\r\nhost: x\r\n\r\n";
    let upload = "POST /upload HTTP/1.1\r\nhost: x\r\ncontent-length: 7\r\n\r\n";
    let file = "GET /file/300000 HTTP/1.1\r\nhost: x\r\n\r\n";
    let mut all = [slow, HELLO, file, upload].concat().into_bytes();
    all.extend(numbered(0, 7));
    all.extend(HELLO.as_bytes());
    (&stream).write_all(&all).unwrap();
    scene.slow_begins();
    let moving = scene.begin_move();
    scene.take_turns();
    scene.slow.release.notify_one();
    moving.wait().unwrap();
    scene.at = 1;
    assert_eq!(text(&mut reader), "at last\n");
    assert_eq!(text(&mut reader), "b 1 hello\n");
    assert!(response(&mut reader).1 == numbered(0, 300_000));
    assert_eq!(text(&mut reader), "7 true\n");
    assert_eq!(text(&mut reader), "b 2 hello\n");
});

/// hyper reads the beginning of an upload with the request before it, while the connection is being drained.
fn an_upload_behind_a_slow_answer(upload: &str, body: &[u8], ready: &[u8], on_b: &OnB) {
    let mut scene = Scene::with(on_b, PATIENCE);
    let stream = connect(&scene);
    let mut reader = BufReader::new(&stream);
    let slow = "GET /slow HTTP/1.1\r\nhost: x\r\n\r\n";
    let all = [slow.as_bytes(), upload.as_bytes(), body].concat();
    // In one write, as far as it is ready.
    let now = slow.len() + upload.len() + ready.len();
    (&stream).write_all(&all[..now]).unwrap();
    scene.slow_begins();
    let moving = scene.begin_move();
    scene.take_turns();
    scene.slow.release.notify_one();
    let moved = moving.wait();
    if matches!(on_b, OnB::Visits) {
        moved.expect("the connection moves");
        scene.at = 1;
    } else {
        moved.expect_err("the connection stays");
    }
    (&stream).write_all(&all[now..]).unwrap();
    assert_eq!(text(&mut reader), "at last\n");
    assert_eq!(text(&mut reader), "10 true\n");
    (&stream).write_all(HELLO.as_bytes()).unwrap();
    let host = ["a", "b"][scene.at];
    assert_eq!(text(&mut reader), format!("{host} 1 hello\n"));
}

const LENGTH: &str = "POST /upload HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n";
const CHUNKED: &str = "POST /upload HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";

fn chunks() -> Vec<u8> {
    let bytes = numbered(0, 10);
    let (first, second) = bytes.split_at(4);
    [b"4\r\n", first, b"\r\n6;x\r\n", second, b"\r\n0\r\n\r\n"].concat()
}

kernel_test!(an_upload_that_hyper_has_begun_to_read_moves, || {
    let body = numbered(0, 10);
    an_upload_behind_a_slow_answer(LENGTH, &body, &body, &OnB::Visits);
});
kernel_test!(the_beginning_of_an_upload_moves, || {
    let body = numbered(0, 10);
    an_upload_behind_a_slow_answer(LENGTH, &body, &body[..3], &OnB::Visits);
});
kernel_test!(a_connection_that_stays_keeps_its_upload, || {
    let body = numbered(0, 10);
    an_upload_behind_a_slow_answer(LENGTH, &body, &body, &OnB::Nothing);
});
kernel_test!(a_chunked_upload_that_hyper_has_begun_to_read_moves, || {
    for ready in [4, 9, 15] {
        an_upload_behind_a_slow_answer(CHUNKED, &chunks(), &chunks()[..ready], &OnB::Visits);
    }
});

kernel_test!(uploads_on_many_connections_that_move, || {
    // Each keeps a processor busy as far as it can.
    const CONNECTIONS: usize = 12;
    const SIZE: usize = 100_000;
    let mut scene = Scene::new();
    let body = std::sync::Arc::new(numbered(0, SIZE));
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let clients: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let (stream, body, stop) = (connect(&scene), body.clone(), stop.clone());
            std::thread::spawn(move || {
                let mut reader = BufReader::new(&stream);
                let mut uploads = 0;
                let head = "POST /upload HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n";
                let requests = [HELLO.as_bytes(), head.as_bytes(), &body].concat();
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    (&stream).write_all(&requests).unwrap();
                    assert!(text(&mut reader).ends_with("hello\n"));
                    assert_eq!(text(&mut reader), "100000 true\n");
                    uploads += 1;
                }
                uploads
            })
        })
        .collect();
    until("all have connected", || scene.counts()[0] == CONNECTIONS);
    for _ in 0..4 {
        assert_eq!(scene.hop_all(), CONNECTIONS);
        until("all have arrived", || {
            scene.counts()[scene.at] == CONNECTIONS
        });
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    for client in clients {
        assert!(client.join().unwrap() > 0);
    }
});

kernel_test!(an_answer_before_its_upload_is_not_cut_off, || {
    const SIZE: usize = 60_000_000;
    let scene = Scene::new();
    let stream = connect(&scene);
    let mut reader = BufReader::new(&stream);
    let head = format!("POST /early/{SIZE} HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n");
    (&stream).write_all(head.as_bytes()).unwrap();
    let (_, body) = response(&mut reader);
    assert!(body == numbered(0, SIZE), "{} bytes", body.len());
    // hyper does not wait for the upload.
    assert_eq!(reader.read(&mut [0]).unwrap(), 0);
});

kernel_test!(an_upload_is_waited_for, || {
    let mut scene = Scene::new();
    let stream = connect(&scene);
    let mut reader = BufReader::new(&stream);
    let body = numbered(0, 500_000);
    for _ in 0..3 {
        let head = "POST /upload HTTP/1.1\r\nhost: x\r\ncontent-length: 500000\r\n\r\n";
        (&stream).write_all(head.as_bytes()).unwrap();
        (&stream).write_all(&body[..250_000]).unwrap();
        until("the connection is served", || scene.counts()[scene.at] == 1);
        let moving = scene.begin_move();
        (&stream).write_all(&body[250_000..]).unwrap();
        assert_eq!(text(&mut reader), "500000 true\n");
        moving.wait().unwrap();
        scene.at = 1 - scene.at;
    }
});

kernel_test!(uploads_of_curl_are_waited_for, || {
    let mut scene = Scene::new();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("upload");
    std::fs::write(&file, numbered(0, 2_000_000)).unwrap();
    let file = format!("@{}", file.display());
    let expect = ["--header", "expect: 100-continue", "--limit-rate", "4M"];
    let upload = format!("{URL}/upload");
    let arguments = ["--data-binary", &file, &upload, &upload, &upload];
    let mut curl = scene.curl(&[&expect[..], &arguments].concat());
    for _ in 0..2 {
        scene.hop();
        assert_eq!(curl.line(), "2000000 true\n");
    }
    assert_eq!(curl.end_of_curl(3), b"2000000 true\n");
});

kernel_test!(an_upload_that_does_not_end_keeps_the_connection, || {
    let scene = Scene::with(&OnB::Visits, Duration::from_millis(300));
    let stream = connect(&scene);
    let mut reader = BufReader::new(&stream);
    let head =
        "POST /upload HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n";
    (&stream).write_all(head.as_bytes()).unwrap();
    let (go_on, _) = response(&mut reader);
    assert!(go_on.starts_with("HTTP/1.1 100 "), "{go_on}");
    let why = scene.stays();
    assert!(
        why.contains("the body of a request is still arriving"),
        "{why}"
    );
    (&stream).write_all(&numbered(0, 4)).unwrap();
    assert_eq!(text(&mut reader), "4 true\n");
});

kernel_test!(an_answer_that_does_not_come_keeps_the_connection, || {
    let mut scene = Scene::with(&OnB::Visits, Duration::from_millis(300));
    let mut curl = scene.curl(&[&format!("{URL}/slow"), &format!("{URL}/file/3000000")]);
    scene.slow_begins();
    let why = scene.stays();
    assert!(why.contains("the service is still at work"), "{why}");
    scene.slow.release.notify_one();
    assert_eq!(curl.line(), "at last\n");
    let mut body = curl.read(1_000_000);
    scene.hop();
    body.extend(curl.end_of_curl(2));
    assert!(body == numbered(0, 3_000_000), "{} bytes", body.len());
});

kernel_test!(a_body_that_cannot_be_resumed_ends_first, || {
    let scene = Scene::new();
    let stream = connect(&scene);
    let get = "GET /plain/10000000 HTTP/1.1\r\nhost: x\r\n\r\n";
    (&stream).write_all(get.as_bytes()).unwrap();
    let mut reader = BufReader::new(&stream);
    reader.fill_buf().unwrap();
    let moved = scene.begin_move().wait();
    let body = response(&mut reader).1;
    assert!(body == numbered(0, 10_000_000), "{} bytes", body.len());
    // hyper has all of it in one frame, so that it is over for the service and is carried.
    moved.expect("the connection moves");
});

kernel_test!(a_connection_that_is_being_closed_says_so, || {
    let scene = Scene::with(&OnB::Visits, Duration::from_millis(300));
    let stream = connect(&scene);
    let get = "GET /plain/30000000 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    (&stream).write_all(get.as_bytes()).unwrap();
    let mut reader = BufReader::new(&stream);
    reader.fill_buf().unwrap();
    // The service is done with it, and the peer does not read.
    for _ in 0..3 {
        let why = scene.stays();
        assert!(
            why.contains("the end of its last response waits for the peer"),
            "{why}"
        );
    }
    let body = response(&mut reader).1;
    assert!(body == numbered(0, 30_000_000), "{} bytes", body.len());
    assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    until("the connection is over", || scene.counts() == [0, 0]);
});

kernel_test!(a_request_body_that_nobody_reads_is_no_request, || {
    let mut scene = Scene::new();
    let stream = connect(&scene);
    let mut reader = BufReader::new(&stream);
    let post =
        "POST /ignore HTTP/1.1\r\nhost: x\r\ncontent-length: 20\r\n\r\nGET /who HTTP/1.1\r\n\r\n";
    for _ in 0..4 {
        (&stream).write_all(post.as_bytes()).unwrap();
        assert_eq!(text(&mut reader), "ignored");
        scene.hop();
    }
});

kernel_test!(answers_without_a_body_leave_the_connection_at_rest, || {
    let mut scene = Scene::new();
    let stream = connect(&scene);
    let mut reader = BufReader::new(&stream);
    for request in ["HEAD /file/1000", "GET /not-modified", "HEAD /chunked/99"] {
        let request = format!("{request} HTTP/1.1\r\nhost: x\r\n\r\n{HELLO}");
        (&stream).write_all(request.as_bytes()).unwrap();
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            reader.read_line(&mut head).unwrap();
        }
        scene.hop();
        assert!(text(&mut reader).ends_with("hello\n"));
    }
});
