//! A COMMIT that is not answered: the target is asked again, or a person says where the connection is.

use std::time::Duration;

use super::{Asking, SourceSession, State};
use crate::handover::{Decision, Fate, Message, SourceAction, Why};

impl<E> SourceSession<E> {
    /// Nobody asks the target any more: after COMMIT, the handover is in doubt.
    pub fn give_up(&mut self, now: Duration, why: E) {
        self.now = now;
        if matches!(self.state, State::Committed | State::Releasing) {
            self.ask_no_more_for(why);
        }
        self.end_if_done();
    }

    /// Asks the target again where a connection in doubt is.
    pub fn ask(&mut self, now: Duration) {
        if self.state == State::Ended(Fate::InDoubt) {
            self.now = now;
            self.state = State::Committed;
            self.begin_asking();
        }
    }

    /// A person says where a connection in doubt is, without the target's word.
    pub fn settle(&mut self, now: Duration, decision: Decision) {
        if self.state == State::Ended(Fate::InDoubt) {
            self.now = now;
            self.decided(decision);
        }
    }

    pub(super) fn decided(&mut self, decision: Decision) {
        match decision {
            Decision::Kept => {
                // For the ABORT afterwards, by which a target that has not activated it gives it up.
                self.state = State::Keeping;
                self.connect();
                self.within(self.config.answer_within);
            }
            Decision::Moved => self.moved(Why::Settled),
            Decision::Lost => self.lost(Why::Settled),
        }
    }

    /// Another exchange is open.
    pub(super) fn connected(&mut self) {
        match self.state {
            State::Committed => self.say_commit(),
            State::Releasing => {
                self.within(self.answer_within());
                // First: the target unlocks, and answers packets that are still steered to it with RST. Somebody may have a
                // duplicate of the socket and let it go on here.
                self.todo.push_back(SourceAction::EndRedirect);
                let id = self.id;
                self.send(Message::Abort { id });
                self.todo.push_back(SourceAction::Finish);
            }
            State::Keeping => self.keep(Why::Settled),
            _ => {}
        }
    }

    pub(super) fn begin_asking(&mut self) {
        self.asking = Some(Asking {
            until: self.now.saturating_add(self.config.ask_for),
            pause: self.config.first_pause,
            pauses: false,
        });
        if self.config.ask_for.is_zero() {
            self.ask_no_more();
        } else {
            self.ask_again();
        }
        self.silence();
    }

    pub(super) fn ask_again(&mut self) {
        if let Some(asking) = &mut self.asking {
            asking.pauses = false;
        }
        if self.is_orphan {
            self.connect();
        } else {
            self.wait_for(SourceAction::LookUpDecision);
        }
    }

    pub(super) fn pause(&mut self) {
        if let Some(asking) = &mut self.asking {
            asking.pauses = true;
            let until = asking.until.max(self.now);
            self.deadline = Some(self.now.saturating_add(asking.pause).min(until));
            asking.pause = (asking.pause * 2).min(self.config.longest_pause);
        }
    }

    pub(super) fn ask_no_more_for(&mut self, why: E) {
        if self.state == State::Committed {
            self.why = Why::Failed(why);
        }
        self.ask_no_more();
    }

    pub(super) fn ask_no_more(&mut self) {
        match self.state {
            State::Releasing => self.released(),
            _ => {
                let why = std::mem::take(&mut self.why);
                self.doubt(why);
            }
        }
    }

    pub(super) fn connect(&mut self) {
        self.wait_for(SourceAction::Connect);
        // Opening has limits of its own; only a connection that stands still does not wait for them.
        if let Some(asking) = self.asking.filter(|_| !self.is_orphan) {
            self.deadline = Some(asking.until.max(self.now));
        }
    }

    /// The target has unlocked, or does so at its deadline.
    pub(super) fn released(&mut self) {
        let why = std::mem::take(&mut self.why);
        self.lost(why);
    }

    /// Nothing thaws on a time-out: two owners are worse than none.
    pub(super) fn doubt(&mut self, why: Why<E>) {
        self.end(Fate::InDoubt, why);
        self.todo.push_back(SourceAction::Doubt);
        self.silence();
    }

    /// Nobody knows how long the target's lock lasts, and whether anything else is silent there.
    fn silence(&mut self) {
        if std::mem::take(&mut self.is_ahead) {
            self.todo.push_front(SourceAction::Silence);
        }
    }
}
