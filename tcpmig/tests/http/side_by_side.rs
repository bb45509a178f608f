//! Many connections that are drained at the same time.

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use tcpmig::http::NotMoved;

use crate::scene::{OnB, Scene};
use crate::support::{kernel_test, until};

kernel_test!(busy_connections_do_not_hold_up_the_others, || {
    const OF_EACH: usize = 12;
    const WAIT: Duration = Duration::from_secs(2);
    let scene = Scene::with(&OnB::Visits, WAIT);
    let connect = || {
        let stream = scene
            .net
            .peer
            .run(|| TcpStream::connect("198.18.0.80:8080"));
        stream.unwrap().unwrap()
    };
    // Those that cannot move come first and have all the turns.
    let busy: Vec<_> = (0..OF_EACH).map(|_| connect()).collect();
    for mut stream in &busy {
        stream
            .write_all(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n")
            .unwrap();
    }
    until("the slow answers are asked for", || {
        scene.slow_count() == OF_EACH
    });
    let _idle: Vec<_> = (0..OF_EACH).map(|_| connect()).collect();
    until("all have connected", || scene.counts()[0] == 2 * OF_EACH);
    let begin = Instant::now();
    let results = scene.move_all(4);
    let took = begin.elapsed();
    // One after the other they take 24 s.
    assert!(took < WAIT * OF_EACH as u32 / 2, "it took {took:?}");
    let moved = results.iter().filter(|(_, result)| result.is_ok()).count();
    let busy = results
        .iter()
        .filter(|(_, result)| matches!(result, Err(NotMoved::Busy(_))))
        .count();
    assert_eq!((moved, busy), (OF_EACH, OF_EACH), "{results:?}");
    until("those that moved live there", || {
        scene.counts() == [OF_EACH, OF_EACH]
    });
});
