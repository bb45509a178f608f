//! What a source decides, step by step.

use std::time::Duration;

use bytes::Bytes;

use super::super::*;

type Session = SourceSession<&'static str>;
type Result = SourceResult<&'static str>;

const DONE: Result = SourceResult::Done;

/// A source, and how late it is there.
struct Host {
    session: Session,
    now: Duration,
}

fn id() -> HandoverId {
    HandoverId::from_bytes([7; 16])
}

fn refusal() -> (Code, String) {
    (Code::Full, "no".to_owned())
}

fn aborted() -> Message {
    let (code, reason) = refusal();
    let id = id();
    Message::Aborted { id, code, reason }
}

fn active() -> Message {
    Message::Active {
        id: id(),
        rebuild_us: 3,
        activate_us: 5,
    }
}

fn lost() -> Message {
    Message::Lost {
        id: id(),
        reason: "it died".to_owned(),
    }
}

fn unknown() -> Message {
    Message::Unknown { id: id() }
}

impl Host {
    fn new() -> Self {
        Self::of(Session::new(SourceConfig::default(), id()))
    }

    fn of(session: Session) -> Self {
        let now = Duration::ZERO;
        Self { session, now }
    }

    fn orphaned(note: Note) -> Self {
        let config = SourceConfig::default();
        let until = config.ask_for;
        Self::of(Session::orphaned(config, id(), note, until))
    }

    /// The next action is this one, and ends so.
    #[track_caller]
    fn does(&mut self, name: &str, result: Result) {
        let action = self.session.poll();
        let said = format!("{action:?}");
        assert!(said.contains(name), "{said} in place of {name}");
        self.session.handle_result(self.now, result);
    }

    #[track_caller]
    fn waits(&mut self) {
        assert_eq!(self.session.poll(), None);
    }

    fn hears(&mut self, message: Message) {
        self.session.handle_message(self.now, message);
    }

    #[track_caller]
    fn late(&mut self) {
        self.now = self.session.poll_timeout().expect("it waits");
        self.session.handle_timeout(self.now);
    }

    #[track_caller]
    fn ends(&mut self, fate: Fate) -> Why<&'static str> {
        self.waits();
        assert_eq!(self.session.ended(), Some(fate));
        assert_eq!(self.session.poll_timeout(), None);
        self.session.take_why()
    }

    /// It is described and noted, and OFFER is next.
    fn begin(&mut self) {
        let draft = Bytes::from_static(b"draft");
        self.does("Describe", SourceResult::Described { queued: 7, draft });
        self.does("Note(Offering)", DONE);
    }

    fn offer(&mut self) {
        self.begin();
        self.does("OFFER", DONE);
        self.waits();
        assert!(self.session.listens());
    }

    fn accepted(&mut self, is_locked: bool) {
        let locked_ms = if is_locked { 2000 } else { 1999 };
        self.hears(Message::Accepted {
            id: id(),
            locked_ms,
        });
    }

    fn freeze(&mut self) {
        let image = Bytes::from_static(b"image");
        self.does("Freeze", SourceResult::Frozen { image });
    }

    /// Its image is sent, and PREPARED is waited for.
    fn image(&mut self) {
        self.offer();
        self.accepted(false);
        self.freeze();
        self.does("waits: true", DONE);
        self.waits();
        assert!(self.session.listens());
    }

    fn prepared(&mut self) {
        let rebuild_us = 3;
        self.hears(Message::Prepared {
            id: id(),
            rebuild_us,
        });
    }

    fn commit(&mut self) {
        self.image();
        self.prepared();
        let packets = vec![Bytes::from_static(&[0x45; 20])];
        self.does("Confirm", SourceResult::Confirmed { packets });
        self.does("Note(Committing)", DONE);
        self.does("COMMIT", DONE);
        self.waits();
        assert!(self.session.has_committed());
    }

    fn commit_at_once(&mut self) {
        self.offer();
        self.accepted(true);
        self.freeze();
        self.does("waits: false", DONE);
        let packets = Vec::new();
        self.does("Confirm", SourceResult::Confirmed { packets });
        self.does("Note(Committing)", DONE);
        self.does("COMMIT", DONE);
    }

    #[track_caller]
    fn keeps(&mut self) {
        self.does("Keep", DONE);
        self.does("Note(Kept)", DONE);
        self.does("ABORT", DONE);
    }

    #[track_caller]
    fn asks(&mut self) {
        self.does("LookUpDecision", SourceResult::Decided(None));
        self.does("Connect", DONE);
        self.does("packets: 1", DONE);
        self.waits();
    }
}

#[test]
fn a_connection_moves() {
    let mut host = Host::new();
    host.commit();
    host.hears(active());
    host.does("Discard", DONE);
    host.does("Note(Moved)", DONE);
    assert_eq!(host.ends(Fate::Moved), Why::Agreed);
    let us = Duration::from_micros;
    assert_eq!(host.session.target_took(), (us(3), us(5)));
}

#[test]
fn commit_follows_a_small_image_at_once_where_packets_are_locked() {
    let mut host = Host::new();
    host.commit_at_once();
    host.hears(active());
    host.does("Discard", DONE);
    host.does("Note(Moved)", DONE);
    host.ends(Fate::Moved);
    let us = Duration::from_micros;
    assert_eq!(host.session.target_took(), (us(3), us(5)));

    // A target that could not build it says so instead.
    let mut host = Host::new();
    host.commit_at_once();
    host.hears(aborted());
    host.keeps();
    host.ends(Fate::Kept);

    // One that does not answer may stand still: what is steered to it is silenced here before its lock can end.
    let commit = |ask_for| {
        let mut host = Host::of(Session::new(
            SourceConfig {
                ask_for,
                ..SourceConfig::default()
            },
            id(),
        ));
        host.commit_at_once();
        host
    };
    let mut host = commit(Duration::from_secs(20));
    host.late();
    host.does("Silence", DONE);
    host.does("LookUpDecision", SourceResult::Decided(None));
    host.does("Connect", DONE);
    host.does("COMMIT", DONE);
    host.late();
    host.late();
    // Once is enough.
    host.does("LookUpDecision", SourceResult::Decided(None));
    let mut host = commit(Duration::ZERO);
    host.late();
    host.does("Silence", DONE);
    host.does("Doubt", DONE);
    host.ends(Fate::InDoubt);
    let mut host = commit(Duration::from_secs(20));
    host.session.cancel(host.now);
    host.does("Silence", DONE);
    host.does("Doubt", DONE);
    host.ends(Fate::InDoubt);

    // A large one has its time.
    let mut host = Host::new();
    host.offer();
    host.accepted(true);
    let image = Bytes::from(vec![0; SourceConfig::default().commit_at_once + 1]);
    host.does("Freeze", SourceResult::Frozen { image });
    host.does("waits: true", DONE);
    host.waits();
    assert!(!host.session.has_committed());
}

#[test]
fn before_commit_it_goes_on_here_whatever_happens() {
    type Happens = fn(&mut Host);
    let (code, reason) = refusal();
    let refused = Refusal::new(code, reason);
    let cases: [(Happens, Why<&str>); 7] = [
        (
            |host| {
                let (code, reason) = refusal();
                let id = id();
                host.hears(Message::Refused { id, code, reason });
            },
            Why::Refused(refused.clone()),
        ),
        (|host| host.hears(aborted()), Why::Aborted(refused)),
        (|host| host.hears(active()), Why::Unexpected("ACTIVE")),
        (
            |host| host.hears(Message::commit(id())),
            Why::Unexpected("COMMIT"),
        ),
        (
            |host| {
                host.hears(Message::Hello {
                    oldest: 7,
                    newest: 9,
                });
            },
            Why::Version {
                oldest: 7,
                newest: 9,
            },
        ),
        (
            |host| host.session.handle_link_lost(host.now, "cut"),
            Why::Failed("cut"),
        ),
        (|host| host.late(), Why::TooLate(Duration::from_secs(3))),
    ];
    for (happens, why) in cases {
        for comes_to in [Host::offer, Host::image] {
            let mut host = Host::new();
            comes_to(&mut host);
            happens(&mut host);
            host.keeps();
            assert_eq!(host.ends(Fate::Kept), why);
        }
    }
}

#[test]
fn a_target_that_does_not_read_is_not_waited_for() {
    let mut host = Host::new();
    host.begin();
    assert!(matches!(
        host.session.poll(),
        Some(SourceAction::Send(Message::Offer { .. }))
    ));
    host.late();
    host.does("Keep", DONE);
    host.does("Note(Kept)", DONE);
    assert!(matches!(
        host.session.poll(),
        Some(SourceAction::Send(Message::Abort { .. }))
    ));
    host.late();
    let why = Why::TooLate(Duration::from_secs(3));
    assert_eq!(host.ends(Fate::Kept), why);
}

#[test]
fn what_cannot_be_noted_is_not_done() {
    let mut host = Host::new();
    let draft = Bytes::new();
    host.does("Describe", SourceResult::Described { queued: 0, draft });
    host.does("Note(Offering)", SourceResult::Failed("full"));
    assert_eq!(host.ends(Fate::Kept), Why::Failed("full"));

    let mut host = Host::new();
    host.does("Describe", SourceResult::Failed("a listener"));
    assert_eq!(host.ends(Fate::Kept), Why::Failed("a listener"));

    let mut host = Host::new();
    host.offer();
    host.accepted(true);
    host.does("Freeze", SourceResult::Failed("it is locked"));
    host.keeps();
    assert_eq!(host.ends(Fate::Kept), Why::Failed("it is locked"));

    let mut host = Host::new();
    host.image();
    host.prepared();
    let packets = Vec::new();
    host.does("Confirm", SourceResult::Confirmed { packets });
    host.does("Note(Committing)", SourceResult::Failed("full"));
    host.keeps();
    assert_eq!(host.ends(Fate::Kept), Why::Failed("full"));
}

#[test]
fn a_lost_commit_is_asked_for_again_and_never_thaws() {
    let mut host = Host::new();
    host.commit();
    // The first time at once.
    host.session.handle_link_lost(host.now, "cut");
    host.asks();
    let mut asked = 1;
    // No answer.
    host.late();
    loop {
        host.waits();
        assert!(!host.session.listens());
        // The pause is over.
        host.late();
        if host.session.peek() == Some(&SourceAction::Doubt) {
            break;
        }
        asked += 1;
        host.does("LookUpDecision", SourceResult::Decided(None));
        host.does("Connect", SourceResult::Failed("unreachable"));
    }
    host.does("Doubt", DONE);
    assert!(asked > 20, "{asked}");
    assert_eq!(host.now, Duration::from_secs(20));
    assert_eq!(host.ends(Fate::InDoubt), Why::Failed("unreachable"));

    // An answer that comes after all settles it.
    for (answer, fate) in [
        (active(), Fate::Moved),
        (aborted(), Fate::Kept),
        (lost(), Fate::Lost),
    ] {
        let mut host = Host::of(host.session.clone());
        host.session.ask(host.now);
        host.asks();
        host.hears(unknown());
        host.does("Doubt", DONE);
        host.ends(Fate::InDoubt);
        host.session.ask(host.now);
        host.asks();
        host.hears(answer);
        match fate {
            Fate::Kept => host.keeps(),
            Fate::Lost => {
                host.does("Discard", DONE);
                host.does("EndRedirect", DONE);
                host.does("Note(Lost)", DONE);
            }
            _ => {
                host.does("Discard", DONE);
                host.does("Note(Moved)", DONE);
            }
        }
        host.ends(fate);
    }
}

#[test]
fn a_person_can_end_a_doubt() {
    let mut host = Host::new();
    host.commit();
    host.late();
    let kept = SourceResult::Decided(Some(Decision::Kept));
    host.does("LookUpDecision", kept);
    // For the ABORT; but not for long.
    host.does("Connect", SourceResult::Failed("unreachable"));
    host.does("Keep", DONE);
    host.does("Note(Kept)", DONE);
    assert_eq!(host.ends(Fate::Kept), Why::Settled);

    let mut host = Host::new();
    host.commit();
    host.session.give_up(host.now, "no time");
    host.does("Doubt", DONE);
    host.ends(Fate::InDoubt);
    host.session.settle(host.now, Decision::Kept);
    host.does("Connect", DONE);
    host.keeps();
    assert_eq!(host.ends(Fate::Kept), Why::Settled);
}

#[test]
fn a_handover_that_is_cancelled_is_kept_or_in_doubt() {
    let mut host = Host::new();
    host.session.cancel(host.now);
    assert_eq!(host.ends(Fate::Kept), Why::Cancelled);

    // What is under way is done to its end.
    let mut host = Host::new();
    host.offer();
    host.accepted(true);
    assert_eq!(host.session.poll(), Some(SourceAction::Freeze));
    host.session.cancel(host.now);
    host.waits();
    let image = Bytes::new();
    host.session
        .handle_result(host.now, SourceResult::Frozen { image });
    host.keeps();
    assert_eq!(host.ends(Fate::Kept), Why::Cancelled);

    let mut host = Host::new();
    host.image();
    host.prepared();
    let packets = Vec::new();
    host.does("Confirm", SourceResult::Confirmed { packets });
    let noting = host.session.poll();
    assert_eq!(noting, Some(SourceAction::Note(Note::Committing)));
    host.session.cancel(host.now);
    host.session.handle_result(host.now, DONE);
    host.keeps();
    assert_eq!(host.ends(Fate::Kept), Why::Cancelled);

    let mut host = Host::new();
    host.commit();
    host.session.cancel(host.now);
    host.does("Doubt", DONE);
    assert_eq!(host.ends(Fate::InDoubt), Why::Cancelled);
}

#[test]
fn an_orphan_is_asked_about_and_nothing_thaws() {
    for fate in [Fate::Moved, Fate::Lost, Fate::InDoubt] {
        let mut host = Host::orphaned(Note::Committing);
        assert!(host.session.has_committed());
        host.does("Connect", DONE);
        host.does("packets: 0", DONE);
        host.late();
        host.waits();
        host.late();
        host.does("Connect", DONE);
        host.does("packets: 0", DONE);
        host.hears(match fate {
            Fate::Moved => active(),
            Fate::Lost => lost(),
            _ => unknown(),
        });
        match fate {
            Fate::Moved => host.does("Note(Moved)", DONE),
            Fate::Lost => {
                host.does("EndRedirect", DONE);
                host.does("Note(Lost)", DONE);
            }
            _ => host.does("Doubt", DONE),
        }
        host.ends(fate);
    }
}

#[test]
fn a_target_is_told_again_until_it_has_read_that_nobody_has_the_connection() {
    let mut given_back = Host::orphaned(Note::Committing);
    given_back.does("Connect", DONE);
    given_back.does("COMMIT", DONE);
    given_back.hears(aborted());
    for mut host in [given_back, Host::orphaned(Note::Offering)] {
        for finished in [SourceResult::Failed("cut"), DONE] {
            host.does("Connect", DONE);
            // A target that is told answers what still comes there with RST.
            host.does("EndRedirect", DONE);
            host.does("ABORT", DONE);
            let is_cut = matches!(finished, SourceResult::Failed(_));
            host.does("Finish", finished);
            if is_cut {
                host.waits();
                host.late();
            }
        }
        host.does("EndRedirect", DONE);
        host.does("Note(Lost)", DONE);
        host.ends(Fate::Lost);
    }
}

#[test]
fn a_target_that_is_somebody_else_is_not_asked_again() {
    let mut host = Host::orphaned(Note::Committing);
    host.does("Connect", SourceResult::Hopeless("another certificate"));
    host.does("Doubt", DONE);
    assert!(!host.session.has_heard());
    assert_eq!(host.ends(Fate::InDoubt), Why::Failed("another certificate"));

    let mut host = Host::orphaned(Note::Committing);
    host.does("Connect", DONE);
    host.does("COMMIT", DONE);
    host.hears(Message::commit(id()));
    host.does("Doubt", DONE);
    assert_eq!(host.ends(Fate::InDoubt), Why::Unexpected("COMMIT"));
}
