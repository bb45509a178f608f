//! The target vanishes, or talks nonsense, before COMMIT: the connection goes on where it is.

use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use tcpmig::driver::{Ending, Options};
use tcpmig::handover::{Code, HandoverId, Message};
use tcpmig_format::Layer;

use crate::support::{END, Fake, Family, Here, Net, Site, both_ways, flow, kept, kernel_test};

/// Moves a connection to a target that does this, and expects that it is kept for a reason with
/// these words.
fn kept_with<F>(words: &[&str], target: impl FnOnce(Rc<Here>) -> F + Send + 'static)
where
    F: Future<Output = ()> + 'static,
{
    kept_on(&Options::default(), 0, words, target);
}

/// Like [`kept_with`], but by a target that does not prepare it in time, with this many bytes of session state.
fn kept_in_time<F>(bytes: usize, target: impl FnOnce(Rc<Here>) -> F + Send + 'static)
where
    F: Future<Output = ()> + 'static,
{
    let mut options = Options::default();
    options.prepared_within = Duration::from_millis(300);
    kept_on(&options, bytes, &["did not prepare it within"], target);
}

fn kept_on<F>(
    options: &Options,
    bytes: usize,
    words: &[&str],
    target: impl FnOnce(Rc<Here>) -> F + Send + 'static,
) where
    F: Future<Output = ()> + 'static,
{
    let net = Net::new();
    let (a, b) = Site::pair(&net, options);
    let (peer, server) = net.connect(Family::V4);
    let flow = flow(&server);
    let ends = net.peer.count(END);
    let target = b.begin(target);
    let layer = (bytes > 0).then(|| Layer::new("tests", 1, vec![1; bytes]));
    let given: Vec<_> = layer.into_iter().collect();
    let outcome = a.move_out(server, given.clone()).wait();
    assert!(
        matches!(&outcome.ending, Ending::Kept { layers, .. } if *layers == given),
        "the session comes back as it was given: {outcome:?}"
    );
    let (server, reason) = kept(outcome);
    for word in words {
        assert!(reason.contains(word), "no {word:?} in {reason:?}");
    }
    both_ways(&peer, &server);
    assert_eq!(a.entries(flow), [], "locked after: {reason}");
    assert_eq!(b.entries(flow), []);
    assert_eq!(ends.packets(), 0, "RST or FIN at the peer");
    target.wait();
}

/// Answers OFFER with one message, and hears what is said about it: ABORT or the end.
async fn answer(here: Rc<Here>, answer: impl FnOnce(HandoverId) -> Message) {
    let mut fake = Fake::new(&here);
    let mut talk = fake.exchange().await;
    let id = talk.take().await;
    talk.say(answer(id)).await;
    let heard = talk.hear().await;
    assert!(
        heard.is_none() || heard == Some(Message::Abort { id }),
        "{heard:?}"
    );
}

kernel_test!(the_link_breaks_after_offer, || {
    kept_with(&["link to the target", "hung up"], |here| async move {
        let mut fake = Fake::new(&here);
        fake.exchange().await.take().await;
        fake.hang_up();
    });
});

kernel_test!(the_exchange_ends_after_offer, || {
    kept_with(&["link to the target", "gave up"], |here| async move {
        let mut fake = Fake::new(&here);
        let mut talk = fake.exchange().await;
        talk.take().await;
        // Answers nothing, and leaves the link as it is.
        drop(talk);
        here.keep(fake);
    });
});

kernel_test!(no_answer_comes, || {
    kept_in_time(0, |here| async move {
        let mut fake = Fake::new(&here);
        let mut talk = fake.exchange().await;
        let id = talk.take().await;
        assert_eq!(talk.answer().await, Message::Abort { id });
    });
});

kernel_test!(a_large_image_is_not_read, || {
    // More than a link holds that nobody reads from.
    kept_in_time(20 << 20, |here| async move {
        let mut fake = Fake::new(&here);
        let talk = fake.exchange().await;
        here.keep((fake, talk));
    });
});

kernel_test!(the_answer_is_no_message, || {
    kept_with(&["does not follow the protocol"], |here| async move {
        let mut fake = Fake::new(&here);
        let mut talk = fake.exchange().await;
        talk.take().await;
        talk.say_bytes(b"garbage"[..].into()).await;
        talk.end().await;
    });
});

kernel_test!(the_answer_is_about_another_handover, || {
    let words = ["does not follow the protocol", "another handover"];
    kept_with(&words, |here| {
        answer(here, |_| Message::Prepared {
            id: HandoverId::from_bytes([7; 16]),
            rebuild_us: 1,
        })
    });
});

kernel_test!(the_answer_is_what_only_sources_say, || {
    kept_with(&["does not follow the protocol", "COMMIT"], |here| {
        answer(here, Message::commit)
    });
});

kernel_test!(the_answer_is_active_before_commit, || {
    kept_with(&["does not follow the protocol", "ACTIVE"], |here| {
        answer(here, |id| Message::Active {
            id,
            rebuild_us: 1,
            activate_us: 1,
        })
    });
});

kernel_test!(the_answer_is_unknown_before_commit, || {
    kept_with(&["does not follow the protocol", "UNKNOWN"], |here| {
        answer(here, |id| Message::Unknown { id })
    });
});

kernel_test!(the_answer_is_refused, || {
    kept_with(&["the target refused it: for a test"], |here| {
        answer(here, |id| Message::Refused {
            code: Code::Full,
            id,
            reason: "for a test".to_owned(),
        })
    });
});
