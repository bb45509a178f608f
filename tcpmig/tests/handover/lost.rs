//! Bytes that were sent before the move and lost on the way: the target sends them again, without waiting for a
//! retransmission timer.

use std::io::Write;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tcpmig::capture::Frozen;
use tcpmig::driver::{Ending, Mover, Options};
use tcpmig::steer::{Steer, SteerError, Steering};
use tcpmig_format::FourTuple;
use tcpmig_lock::{Entry, LockError, LockGuard, Locker, Nftables, Swept};
use tcpmig_sys::sockopt;

use crate::support::{
    Family, Net, Site, both_ways, expect, flow, kernel_test, numbered, tcp_counter, until,
};

/// Ends the loss once the connection is locked.
struct Then {
    inner: Arc<Nftables>,
    found: Mutex<Command>,
}

impl Locker for Then {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn lock(&self, flows: &[FourTuple], lease: Duration) -> Result<LockGuard, LockError> {
        let guard = self.inner.lock(flows, lease)?;
        assert!(self.found.lock().unwrap().status().unwrap().success());
        Ok(guard)
    }

    fn sweep(&self) -> Result<Swept, LockError> {
        self.inner.sweep()
    }

    fn list(&self) -> Result<Vec<Entry>, LockError> {
        self.inner.list()
    }
}

/// Takes as long as on the way between hosts that are not next to each other: the kernel's measure of the round trip
/// has steps of a millisecond.
struct Slowly(Arc<dyn Steer>);

struct SlowlyThen(Box<dyn Steering>);

impl Steer for Slowly {
    fn plan(&self, flow: FourTuple, locker: &dyn Locker) -> Result<Box<dyn Steering>, SteerError> {
        Ok(Box::new(SlowlyThen(self.0.plan(flow, locker)?)))
    }
}

impl Steering for SlowlyThen {
    fn steer(self: Box<Self>, frozen: &mut Frozen) -> Result<(), SteerError> {
        std::thread::sleep(Duration::from_millis(5));
        self.0.steer(frozen)
    }
}

/// Bytes of a segment, in the networks of these tests.
const SEGMENT: usize = 1448;

/// Bits of its header, which has timestamps.
const HEADER_BITS: usize = 32 * 8;

/// The first of every `of` segments does not arrive, however often it is sent.
fn recovers(family: Family, segments: usize, of: usize, sack: bool) {
    // A busy machine may itself deliver later than a timer waits: that shows nothing, and is tried again.
    let attempt = || recovers_without_a_timer(family, segments, of, sack);
    assert!((0..3).any(|_| attempt()), "the target waited for a timer");
}

fn recovers_without_a_timer(family: Family, segments: usize, of: usize, sack: bool) -> bool {
    let net = Net::new();
    let mut options = Options::default();
    // What is lost is not fetched by waiting.
    options.settle = Duration::ZERO;
    let (a, b) = Site::pair(&net, &options);
    b.serve();
    if !sack {
        let without = || std::fs::write("/proc/sys/net/ipv4/tcp_sack", "0").unwrap();
        net.peer.run(without).unwrap();
    }
    // All segments are sent before the first acknowledgement.
    net.a
        .ip(&format!(
            "route replace 198.18.0.0/24 dev eth0 src 198.18.0.1 initcwnd {0}
             route replace 2001:2::/64 dev eth0 metric 256 initcwnd {0}",
            segments + 10
        ))
        .unwrap();
    let (peer, mut server) = net.connect(family);
    // The peer's window of a new connection would be too small for many of them.
    let (sender, receiver) = (server.try_clone().unwrap(), &peer);
    let warm = numbered(0, 1 << 20);
    std::thread::scope(|scope| {
        scope.spawn(|| (&sender).write_all(&warm).unwrap());
        expect(receiver, &warm);
    });
    until("all of it is acknowledged", || {
        sockopt::send_queue_len(server.as_fd()).unwrap() == 0
    });
    // Segments one by one, so that some of them can be lost.
    net.a
        .ip("link set eth0 gso_max_segs 1 gso_max_size 2048")
        .unwrap();
    let port = flow(&server).local().port();
    let bytes = numbered(0, segments * SEGMENT);
    let first_words: Vec<String> = bytes
        .chunks(SEGMENT)
        .step_by(of)
        .map(|segment| format!("{:#x}", u32::from_be_bytes(*segment.first_chunk().unwrap())))
        .collect();
    net.peer.nft(&format!(
        "table inet lose {{ chain i {{ type filter hook prerouting priority raw; \
             tcp sport {port} @th,{HEADER_BITS},32 {{ {} }} drop; }}; }}",
        first_words.join(", ")
    ));
    server.write_all(&bytes).unwrap();
    until("all of it is sent", || {
        sockopt::unsent_len(server.as_fd()).unwrap() == 0
    });
    let mut found = net.peer.command("nft").unwrap();
    found.args(["delete", "table", "inet", "lose"]);
    let found = Mutex::new(found);
    let outcome = a.begin(|here| async move {
        let locker = Arc::new(Then {
            inner: here.locker.clone(),
            found,
        });
        let mover = Mover::new(here.endpoint.clone(), locker, here.options.clone());
        let to = here.other();
        let to = here.other_by(Arc::new(Slowly(to.steer)));
        mover.move_out(server.into(), None, &to).await
    });
    let outcome = outcome.wait();
    assert!(matches!(outcome.ending, Ending::Moved), "{outcome:?}");
    assert!(outcome.report.send_queue_bytes > 0, "nothing was lost");
    let server = TcpStream::from(b.arrival().socket);
    server.set_nonblocking(false).unwrap();
    expect(&peer, &bytes);
    let timeouts = tcp_counter(&net.b, "TCPTimeouts");
    both_ways(&peer, &server);
    timeouts == 0
}

kernel_test!(one_segment_of_ipv4, || recovers(Family::V4, 1, 1, true));
kernel_test!(one_segment_of_ipv6, || recovers(Family::V6, 1, 1, true));
kernel_test!(some_segments_of_ipv4, || {
    recovers(Family::V4, 8, 2, true);
});
kernel_test!(some_segments_of_ipv6, || {
    recovers(Family::V6, 8, 2, true);
});
kernel_test!(all_segments_of_ipv4, || recovers(Family::V4, 8, 1, true));
kernel_test!(all_segments_of_ipv6, || recovers(Family::V6, 8, 1, true));
kernel_test!(many_segments_of_ipv4, || recovers(Family::V4, 40, 1, true));
kernel_test!(many_segments_of_ipv6, || recovers(Family::V6, 40, 1, true));
kernel_test!(one_segment_without_sack, || {
    recovers(Family::V4, 1, 1, false);
});
kernel_test!(some_segments_without_sack, || {
    recovers(Family::V4, 8, 2, false);
});
kernel_test!(all_segments_without_sack, || {
    recovers(Family::V4, 8, 1, false);
});
