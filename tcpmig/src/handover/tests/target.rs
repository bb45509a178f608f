//! What a target decides, step by step.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::super::*;

/// A target, and how late it is there.
struct Host {
    sessions: TargetSessions<u8>,
    now: Duration,
    from: Arc<str>,
    id: HandoverId,
}

type Action = TargetAction<u8>;

const DONE: TargetResult = TargetResult::Done;

impl Host {
    fn new() -> Self {
        Self::with(TargetConfig::default())
    }

    fn with(config: TargetConfig) -> Self {
        Self {
            sessions: TargetSessions::new(config),
            now: Duration::ZERO,
            from: "source".into(),
            id: HandoverId::from_bytes([7; 16]),
        }
    }

    fn hear(&mut self, link: u8, message: Message) -> Heard {
        self.sessions
            .handle_message(self.now, &self.from, link, message, None)
    }

    fn offer(&mut self, link: u8) -> Heard {
        let (id, draft) = (self.id, Bytes::from_static(b"draft"));
        self.hear(
            link,
            Message::Offer {
                id,
                queued: 3,
                draft,
            },
        )
    }

    fn image(&mut self, link: u8, waits: bool, bytes: usize) {
        let (id, image) = (self.id, Bytes::from(vec![0; bytes]));
        let heard = self.hear(link, Message::Image { id, waits, image });
        assert_eq!(heard, Heard::Poll(self.id));
    }

    fn commit(&mut self, link: u8) {
        let heard = self.hear(link, Message::commit(self.id));
        assert_eq!(heard, Heard::Poll(self.id));
    }

    fn abort(&mut self) {
        let heard = self.hear(0, Message::Abort { id: self.id });
        assert_eq!(heard, Heard::Poll(self.id));
    }

    fn poll(&mut self) -> Option<Action> {
        self.sessions.poll(self.id)
    }

    /// The next action is this one, and ends so.
    #[track_caller]
    fn does(&mut self, name: &str, result: TargetResult) {
        let action = self.poll();
        let said = format!("{action:?}");
        assert!(said.contains(name), "{said}");
        self.sessions.handle_result(self.now, self.id, result);
    }

    /// Sends this, over this link.
    #[track_caller]
    fn says(&mut self, over: u8, name: &str) {
        match self.poll() {
            Some(Action::Send { link, message }) => {
                assert_eq!((link, message.name()), (over, name));
            }
            other => panic!("{other:?} in place of {name}"),
        }
    }

    #[track_caller]
    fn waits(&mut self) {
        assert_eq!(self.poll(), None);
    }

    fn accept(&mut self, link: u8) {
        assert_eq!(self.offer(link), Heard::Poll(self.id));
        self.does("Examine", DONE);
        self.does("Lock", TargetResult::Locked(Duration::from_secs(20)));
        self.does("Note(Prepared)", DONE);
        self.says(link, "ACCEPTED");
        self.waits();
    }

    fn prepare(&mut self, link: u8) {
        self.accept(link);
        self.image(link, true, 5);
        self.does("Build", DONE);
        self.says(link, "PREPARED");
        self.waits();
    }

    fn late(&mut self) {
        self.now = self.sessions.poll_timeout().expect("it waits for COMMIT");
        self.sessions.handle_timeout(self.now);
        assert_eq!(self.sessions.poll_ready(), Some(self.id));
    }

    fn fate(&self) -> Option<Fate> {
        self.sessions.fate(self.id)
    }
}

#[test]
fn commit_counts_over_whatever_link_and_is_answered_each_time() {
    let mut host = Host::new();
    host.prepare(1);
    host.commit(2);
    host.does("Note(Activating)", DONE);
    host.does("Activate", DONE);
    host.says(2, "ACTIVE");
    host.does("Deliver", DONE);
    host.does("Note(Active)", DONE);
    host.waits();
    assert_eq!(host.fate(), Some(Fate::Moved));
    host.commit(3);
    host.says(3, "ACTIVE");
    host.waits();
}

#[test]
fn commit_at_once_is_answered_by_what_comes_of_the_image() {
    let mut host = Host::new();
    host.accept(1);
    host.image(1, false, 5);
    host.does("Build", DONE);
    // PREPARED is not waited for.
    host.waits();
    host.commit(1);
    host.does("Note(Activating)", DONE);
    host.does("Activate", DONE);
    host.says(1, "ACTIVE");

    let mut host = Host::new();
    host.accept(1);
    host.image(1, false, 5);
    host.does("Build", TargetResult::Failed(Refusal::other("it broke")));
    host.does("Note(Aborted)", DONE);
    host.waits();
    host.commit(1);
    host.says(1, "ABORTED");
    host.abort();
    host.does("Unlock", DONE);
    host.waits();
}

#[test]
fn commit_without_its_image_is_answered_with_aborted() {
    let mut host = Host::new();
    host.accept(1);
    host.commit(2);
    host.does("Discard", TargetResult::Discarded { moved_on: false });
    host.does("Note(Aborted)", DONE);
    host.says(2, "ABORTED");
    // It comes by another link after all.
    host.image(1, true, 5);
    host.says(1, "ABORTED");
    host.waits();
    assert_eq!(host.fate(), Some(Fate::Kept));
}

#[test]
fn what_is_accepted_is_not_waited_for_for_ever() {
    let mut host = Host::new();
    host.accept(1);
    host.now += Duration::from_secs(9);
    host.image(1, true, 5);
    host.does("Build", DONE);
    host.says(1, "PREPARED");
    host.waits();
    // COMMIT has its own time.
    host.late();
    assert!(host.now >= Duration::from_secs(19), "{:?}", host.now);
    host.does(
        "COMMIT did not come in time",
        TargetResult::Discarded { moved_on: false },
    );

    let mut host = Host::new();
    host.accept(1);
    host.late();
    host.does(
        "the image did not come in time",
        TargetResult::Discarded { moved_on: false },
    );
    host.does("Note(Aborted)", DONE);
    host.waits();
    host.abort();
    host.does("Unlock", DONE);
}

#[test]
fn an_image_that_is_larger_than_there_is_room_for_is_not_built() {
    let mut host = Host::with(TargetConfig {
        bytes_by_each: 100,
        ..TargetConfig::default()
    });
    host.accept(1);
    host.image(1, true, 101);
    host.does("full", TargetResult::Discarded { moved_on: false });
    host.does("Note(Aborted)", DONE);
    let Some(Action::Send { message, .. }) = host.poll() else {
        panic!("the source is told");
    };
    assert!(format!("{message:?}").contains("code: Full"), "{message:?}");
    host.abort();
    host.does("Unlock", DONE);
    host.waits();
    // Its room is free again.
    host.id = HandoverId::from_bytes([8; 16]);
    host.accept(1);
    host.image(1, true, 100);
    host.does("Build", DONE);
}

#[test]
fn what_comes_while_it_is_activated_waits_for_that() {
    let mut host = Host::new();
    host.prepare(1);
    host.commit(1);
    host.does("Note(Activating)", DONE);
    assert!(matches!(host.poll(), Some(Action::Activate { .. })));
    host.commit(2);
    host.abort();
    host.waits();
    let result = TargetResult::NotActivated {
        why: Refusal::other("it broke"),
        moved_on: false,
        is_locked: true,
    };
    host.sessions.handle_result(host.now, host.id, result);
    host.does("Note(Aborted)", DONE);
    host.says(1, "ABORTED");
    host.says(2, "ABORTED");
    host.does("Unlock", DONE);
    host.waits();
    assert_eq!(host.fate(), Some(Fate::Kept));
}

#[test]
fn a_commit_after_the_deadline_is_answered_with_aborted() {
    let mut host = Host::new();
    host.prepare(1);
    host.late();
    host.does("Discard", TargetResult::Discarded { moved_on: false });
    host.does("Note(Aborted)", DONE);
    host.waits();
    host.commit(2);
    host.says(2, "ABORTED");
    // It stays locked until the source has the packets again.
    host.abort();
    host.does("Unlock", DONE);
    host.waits();
}

#[test]
fn what_moved_on_is_lost_and_not_given_back() {
    let moved_on = true;
    let mut host = Host::new();
    host.prepare(1);
    host.late();
    host.does("Discard", TargetResult::Discarded { moved_on });
    host.does("Note(Activating)", DONE);
    host.commit(2);
    host.says(2, "LOST");
    assert_eq!(host.fate(), Some(Fate::Lost));

    let mut host = Host::new();
    host.prepare(1);
    host.commit(1);
    host.does("Note(Activating)", DONE);
    let why = Refusal::other("it broke");
    let result = TargetResult::NotActivated {
        why,
        moved_on,
        is_locked: false,
    };
    host.does("Activate", result);
    host.does("Note(Activating)", DONE);
    host.says(1, "LOST");
}

#[test]
fn what_nobody_can_say_is_lost() {
    let mut host = Host::new();
    host.prepare(1);
    host.commit(1);
    host.does("Note(Activating)", DONE);
    let failed = TargetResult::Failed(Refusal::other("a call panicked"));
    host.does("Activate", failed);
    host.does("Note(Activating)", DONE);
    host.says(1, "LOST");
}

#[test]
fn what_cannot_be_noted_is_not_done() {
    let failed = || TargetResult::Failed(Refusal::other("journal: the disk is full"));
    let discarded = TargetResult::Discarded { moved_on: false };
    let mut host = Host::new();
    assert_eq!(host.offer(1), Heard::Poll(host.id));
    host.does("Examine", DONE);
    host.does("Lock", TargetResult::Locked(Duration::from_secs(20)));
    host.does("Note(Prepared)", failed());
    host.does("Discard", discarded.clone());
    host.does("Unlock", DONE);
    host.says(1, "REFUSED");
    host.waits();

    host.prepare(2);
    host.commit(2);
    host.does("Note(Activating)", failed());
    host.does("Discard", discarded);
    host.does("Note(Aborted)", DONE);
    host.says(2, "ABORTED");
    host.waits();
}

#[test]
fn what_is_given_up_meanwhile_is_called_neither_accepted_nor_prepared() {
    let mut host = Host::new();
    assert_eq!(host.offer(1), Heard::Poll(host.id));
    host.does("Examine", DONE);
    assert_eq!(host.poll(), Some(Action::Lock));
    host.abort();
    let locked = TargetResult::Locked(Duration::from_secs(20));
    host.sessions.handle_result(host.now, host.id, locked);
    host.does("Note(Prepared)", DONE);
    host.does("Discard", TargetResult::Discarded { moved_on: false });
    host.does("Note(Aborted)", DONE);
    host.says(1, "ABORTED");
    host.does("Unlock", DONE);
    host.waits();

    let mut host = Host::new();
    host.accept(1);
    host.image(1, true, 5);
    assert!(matches!(host.poll(), Some(Action::Build { .. })));
    host.abort();
    host.sessions.handle_result(host.now, host.id, DONE);
    host.does("Discard", TargetResult::Discarded { moved_on: false });
    host.does("Note(Aborted)", DONE);
    host.says(1, "ABORTED");
    host.does("Unlock", DONE);
    host.waits();
}

#[test]
fn an_offer_counts_once_unless_it_was_refused() {
    let mut host = Host::with(TargetConfig {
        prepared_at_once: 1,
        ..TargetConfig::default()
    });
    let full = TargetResult::Failed(Refusal::new(Code::Policy, "policy: no"));
    for link in 0..3 {
        assert_eq!(host.offer(link), Heard::Poll(host.id));
        host.does("Examine", full.clone());
        host.says(link, "REFUSED");
        host.waits();
        assert_eq!(host.sessions.poll_forgotten(), Some(host.id));
    }
    host.prepare(4);
    let Heard::Answer(Message::Refused { code, .. }) = host.offer(5) else {
        panic!("it was offered before");
    };
    assert_eq!(code, Code::Other);
    let first = std::mem::replace(&mut host.id, HandoverId::from_bytes([8; 16]));
    let Heard::Answer(Message::Refused { code, .. }) = host.offer(5) else {
        panic!("there is no room");
    };
    assert_eq!(code, Code::Full);
    // A place is taken for as long as something is locked.
    let second = std::mem::replace(&mut host.id, first);
    host.late();
    host.does("Discard", TargetResult::Discarded { moved_on: false });
    host.does("Note(Aborted)", DONE);
    host.waits();
    host.id = second;
    assert!(matches!(host.offer(5), Heard::Answer(_)));
    host.id = first;
    host.abort();
    host.does("Unlock", DONE);
    host.id = second;
    host.prepare(6);
}

#[test]
fn only_the_host_that_offered_it_has_a_say() {
    let mut host = Host::new();
    host.prepare(1);
    host.from = "another".into();
    let (commit, abort) = (Message::commit(host.id), Message::Abort { id: host.id });
    let unknown = Message::Unknown { id: host.id };
    assert_eq!(host.hear(2, commit.clone()), Heard::Foreign(Some(unknown)));
    assert_eq!(host.hear(2, abort), Heard::Foreign(None));
    host.waits();

    // Nor does one that a process before this one was not offered it by.
    let mut host = Host::new();
    let (from, id) = (host.from.clone(), host.id);
    let mut answer = |note, offered_by: &str| {
        let offered_by = Some(offered_by.to_owned());
        let recalled = Some(Recalled { note, offered_by });
        let now = Duration::ZERO;
        match host
            .sessions
            .handle_message(now, &from, 1, Message::commit(id), recalled.as_ref())
        {
            Heard::Answer(message) | Heard::Foreign(Some(message)) => message.name(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(answer(Note::Prepared, "source"), "ABORTED");
    assert_eq!(answer(Note::Aborted, "source"), "ABORTED");
    assert_eq!(answer(Note::Activating, "source"), "LOST");
    assert_eq!(answer(Note::Active, "source"), "LOST");
    assert_eq!(answer(Note::Active, "another"), "UNKNOWN");
}

#[test]
fn what_ended_is_remembered_for_its_time() {
    let mut host = Host::with(TargetConfig {
        remember: Duration::from_secs(80),
        ..TargetConfig::default()
    });
    host.prepare(1);
    host.commit(1);
    host.does("Note(Activating)", DONE);
    host.does("Activate", DONE);
    host.says(1, "ACTIVE");
    host.does("Deliver", DONE);
    host.does("Note(Active)", DONE);
    while host.sessions.knows(host.id) {
        assert!(host.now < Duration::from_secs(90), "it is never forgotten");
        host.now = host.sessions.poll_timeout().expect("it is forgotten once");
        host.sessions.handle_timeout(host.now);
    }
    assert!(host.now >= Duration::from_secs(80));
    assert_eq!(host.sessions.poll_forgotten(), Some(host.id));
    assert_eq!(host.sessions.poll_timeout(), None);
    let heard = host.hear(2, Message::commit(host.id));
    assert_eq!(heard, Heard::Answer(Message::Unknown { id: host.id }));
}
