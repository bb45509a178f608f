//! Responses in the middle.

use std::time::Duration;

use crate::scene::{OnB, Scene, URL};
use crate::support::{PATIENCE, kernel_test, numbered};

const SIZE: usize = 40_000_000;

/// A download that hops at several places is the file.
fn hops(url: &str, more: &[&str]) {
    let mut scene = Scene::new();
    let url = format!("{URL}/{url}");
    let mut curl = scene.curl(&[more, &[&url]].concat());
    let mut body = Vec::new();
    for _ in 0..5 {
        // Buffers on the way may hold a quarter of the file.
        body.extend(curl.read(SIZE / 16));
        scene.hop();
    }
    body.extend(curl.end_of_curl(1));
    assert!(body == numbered(0, SIZE), "{} bytes", body.len());
}

kernel_test!(a_download_with_a_length_goes_on, || hops(
    &format!("file/{SIZE}"),
    &[]
));
kernel_test!(a_chunked_download_goes_on, || hops(
    &format!("chunked/{SIZE}"),
    &[]
));
kernel_test!(a_download_to_http_1_0_goes_on, || hops(
    &format!("file/{SIZE}"),
    &["--http1.0"]
));
kernel_test!(a_download_that_ends_with_the_connection_goes_on, || hops(
    &format!("chunked/{SIZE}"),
    &["--http1.0"]
));
kernel_test!(a_download_that_closes_goes_on, || hops(
    &format!("file/{SIZE}"),
    &["--header", "connection: close"]
));

kernel_test!(events_go_on, || {
    let mut scene = Scene::new();
    let mut curl = scene.curl(&["-N", &format!("{URL}/events/1000")]);
    for event in 1..=1000 {
        assert_eq!(curl.line(), format!("id: {event}\n"));
        assert_eq!(curl.line(), format!("data: this is event {event}\n"));
        assert_eq!(curl.line(), "\n");
        if event % 100 == 0 && event < 1000 {
            scene.hop();
        }
    }
    curl.end_of_curl(1);
});

kernel_test!(a_slow_reader_does_not_hold_up_a_move, || {
    let mut scene = Scene::new();
    let url = format!("{URL}/file/4000000");
    // It takes eight seconds.
    let mut curl = scene.curl(&["--limit-rate", "500k", &url]);
    let mut body = curl.read(100_000);
    for _ in 0..4 {
        let begin = std::time::Instant::now();
        scene.hop();
        let took = begin.elapsed();
        assert!(took.as_millis() < 4000, "a move took {took:?}");
    }
    body.extend(curl.end_of_curl(1));
    assert!(body == numbered(0, 4_000_000), "{} bytes", body.len());
});

kernel_test!(a_compressed_response_is_waited_for, || {
    let scene = Scene::with(&OnB::Visits, Duration::from_millis(300));
    let url = format!("{URL}/compressed-ticks/1500");
    let mut curl = scene.curl(&["--compressed", "--include", &url]);
    curl.says("HTTP/1.1 200 OK");
    let why = scene.stays();
    assert!(
        why.contains("changes the body of a resumable response"),
        "{why}"
    );
    let body = String::from_utf8(curl.end_of_curl(1)).unwrap();
    let (head, body) = body.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("content-encoding: gzip"), "{head}");
    let event = |event| format!("id: {event}\ndata: this is event {event}\n\n");
    assert_eq!(body, (1..=1500).map(event).collect::<String>());

    let mut scene = Scene::with(&OnB::Visits, PATIENCE);
    let mut curl = scene.curl(&["--compressed", "--include", &url]);
    curl.says("HTTP/1.1 200 OK");
    scene.hop();
    curl.end_of_curl(1);
});

kernel_test!(the_next_request_follows_a_response_that_moved, || {
    let mut scene = Scene::new();
    let urls = [
        format!("{URL}/chunked/{SIZE}"),
        format!("{URL}/file/{SIZE}"),
        format!("{URL}/who"),
    ];
    let mut curl = scene.curl(&[&urls[0], &urls[1], &urls[2]]);
    let mut body = Vec::new();
    for _ in 0..7 {
        body.extend(curl.read(SIZE / 4));
        scene.hop();
    }
    body.extend(curl.end_of_curl(3));
    let expected = [&numbered(0, SIZE)[..], &numbered(0, SIZE), b"b 1 \n"].concat();
    assert!(body == expected, "{} bytes", body.len());
});
