//! What a host says and does about handovers that a process before it had.

use std::collections::HashMap;
use std::io;
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tcpmig::capture::{Frozen, Plan};
use tcpmig::driver::journal::{File, HandoverInfo, Journal, Note, Role, Unfinished};
use tcpmig::driver::{Acceptor, Mover, Options};
use tcpmig::handover::{Fate, HandoverId, Message};
use tcpmig_sys::lab::slowed;

use crate::support::{B, Family, Net, Site, Talk, both_ways, kept, kernel_test};

const BUILT: [u8; 16] = [1; 16];
const ACTIVE: [u8; 16] = [2; 16];

fn as_target() -> HandoverInfo {
    let flow = "198.18.0.80:80,198.18.0.9:51234".parse().unwrap();
    HandoverInfo::new(Role::Target, flow, "host-a", None)
}

fn serve_from(b: &Site, path: &Path) {
    let journal = Arc::new(File::open(path).unwrap());
    b.call(|here| async move {
        let (endpoint, locker) = (here.endpoint.clone(), here.locker.clone());
        let arrivals = Acceptor::new(endpoint, locker)
            .options(here.options.clone())
            .journal(journal)
            .serve();
        here.keep(arrivals);
    });
}

kernel_test!(a_target_that_died_answers_for_what_it_had, || {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    // What a process noted that was killed.
    let before = File::open(&path).unwrap();
    for id in [BUILT, ACTIVE].map(HandoverId::from_bytes) {
        before.begin(id, &as_target()).unwrap();
    }
    let active = HandoverId::from_bytes(ACTIVE);
    before.note(active, Note::Activating).unwrap();
    drop(before);
    let net = Net::new();
    let (a, b) = Site::pair(&net, &Options::default());
    serve_from(&b, &path);
    let (peer, server) = net.connect(Family::V4);
    let socket: OwnedFd = server.into();
    let answers = a.call(|here| async move {
        let plan = Plan::read(socket.as_fd()).unwrap();
        let lease = Duration::from_secs(60);
        let mut frozen = Frozen::freeze(socket, plan, &*here.locker, lease).unwrap();
        let image = frozen.capture(None).unwrap().encode().unwrap();
        let mut answers = Vec::new();
        for id in [BUILT, ACTIVE, [3; 16]].map(HandoverId::from_bytes) {
            let mut talk = Talk::with_other(&here).await;
            answers.push(talk.ask(Message::commit(id)).await.name());
        }
        let mut talk = Talk::with_other(&here).await;
        let (id, image) = (HandoverId::from_bytes(ACTIVE), image.into());
        answers.push(talk.give(id, image).await.name());
        (answers, frozen.keep().unwrap())
    });
    let (answers, server) = answers;
    assert_eq!(answers, ["ABORTED", "LOST", "UNKNOWN", "REFUSED"]);
    both_ways(&peer, &TcpStream::from(server));
});

kernel_test!(a_source_that_was_started_again_settles_what_it_can, || {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    let net = Net::new();
    let (a, b) = Site::pair(&net, &Options::default());
    // What a process noted that was killed: one handover was not offered, the others may have been committed.
    let before = File::open(&path).unwrap();
    let ids: Vec<HandoverId> = (1..4).map(|n| HandoverId::from_bytes([n; 16])).collect();
    let address = Some(B.parse().unwrap());
    let about = HandoverInfo::new(Role::Source, as_target().flow, "host-b", address);
    for id in &ids {
        before.begin(*id, &about).unwrap();
    }
    before.note(ids[1], Note::Committing).unwrap();
    before.note(ids[2], Note::Committing).unwrap();
    drop(before);
    // The target has heard of none, and of one it has a process's word.
    let theirs = directory.path().join("target");
    let target = File::open(&theirs).unwrap();
    target.begin(ids[1], &as_target()).unwrap();
    target.note(ids[1], Note::Activating).unwrap();
    drop(target);
    serve_from(&b, &theirs);
    let journal = path.clone();
    let resolved = a.call(|here| async move {
        let journal = Arc::new(File::open(&journal).unwrap());
        let mover = here.mover().with_journal(journal.clone());
        let first = mover.resolve().await;
        let left = journal.left_open();
        let second = mover.resolve().await;
        assert_eq!(second.len(), left.len());
        (first, left)
    });
    let (resolved, left) = resolved;
    let fates: HashMap<HandoverId, Fate> =
        resolved.iter().map(|one| (one.open.id, one.fate)).collect();
    let expected = [Fate::Lost, Fate::Lost, Fate::InDoubt];
    assert_eq!(fates, ids.iter().copied().zip(expected).collect());
    assert_eq!(
        left.iter().map(|open| open.id).collect::<Vec<_>>(),
        [ids[2]]
    );
    // A target that is not there leaves it open, and so does the next process.
    drop(b);
    let (fate, reason) = a.call(|here| async move {
        let journal = Arc::new(File::open(&path).unwrap());
        let mut options = here.options.clone();
        options.ask_for = slowed(Duration::from_secs(2));
        let mover = Mover::new(here.endpoint.clone(), here.locker.clone(), options);
        let mover = mover.with_journal(journal);
        let one = mover.resolve().await.remove(0);
        (one.fate, one.reason)
    });
    assert_eq!(fate, Fate::InDoubt);
    let words = ["link to the target", "did not answer"];
    assert!(words.iter().any(|word| reason.contains(word)), "{reason}");
});

kernel_test!(a_handover_that_cannot_be_noted_is_not_begun, || {
    let net = Net::new();
    let (a, b) = Site::pair(&net, &Options::default());
    b.serve();
    for fails_at in [Note::Offering, Note::Committing] {
        let (peer, server) = net.connect(Family::V4);
        let socket: OwnedFd = server.into();
        let outcome = a.call(move |here| async move {
            let mover = here.mover().with_journal(Arc::new(Full(fails_at)));
            mover.move_out(socket, None, &here.other()).await
        });
        let (server, reason) = kept(outcome);
        assert!(reason.contains("no space"), "{reason}");
        b.no_arrival();
        both_ways(&peer, &server);
    }
});

/// A journal whose disk is full when this is noted.
struct Full(Note);

impl Full {
    fn fails(&self, note: Note) -> io::Result<()> {
        if note == self.0 {
            return Err(io::Error::other("no space"));
        }
        Ok(())
    }
}

impl Journal for Full {
    fn begin(&self, _: HandoverId, _: &HandoverInfo) -> io::Result<()> {
        self.fails(Note::Offering)
    }

    fn note(&self, _: HandoverId, note: Note) -> io::Result<()> {
        self.fails(note)
    }

    fn lookup(&self, _: HandoverId) -> Option<Note> {
        None
    }

    fn left_open(&self) -> Vec<Unfinished> {
        Vec::new()
    }
}
