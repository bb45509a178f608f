//! What a target says of handovers that a process before it had.

use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tcpmig::capture::{Frozen, Plan};
use tcpmig::driver::journal::{File, Journal, Note};
use tcpmig::driver::{Options, serve_with};
use tcpmig::handover::{HandoverId, Message};

use crate::support::{Family, Net, Site, Talk, both_ways, kernel_test};

const BUILT: [u8; 16] = [1; 16];
const ACTIVE: [u8; 16] = [2; 16];

#[test]
fn a_journal_remembers_for_the_next_process() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    let ids = [BUILT, ACTIVE].map(HandoverId::from_octets);
    let journal = File::open(&path).unwrap();
    journal.note(ids[0], Note::Prepared).unwrap();
    journal.note(ids[1], Note::Prepared).unwrap();
    journal.note(ids[1], Note::Activating).unwrap();
    assert_eq!(journal.recall(ids[0]), None, "its own are known otherwise");
    // A process can die in the middle of a note.
    let mut octets = std::fs::read(&path).unwrap();
    octets.extend([3; 16]);
    std::fs::write(&path, &octets).unwrap();
    for _ in 0..2 {
        let journal = File::open(&path).unwrap();
        assert_eq!(journal.recall(ids[0]), Some(Note::Prepared));
        assert_eq!(journal.recall(ids[1]), Some(Note::Activating));
    }
    // After another boot nothing of it is true.
    octets[30] ^= 1;
    std::fs::write(&path, &octets).unwrap();
    let journal = File::open(&path).unwrap();
    assert_eq!(ids.map(|id| journal.recall(id)), [None, None]);
    std::fs::write(&path, "something else").unwrap();
    assert!(File::open(&path).is_err());
}

fn serve_from(b: &Site, path: &Path) {
    let journal = Arc::new(File::open(path).unwrap());
    b.call(|here| async move {
        let (endpoint, locker) = (here.endpoint.clone(), here.locker.clone());
        let arrivals = serve_with(endpoint, locker, here.options.clone(), journal);
        here.keep(arrivals);
    });
}

kernel_test!(a_target_that_died_answers_for_what_it_had, || {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    // What a process noted that was killed.
    let before = File::open(&path).unwrap();
    for (id, note) in [(BUILT, Note::Prepared), (ACTIVE, Note::Activating)] {
        before.note(HandoverId::from_octets(id), note).unwrap();
    }
    drop(before);
    let net = Net::new();
    let (a, b) = Site::pair(&net, &Options::default());
    serve_from(&b, &path);
    let (peer, server) = net.connect(Family::V4);
    let socket: OwnedFd = server.into();
    let answers = a.call(|here| async move {
        let plan = Plan::of(socket.as_fd()).unwrap();
        let lease = Duration::from_secs(60);
        let mut frozen = Frozen::freeze(socket, plan, &*here.locker, lease).unwrap();
        let image = frozen.capture(None).unwrap().encode().unwrap();
        let mut answers = Vec::new();
        for id in [BUILT, ACTIVE, [3; 16]].map(HandoverId::from_octets) {
            let mut talk = Talk::with_other(&here).await;
            answers.push(talk.ask(Message::commit(id)).await.name());
        }
        let mut talk = Talk::with_other(&here).await;
        let (id, image) = (HandoverId::from_octets(ACTIVE), image.into());
        answers.push(talk.ask(Message::Offer { id, image }).await.name());
        (answers, frozen.keep().unwrap())
    });
    let (answers, server) = answers;
    assert_eq!(answers, ["ABORTED", "LOST", "UNKNOWN", "REFUSED"]);
    both_ways(&peer, &TcpStream::from(server));
});
