//! What a target says of handovers that a process before it had.

use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tcpmig::capture::{Frozen, Plan};
use tcpmig::driver::journal::{About, File, Journal, Note, Role};
use tcpmig::driver::{Options, serve_with};
use tcpmig::handover::{HandoverId, Message};

use crate::support::{Family, Net, Site, Talk, both_ways, kernel_test};

const BUILT: [u8; 16] = [1; 16];
const ACTIVE: [u8; 16] = [2; 16];

fn about(role: Role) -> About {
    About {
        role,
        flow: "198.18.0.80:80,198.18.0.9:51234".parse().unwrap(),
        host: "host-b".to_owned(),
        address: (role == Role::Source).then(|| B.parse().unwrap()),
    }
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
    for id in [BUILT, ACTIVE].map(HandoverId::from_octets) {
        before.begin(id, &about(Role::Target)).unwrap();
    }
    let active = HandoverId::from_octets(ACTIVE);
    before.note(active, Note::Activating).unwrap();
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
