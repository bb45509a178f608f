//! A doubt that a person settles, in the process that has it and from outside of it.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use tcpmig::driver::journal::{self, File, Undecided};
use tcpmig::driver::{Decision, Ending, InDoubt, Options};
use tcpmig::handover::HandoverId;
use tcpmig_lock::{EntryKind, LockGuard};

use crate::doubt::{Case, Committed, SENT, commit_and_hang_up, doubt};
use crate::support::{Net, both_ways, end_of, kernel_test};

/// A target that hangs up, and is not asked for long.
fn case() -> Case {
    let mut options = Options::default();
    options.answer_within = Duration::from_millis(200);
    options.ask_for = Duration::from_millis(300);
    Case::with(Net::new(), &options)
}

fn in_doubt() -> (Case, InDoubt, LockGuard) {
    let mut case = case();
    let flow = case.flow;
    let target = case
        .b
        .begin(move |here| async move { commit_and_hang_up(&here, flow).await });
    let doubt = doubt(case.move_out().wait());
    let Committed { id, lock, .. } = target.wait();
    assert_eq!(doubt.id(), Some(id));
    case.is_silent();
    (case, doubt, lock)
}

kernel_test!(a_doubt_that_is_settled_as_kept_goes_on_here, || {
    let (case, doubt, lock) = in_doubt();
    let ending = case
        .a
        .call(|_| async move { doubt.settle(Decision::Kept).await.ending });
    case.goes_on(ending, lock, SENT, &["settled by hand"]);
});

kernel_test!(a_doubt_that_is_settled_otherwise_ends_here_silently, || {
    for decision in [Decision::Moved, Decision::Lost] {
        let (case, doubt, _lock) = in_doubt();
        let ends = case.net.peer.count(&end_of(case.flow));
        let ending = case
            .a
            .call(move |_| async move { doubt.settle(decision).await.ending });
        let entries = case.a.entries(case.flow);
        if decision == Decision::Moved {
            assert!(matches!(ending, Ending::Moved), "{ending:?}");
            let redirects = |kind: &EntryKind| matches!(kind, EntryKind::Redirect { .. });
            assert!(redirects(&entries[0].kind), "{entries:?}");
            assert_eq!(ends.packets(), 0, "RST or FIN at the peer");
        } else {
            // Nobody has it: what the peer sends again from here on draws an RST, which tells it so.
            assert!(matches!(ending, Ending::Lost(_)), "{ending:?}");
            assert_eq!(entries, []);
        }
    }
});

kernel_test!(a_settlement_that_nobody_waits_for_is_carried_out, || {
    let mut case = case();
    let flow = case.flow;
    let target = case
        .b
        .begin(move |here| async move { commit_and_hang_up(&here, flow).await });
    let socket: OwnedFd = case.server.take().unwrap().into();
    let settled = case.a.begin(move |here| async move {
        let mover = here.mover();
        let outcome = mover.move_out(socket, None, &here.other()).await;
        let mut settling = doubt(outcome).settle(Decision::Kept);
        // It has begun, and is not at its end: its task is of this thread.
        tokio::select! {
            biased;
            outcome = &mut settling => panic!("at once: {outcome:?}"),
            () = std::future::ready(()) => drop(settling),
        }
        mover.unclaimed().await.remove(0).ending
    });
    let Committed { lock, .. } = target.wait();
    let ending = settled.wait();
    case.goes_on(ending, lock, b"", &["settled by hand"]);
});

/// Like [`in_doubt`], of a mover with a journal in the folder, that goes on asking.
fn asking(
    folder: &std::path::Path,
) -> (Case, HandoverId, LockGuard, crate::support::Running<Ending>) {
    let mut case = case();
    let flow = case.flow;
    let path = folder.join("journal");
    let target = case
        .b
        .begin(move |here| async move { commit_and_hang_up(&here, flow).await });
    let socket: OwnedFd = case.server.take().unwrap().into();
    let ending = case.a.begin(move |here| async move {
        let journal = Arc::new(File::open(&path).unwrap());
        let mover = here.mover().with_journal(journal);
        let mut ending = mover.move_out(socket, None, &here.other()).await.ending;
        while let Ending::InDoubt(doubt) = ending {
            ending = doubt.ask().await.ending;
        }
        ending
    });
    let Committed { id, lock, .. } = target.wait();
    (case, id, lock, ending)
}

/// Once the process says so.
fn is_in_doubt(path: &std::path::Path, id: HandoverId) {
    let begin = std::time::Instant::now();
    loop {
        let listing = journal::read(path).unwrap();
        assert!(listing.in_use);
        let open = listing.open.iter().find(|open| open.id == id);
        if open.expect("it is open").in_doubt_since.is_some() {
            return;
        }
        assert!(begin.elapsed() < crate::support::PATIENCE, "not in doubt");
        std::thread::sleep(Duration::from_millis(10));
    }
}

kernel_test!(
    a_decision_from_outside_is_taken_while_the_target_is_asked,
    || {
        for decision in [Decision::Kept, Decision::Moved] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("journal");
            let (case, id, lock, ending) = asking(folder.path());
            is_in_doubt(&path, id);
            let stranger = HandoverId::from_bytes([7; 16]);
            let error = journal::decide(&path, stranger, decision, Duration::from_secs(20));
            assert!(matches!(error, Err(Undecided::NotInDoubt(other)) if other == stranger));
            journal::decide(&path, id, decision, Duration::from_secs(20)).unwrap();
            let ending = ending.wait();
            if decision == Decision::Kept {
                case.goes_on(ending, lock, b"", &["settled by hand"]);
            } else {
                assert!(matches!(ending, Ending::Moved), "{ending:?}");
            }
            let listing = journal::read(&path).unwrap();
            assert_eq!(listing.open, []);
            // Nothing of it is left for a handover to come.
            let left = std::fs::read_dir(folder.path()).unwrap();
            let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
            assert!(
                !left
                    .iter()
                    .any(|name| name.to_string_lossy().contains("settle")),
                "{left:?}"
            );
        }
    }
);

kernel_test!(a_decision_that_nobody_takes_is_withdrawn, || {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let mut case = case();
    let flow = case.flow;
    let target = case
        .b
        .begin(move |here| async move { commit_and_hang_up(&here, flow).await });
    let socket: OwnedFd = case.server.take().unwrap().into();
    let journal_at = path.clone();
    let outcome = case.a.call(move |here| async move {
        let journal = Arc::new(File::open(&journal_at).unwrap());
        let mover = here.mover().with_journal(journal);
        mover.move_out(socket, None, &here.other()).await
    });
    // Its program keeps it, and does not ask.
    let kept = doubt(outcome);
    let Committed { id, lock, .. } = target.wait();
    is_in_doubt(&path, id);
    let within = Duration::from_millis(300);
    let error = journal::decide(&path, id, Decision::Kept, within).unwrap_err();
    assert!(matches!(error, Undecided::NotTaken(_)), "{error}");
    let Ending::InDoubt(kept) = case.a.call(|_| async { kept.ask().await.ending }) else {
        panic!("it was withdrawn");
    };
    let ending = case
        .a
        .call(|_| async { kept.settle(Decision::Kept).await.ending });
    case.goes_on(ending, lock, b"", &["settled by hand"]);
    let (peer, server) = case.net.connect(crate::support::Family::V4);
    both_ways(&peer, &server);
});
