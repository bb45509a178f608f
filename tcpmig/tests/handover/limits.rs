//! What a target takes at a time, and how what it took is fetched.

use std::future::poll_fn;
use std::net::TcpStream;
use std::pin::Pin;

use futures_core::Stream;
use tcpmig::driver::{Acceptor, Ending, Options, Outcome};
use tcpmig_format::Layer;

use crate::support::{Family, Net, PATIENCE, Site, both_ways, kept, kernel_test};

fn session(bytes: usize) -> Option<Layer> {
    Some(Layer::new("tests", 1, vec![1; bytes]))
}

fn is_refused(outcome: Outcome, word: &str, peer: &TcpStream) -> TcpStream {
    let (server, reason) = kept(outcome);
    assert!(
        reason.contains("refused") && reason.contains(word),
        "{reason}"
    );
    both_ways(peer, &server);
    server
}

kernel_test!(a_target_prepares_no_more_connections_than_it_may, || {
    let net = Net::new();
    let mut options = Options::default();
    options.prepared_at_once = 0;
    let (a, b) = Site::pair(&net, &options);
    b.serve();
    let (peer, server) = net.connect(Family::V4);
    let outcome = a.move_out(server, None).wait();
    is_refused(outcome, "wait for COMMIT here", &peer);
});

kernel_test!(a_target_holds_no_more_bytes_than_it_may, || {
    let net = Net::new();
    let mut options = Options::default();
    options.bytes_prepared = 100 << 10;
    options.prepared_at_once = 1;
    let (a, b) = Site::pair(&net, &options);
    b.serve();
    let (peer, server) = net.connect(Family::V4);
    let outcome = a.move_out(server, session(200_000)).wait();
    let mut server = is_refused(outcome, "bytes", &peer);
    // Those that are moved make room for the next.
    for _ in 0..3 {
        let outcome = a.move_out(server, session(90_000)).wait();
        assert!(matches!(outcome.ending, Ending::Moved), "{outcome:?}");
        b.arrival();
        (_, server) = net.connect(Family::V4);
    }
});

kernel_test!(arrivals_are_a_stream, || {
    let net = Net::new();
    let (a, b) = Site::pair(&net, &Options::default());
    let (peer, server) = net.connect(Family::V4);
    let arriving = b.begin(|here| async move {
        let (endpoint, locker) = (here.endpoint.clone(), here.locker.clone());
        let mut arrivals = Acceptor::new(endpoint, locker)
            .options(here.options.clone())
            .serve();
        let next = poll_fn(|cx| Pin::new(&mut arrivals).poll_next(cx));
        let arrived = tokio::time::timeout(PATIENCE, next).await.unwrap();
        here.endpoint.close("over").await;
        let end = poll_fn(|cx| Pin::new(&mut arrivals).poll_next(cx));
        let end = tokio::time::timeout(PATIENCE, end).await.unwrap();
        assert!(end.is_none(), "the endpoint is closed");
        arrived.unwrap()
    });
    let outcome = a.move_out(server, None).wait();
    assert!(matches!(outcome.ending, Ending::Moved), "{outcome:?}");
    both_ways(&peer, &arriving.wait().socket.into());
});
