//! The link is lost after COMMIT: the source asks, and thaws only on the target's word.

use std::io::Write;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tcpmig::driver::{Ending, InDoubt, Options, Outcome};
use tcpmig::handover::{Code, HandoverId, Message};
use tcpmig_format::FourTuple;
use tcpmig_lock::{EntryKind, LockGuard, Locker};
use tcpmig_sys::lab::until;
use tcpmig_sys::sockopt;
use tokio::sync::oneshot;

use crate::support::{
    Fake, Family, Here, Net, PATIENCE, Running, Site, both_ways, end_of, expect, flow, kept_by,
    kernel_test,
};

/// What a fake target has when it has got COMMIT. The lock stands for the connection that
/// it claims to have: without it the host would answer the peer with RST.
pub(crate) struct Committed {
    fake: Fake,
    pub(crate) id: HandoverId,
    pub(crate) lock: LockGuard,
}

pub(crate) async fn commit_and_hang_up(here: &Here, flow: FourTuple) -> Committed {
    let mut fake = Fake::new(here);
    let mut talk = fake.exchange().await;
    let id = talk.take().await;
    let lock = here
        .locker
        .lock(&[flow], Duration::from_secs(3600))
        .unwrap();
    talk.say(Message::Prepared { id, rebuild_us: 1 }).await;
    talk.commit(id).await;
    fake.hang_up();
    Committed { fake, id, lock }
}

/// Like [`commit_and_hang_up`]; when the source asks again it gets this answer.
async fn answer(
    here: Rc<Here>,
    flow: FourTuple,
    answer: impl FnOnce(HandoverId) -> Message,
) -> LockGuard {
    let Committed { fake, id, lock } = commit_and_hang_up(&here, flow).await;
    answer_when_asked(fake, answer(id)).await;
    lock
}

fn active(id: HandoverId) -> Message {
    let (rebuild_us, activate_us) = (1, 1);
    Message::Active {
        id,
        rebuild_us,
        activate_us,
    }
}

/// Answers the first COMMIT that comes. A link on which the source has given up waiting brings none.
async fn answer_when_asked(mut fake: Fake, answer: Message) {
    loop {
        let mut talk = fake.exchange().await;
        let heard = talk.hear().await;
        if matches!(heard, Some(Message::Commit { id, .. }) if Some(id) == answer.id()) {
            talk.say(answer).await;
            return talk.end().await;
        }
    }
}

pub(crate) const SENT: &[u8] = b"is somebody there?";

/// A connection whose COMMIT is not answered at once.
pub(crate) struct Case {
    pub(crate) net: Net,
    pub(crate) a: Site,
    pub(crate) b: Site,
    peer: TcpStream,
    pub(crate) server: Option<TcpStream>,
    pub(crate) flow: FourTuple,
}

impl Case {
    fn new() -> Self {
        let net = Net::new();
        let mut options = Options::default();
        options.answer_within = Duration::from_millis(200);
        Self::with(net, &options)
    }

    pub(crate) fn with(net: Net, options: &Options) -> Self {
        let (a, b) = Site::pair(&net, options);
        let (peer, server) = net.connect(Family::V4);
        Self {
            flow: flow(&server),
            net,
            a,
            b,
            peer,
            server: Some(server),
        }
    }

    pub(crate) fn move_out(&mut self) -> Running<Outcome> {
        self.a.move_out(self.server.take().unwrap(), None)
    }

    /// Host A is silent: what the peer sends is not answered.
    pub(crate) fn is_silent(&mut self) {
        let (other, end) = self.net.connect(Family::V4);
        let port = self.flow.local().port();
        let heard = self.net.peer.count(&format!("tcp sport {port}"));
        self.peer.write_all(SENT).unwrap();
        // What was sent to the peer before this connection's packets would be there before them.
        both_ways(&other, &end);
        assert_eq!(heard.packets(), 0, "host A or B answered");
        let waiting = sockopt::send_queue_len(self.peer.as_fd()).unwrap();
        assert_eq!(waiting, SENT.len() as u32, "nothing is acknowledged");
        let entries = self.a.entries(self.flow);
        assert!(
            matches!(&entries[..], [entry] if matches!(entry.kind, EntryKind::Redirect { .. })),
            "{entries:?}"
        );
    }

    /// It goes on at host A, where these bytes of the peer have waited.
    pub(crate) fn goes_on(&self, ending: Ending, lock: LockGuard, sent: &[u8], words: &[&str]) {
        let ends = self.net.peer.count(&end_of(self.flow));
        let (server, reason) = kept_by(ending);
        lock.unlock().unwrap();
        for word in words {
            assert!(reason.contains(word), "no {word:?} in {reason:?}");
        }
        expect(&server, sent);
        both_ways(&self.peer, &server);
        assert_eq!(self.a.entries(self.flow), []);
        assert_eq!(ends.packets(), 0, "RST or FIN at the peer");
    }
}

pub(crate) fn doubt(outcome: Outcome) -> InDoubt {
    match outcome.ending {
        Ending::InDoubt(doubt) => *doubt,
        other => panic!("{other:?}"),
    }
}

kernel_test!(a_target_that_says_active_when_asked_has_it, || {
    let mut case = Case::new();
    let flow = case.flow;
    let target = case.b.begin(move |here| answer(here, flow, active));
    let outcome = case.move_out().wait();
    assert!(matches!(outcome.ending, Ending::Moved), "{outcome:?}");
    let _lock = target.wait();
    case.is_silent();
});

kernel_test!(a_target_that_says_aborted_when_asked_gives_it_back, || {
    let mut case = Case::new();
    let flow = case.flow;
    let target = case.b.begin(move |here| {
        answer(here, flow, |id| Message::Aborted {
            code: Code::Other,
            id,
            reason: "for a test".to_owned(),
        })
    });
    let outcome = case.move_out().wait();
    let words = ["the target gave it up", "for a test"];
    case.goes_on(outcome.ending, target.wait(), b"", &words);
});

kernel_test!(a_late_answer_is_asked_for_again, || {
    let mut case = Case::new();
    let flow = case.flow;
    let target = case.b.begin(move |here| async move {
        let Committed { mut fake, id, lock } = commit_and_hang_up(&here, flow).await;
        // Nothing, then nonsense, then what does not fit, then the answer.
        let _silent = fake.committed(id).await;
        let mut talk = fake.committed(id).await;
        talk.say_bytes(b"garbage"[..].into()).await;
        let mut talk = fake.committed(id).await;
        talk.say(Message::Prepared { id, rebuild_us: 1 }).await;
        let mut talk = fake.committed(id).await;
        talk.say(active(id)).await;
        talk.end().await;
        lock
    });
    let outcome = case.move_out().wait();
    assert!(matches!(outcome.ending, Ending::Moved), "{outcome:?}");
    let _lock = target.wait();
    case.is_silent();
});

kernel_test!(a_target_that_forgot_leaves_it_in_doubt, || {
    let mut case = Case::new();
    let flow = case.flow;
    let target = case
        .b
        .begin(move |here| answer(here, flow, |id| Message::Unknown { id }));
    let doubt = doubt(case.move_out().wait());
    let _lock = target.wait();
    assert!(doubt.id().is_some());
    case.is_silent();
    // It ends here as silently as it stood.
    drop(doubt);
    let ends = case.net.peer.count(&end_of(case.flow));
    let (other, end) = case.net.connect(Family::V4);
    both_ways(&other, &end);
    assert_eq!(ends.packets(), 0, "RST or FIN at the peer");
    assert_eq!(case.a.entries(case.flow).len(), 1, "silence outlives it");
});

kernel_test!(
    a_target_that_is_gone_leaves_it_in_doubt_until_it_answers,
    || {
        let mut options = Options::default();
        options.answer_within = Duration::from_millis(200);
        options.ask_for = Duration::from_millis(300);
        let mut case = Case::with(Net::new(), &options);
        let flow = case.flow;
        let target = case
            .b
            .begin(move |here| async move { commit_and_hang_up(&here, flow).await });
        let first = doubt(case.move_out().wait());
        let Committed { fake, id, lock } = target.wait();
        assert_eq!(first.id(), Some(id));
        case.is_silent();

        // Still nobody there.
        let asked = case.a.call(|_| async { first.ask().await.ending });
        let Ending::InDoubt(second) = asked else {
            panic!("{asked:?}");
        };
        assert_eq!(second.id(), Some(id));

        let aborted = Message::Aborted {
            id,
            code: Code::Other,
            reason: "for a test".to_owned(),
        };
        let target = case.b.begin(move |_| answer_when_asked(fake, aborted));
        let mut ending = case.a.call(|_| async { second.ask().await.ending });
        while let Ending::InDoubt(again) = ending {
            ending = case.a.call(|_| async { again.ask().await.ending });
        }
        target.wait();
        case.goes_on(ending, lock, SENT, &["the target gave it up: for a test"]);
    }
);

kernel_test!(a_question_that_nobody_waits_for_is_asked_to_its_end, || {
    let mut options = Options::default();
    options.answer_within = Duration::from_millis(200);
    options.ask_for = Duration::from_millis(300);
    let mut case = Case::with(Net::new(), &options);
    let flow = case.flow;
    let target = case
        .b
        .begin(move |here| async move { commit_and_hang_up(&here, flow).await });
    let socket = case.server.take().unwrap().into();
    let (in_doubt, is_in_doubt) = std::sync::mpsc::channel();
    let asked = case.a.begin(move |here| async move {
        let mover = here.mover();
        let mut ending = mover.move_out(socket, None, &here.other()).await.ending;
        let mut asked = 0;
        while let Ending::InDoubt(doubt) = ending {
            asked += 1;
            let _ = in_doubt.send(());
            drop(doubt.ask());
            // Its outcome is there when it has one.
            ending = mover.unclaimed().await.remove(0).ending;
        }
        assert!(matches!(ending, Ending::Moved), "{ending:?}");
        asked
    });
    let Committed { fake, id, lock } = target.wait();
    is_in_doubt.recv().unwrap();
    let target = case.b.begin(move |_| answer_when_asked(fake, active(id)));
    target.wait();
    assert!(asked.wait() >= 1);
    drop(lock);
});

/// The redirect that stands for the connection at its source.
fn redirect_age(case: &Case) -> Duration {
    let entries = case.a.entries(case.flow);
    assert!(
        matches!(&entries[..], [entry] if matches!(entry.kind, EntryKind::Redirect { .. })),
        "{entries:?}"
    );
    entries[0]
        .age
        .expect("a redirect of nftables says how old it is")
}

kernel_test!(
    a_question_that_is_dropped_in_the_middle_is_answered_and_kept_silent_until_then,
    || {
        // Nothing of it runs out but the leases.
        let mut options = Options::default();
        options.answer_within = PATIENCE / 8;
        options.ask_for = PATIENCE / 4;
        options.lease = Duration::from_secs(2);
        options.redirect_lease = Duration::from_secs(2);
        let mut case = Case::with(Net::new(), &options);
        let flow = case.flow;
        let target = case
            .b
            .begin(move |here| async move { commit_and_hang_up(&here, flow).await });
        let socket = case.server.take().unwrap().into();
        let (committed, is_committed) = oneshot::channel();
        let (dropped, is_dropped) = oneshot::channel();
        let (heard, is_heard) = oneshot::channel();
        let asked = case.a.begin(move |here| async move {
            let mover = here.mover();
            let moving = mover.move_out(socket, None, &here.other());
            is_committed.await.unwrap();
            moving.cancel();
            let asking = doubt(moving.await).ask();
            tokio::select! {
                outcome = asking => panic!("nobody has answered: {outcome:?}"),
                heard = is_heard => heard.unwrap(),
            }
            // What waited for it is gone; the target has its question.
            dropped.send(()).unwrap();
            mover.unclaimed().await.remove(0).ending
        });
        let Committed { mut fake, id, lock } = target.wait();
        committed.send(()).unwrap();
        let (answer, may_answer) = oneshot::channel();
        let target = case.b.begin(move |_| async move {
            loop {
                let mut talk = fake.exchange().await;
                let message = talk.hear().await;
                if matches!(message, Some(Message::Commit { id: named, .. }) if named == id) {
                    heard.send(()).unwrap();
                    may_answer.await.unwrap();
                    talk.say(active(id)).await;
                    return talk.end().await;
                }
            }
        });
        is_dropped.blocking_recv().unwrap();
        // Renewed once that was seen, and once more.
        for _ in 0..2 {
            let before = Instant::now();
            until("it is renewed", || redirect_age(&case) < before.elapsed());
        }
        case.is_silent();
        answer.send(()).unwrap();
        target.wait();
        let ending = asked.wait();
        assert!(matches!(ending, Ending::Moved), "{ending:?}");
        drop(lock);
    }
);

// Until the target has built it a lock alone keeps it silent there, and nobody knows for how long.
kernel_test!(
    what_was_committed_at_once_is_kept_here_until_the_target_answers,
    || {
        let mut options = Options::default();
        options.answer_within = Duration::from_millis(200);
        options.ask_for = Duration::from_millis(300);
        let mut case = Case::with(Net::new(), &options);
        let flow = case.flow;
        let target = case.b.begin(move |here| async move {
            let mut fake = Fake::new(&here);
            let id = fake.exchange().await.take_at_once().await;
            fake.hang_up();
            (fake, id)
        });
        let mut open = doubt(case.move_out().wait());
        let (fake, id) = target.wait();
        let is_locked = |case: &Case| {
            let entries = case.a.entries(flow);
            matches!(&entries[..], [entry] if entry.kind == EntryKind::Lock)
        };
        assert!(is_locked(&case), "{:?}", case.a.entries(flow));
        let port = flow.remote().port();
        let [forwarded, heard] = [
            case.net.b.count(&format!("tcp sport {port}")),
            case.net.peer.count(&format!("tcp dport {port}")),
        ];
        case.peer.write_all(SENT).unwrap();
        let (other, end) = case.net.connect(Family::V4);
        both_ways(&other, &end);
        assert_eq!(
            forwarded.packets(),
            0,
            "it went where nobody answers for it"
        );
        assert_eq!(heard.packets(), 0, "somebody answered");

        let target = case.b.begin(move |_| answer_when_asked(fake, active(id)));
        loop {
            match case.a.call(|_| async { open.ask().await.ending }) {
                Ending::InDoubt(again) => {
                    assert!(is_locked(&case), "{:?}", case.a.entries(flow));
                    open = *again;
                }
                ending => break assert!(matches!(ending, Ending::Moved), "{ending:?}"),
            }
        }
        target.wait();
        // From now on it goes to the target.
        let entries = case.a.entries(flow);
        assert!(
            matches!(&entries[..], [entry] if matches!(entry.kind, EntryKind::Redirect { .. })),
            "{entries:?}"
        );
    }
);
