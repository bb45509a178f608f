//! What a move does to a connection whose peer is far away. An ordinary user may not make such a path where `/dev/net/tun` is closed to him.
#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::thread;
use std::time::Duration;

use support::{Family, Net, Site, kernel_test, numbered};
use tcpmig::driver::{Ending, Options};
use tcpmig_sys::info::tcp_info;
use tcpmig_sys::lab::eventually;
use tcpmig_sys::lab::path::Path;
use tcpmig_sys::sockopt;

kernel_test!(what_the_source_sent_makes_no_round_trip_seem_short, || {
    const ROUND_TRIP: Duration = Duration::from_millis(600);
    let (net, _cable) = Net::with_far_peer(&Path::new(ROUND_TRIP / 2));
    let mut options = Options::default();
    options.settle = Duration::ZERO;
    let (a, b) = Site::pair(&net, &options);
    b.serve();
    let (peer, server) = net.connect(Family::V4);
    // To read and to carry so much takes a while. Of what is underway meanwhile the target hears first.
    let bytes = numbered(0, 3 << 20);
    sockopt::force_send_buffer(server.as_fd(), 4 << 20).unwrap();
    (&server).write_all(&bytes).unwrap();
    let downloading = thread::spawn(move || {
        let mut down = Vec::new();
        (&peer).read_to_end(&mut down).unwrap();
        down
    });

    let outcome = a.move_out(server, None).wait();
    assert!(matches!(outcome.ending, Ending::Moved), "{outcome:?}");
    let arrived = b.arrival();
    let first = eventually("an acknowledgement", || {
        let rtt = tcp_info(arrived.socket.as_fd()).unwrap().rtt;
        (rtt > 0).then_some(Duration::from_micros(rtt.into()))
    });
    // Timestamps count milliseconds, and both ends round.
    let least = ROUND_TRIP - Duration::from_millis(2);
    assert!(first >= least, "{first:?} after {:?}", outcome.report);

    let mut server = TcpStream::from(arrived.socket);
    server.write_all(&arrived.unwritten).unwrap();
    server.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(downloading.join().unwrap() == bytes);
});
