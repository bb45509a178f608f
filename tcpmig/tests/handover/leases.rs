//! Leases: what a host holds for a connection lasts for as long as somebody counts on it, however late an answer comes.

use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tcpmig::driver::journal::{HandoverInfo, Journal, NoJournal, Note, Unfinished};
use tcpmig::driver::{Ending, Options};
use tcpmig::handover::HandoverId;
use tcpmig_lock::EntryKind;

use crate::support::{Family, Net, Site, both_ways, end_of, flow, kernel_test};

/// A disk that is busy when the target notes that it activates.
struct Slow(Duration);

impl Journal for Slow {
    fn begin(&self, id: HandoverId, about: &HandoverInfo) -> io::Result<()> {
        NoJournal.begin(id, about)
    }

    fn note(&self, id: HandoverId, note: Note) -> io::Result<()> {
        if note == Note::Activating {
            std::thread::sleep(self.0);
        }
        NoJournal.note(id, note)
    }

    fn lookup(&self, id: HandoverId) -> Option<Note> {
        NoJournal.lookup(id)
    }

    fn left_open(&self) -> Vec<Unfinished> {
        NoJournal.left_open()
    }
}

/// Lets this much time pass: what a test looks at is what happens after a lease, not how soon.
fn outlive(lease: Duration) {
    let begin = Instant::now();
    while begin.elapsed() < lease + Duration::from_millis(500) {
        std::thread::sleep(Duration::from_millis(50));
    }
}

kernel_test!(
    a_commit_that_is_answered_late_leaves_a_live_redirect,
    || {
        let net = Net::new();
        let mut options = Options::default();
        options.lease = Duration::from_secs(2);
        let (a, b) = Site::pair(&net, &options);
        b.serve_with(Arc::new(Slow(Duration::from_millis(700))));
        let (peer, server) = net.connect(Family::V4);
        let flow = flow(&server);
        let outcome = a.move_out(server, None).wait();
        assert!(matches!(outcome.ending, Ending::Moved), "{outcome:?}");
        let server = TcpStream::from(b.arrival().socket);
        server.set_nonblocking(false).unwrap();
        both_ways(&peer, &server);
        let ends = net.peer.count(&end_of(flow));
        outlive(options.lease);
        both_ways(&peer, &server);
        assert_eq!(ends.packets(), 0, "RST or FIN at the peer");
        let entries = a.entries(flow);
        let [entry] = &entries[..] else {
            panic!("{entries:?}");
        };
        assert!(
            matches!(entry.kind, EntryKind::Redirect { .. }),
            "{entry:?}"
        );
        assert!(entry.remaining > options.redirect_lease / 2, "{entry:?}");
    }
);
