//! Servers of other frameworks than axum.

use std::convert::Infallible;
use std::io::{BufRead, BufReader, Write};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use tcpmig::http::{ForAll, Resume, Resumed, serve};
use warp::reply::{Reply, Response};
use warp::{Filter, sse::Event};

use crate::requests::response;
use crate::served::Pair;
use crate::support::{kernel_test, numbered};

/// Numbers as events, and comments in between.
fn events(resumed: Option<&Resumed>) -> Response {
    let resume = match Resume::<u64>::of_resumed(resumed) {
        Ok(resume) => resume,
        Err(error) => {
            let status = warp::http::StatusCode::CONFLICT;
            return warp::reply::with_status(error.to_string(), status).into_response();
        }
    };
    let numbers = resume.unfold(0, async |number: u64| {
        tokio::time::sleep(Duration::from_millis(1)).await;
        Some((number, number + 1))
    });
    let events =
        numbers.map(|number| Ok::<_, Infallible>(Event::default().data(number.to_string())));
    let keep = warp::sse::keep_alive().interval(Duration::from_millis(3));
    let mut response = warp::sse::reply(keep.stream(events)).into_response();
    resume.mark(&mut response);
    response
}

kernel_test!(a_server_of_warp, || {
    let pair = Pair::new();
    let run = |host: usize| {
        let to = ["host-b", "host-a"][host];
        let server = pair.run(host, move |listener, site, term| async move {
            let events = warp::path("events")
                .and(warp::ext::optional::<Resumed>())
                .map(|resumed: Option<Resumed>| events(resumed.as_ref()));
            let echo = warp::path("echo").and(warp::body::bytes());
            let echo = echo.map(|bytes: Bytes| bytes.to_vec());
            let service = ForAll::new(warp::service(events.or(echo)));
            let term = async {
                let _ = term.await;
            };
            let served = serve(listener, service, site).with_drain(term, to);
            served.await.unwrap().moved
        });
        pair.listens(host);
        server
    };
    let a = run(0);
    let mut stream = pair.connect();
    let other = stream.try_clone().unwrap();
    let mut reader = BufReader::new(&other);
    let body = numbered(0, 300_000);
    let head = format!(
        "POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&body).unwrap();
    assert!(response(&mut reader).1 == body);
    stream
        .write_all(b"GET /events HTTP/1.1\r\nhost: x\r\n\r\n")
        .unwrap();
    let lines = reader.lines().map(Result::unwrap);
    let mut numbers =
        lines.filter_map(|line| line.strip_prefix("data:")?.trim().parse::<u64>().ok());
    for number in 0..100 {
        assert_eq!(numbers.next(), Some(number));
    }
    let b = run(1);
    assert_eq!(a.end(), 1);
    for number in 100..1000 {
        assert_eq!(numbers.next(), Some(number));
    }
    drop((stream, numbers));
    drop(other);
    b.end();
});
