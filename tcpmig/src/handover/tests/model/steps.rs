//! What can happen next: messages, time-outs, crashes, and what the hosts do about them.

use std::rc::Rc;

use bytes::Bytes;

use super::*;

impl Model {
    pub(super) fn next(&self, world: &World) -> Vec<World> {
        let mut next = Vec::new();
        for h in 0..HANDOVERS {
            self.begin(world, h, &mut next);
            for said in ALL {
                if world.wire[h] & (1 << said as u8) != 0 {
                    self.deliver(world, h, said, &mut next);
                }
            }
            if world.source[h].is_some() {
                self.time_of_source(world, h, &mut next);
            } else if self.journal {
                self.resolve(world, h, &mut next);
            }
            self.at_target(world, h, &mut next, |target| target.handle_timeout(NOW));
            if self.leaks && world.sockets[self.ways[h].1] == Socket::Still(h) {
                let mut world = world.clone();
                world.moved_on[h] = true;
                next.push(world);
            }
        }
        self.break_links(world, &mut next);
        for host in 0..HOSTS {
            if self.may_crash(world, host) {
                next.push(self.crash(world.clone(), host));
            }
        }
        next
    }

    fn begin(&self, world: &World, h: usize, next: &mut Vec<World>) {
        let socket = world.sockets[self.ways[h].0];
        let free = match socket {
            Socket::Lives => true,
            // Its socket is in repair mode, and cannot be described.
            Socket::Still(_) | Socket::None | Socket::Died => false,
        };
        if free && world.written[h].is_none() && world.source[h].is_none() {
            let mut world = world.clone();
            world.source[h] = Some(Source::new(source_config(), id(h)).into());
            self.source_works(world, h, next);
        }
    }

    /// What a source does that was started again and finds a handover without an end in its journal.
    fn resolve(&self, world: &World, h: usize, next: &mut Vec<World>) {
        let note = match world.written[h] {
            Some(Note::Committing) if self.without == Without::Asking => Note::Offering,
            Some(note) if !note.is_end() => note,
            _ => return,
        };
        let until = source_config().ask_for;
        let mut world = world.clone();
        let orphan = Source::orphaned(source_config(), id(h), note, until);
        world.source[h] = Some(orphan.into());
        self.source_works(world, h, next);
    }

    /// What happens at a source when nothing comes.
    fn time_of_source(&self, world: &World, h: usize, next: &mut Vec<World>) {
        self.at_source(world, h, next, |source| {
            if self.without == Without::Patience && source.has_committed() {
                source.handle_message(NOW, Said::Aborted.message(h, self.at_once));
            } else {
                source.handle_timeout(NOW);
            }
        });
        self.at_source(world, h, next, |source| source.give_up(NOW, ()));
        self.at_source(world, h, next, |source| source.cancel(NOW));
        self.at_source(world, h, next, |source| source.ask(NOW));
    }

    fn break_links(&self, world: &World, next: &mut Vec<World>) {
        let mut broken = world.clone();
        broken.wire = [0; 2];
        for h in 0..HANDOVERS {
            let to = self.ways[h].1;
            if self.without == Without::Commit && broken.sockets[to] == Socket::Still(h) {
                broken.sockets[to] = Socket::Lives;
                broken.lived[h] = true;
            }
        }
        let mut after = vec![broken];
        for h in 0..HANDOVERS {
            for world in std::mem::take(&mut after) {
                let before = after.len();
                self.at_source(&world, h, &mut after, |source| {
                    source.handle_link_lost(NOW, ());
                });
                if after.len() == before {
                    after.push(world);
                }
            }
        }
        next.extend(after);
    }

    fn may_crash(&self, world: &World, host: usize) -> bool {
        world.crashes[host] < self.crashes.each
            && world.crashes.iter().sum::<u8>() < self.crashes.all
            && self
                .ways
                .iter()
                .any(|&(from, to)| from == host || to == host)
    }

    /// The host's process dies, and another one is started. What is on its way to others still comes.
    fn crash(&self, mut world: World, host: usize) -> World {
        let for_target = ALL.into_iter().filter(|said| said.is_for_target());
        let for_target = for_target.fold(0, |bits, said| bits | 1 << said as u8);
        world.crashes[host] += 1;
        world.sockets[host] = match world.sockets[host] {
            Socket::Lives | Socket::Died => Socket::Died,
            // In repair mode it closes silently.
            Socket::Still(_) | Socket::None => Socket::None,
        };
        for (h, (from, to)) in self.ways.into_iter().enumerate() {
            if from == host {
                world.source[h] = None;
                world.wire[h] &= for_target;
            }
            if to == host {
                world.target[h] = no_target();
                world.wire[h] &= !for_target;
                if !self.journal {
                    world.noted[h] = None;
                }
            }
        }
        world
    }

    /// Something happens to a source, and it does what follows.
    fn at_source(
        &self,
        world: &World,
        h: usize,
        next: &mut Vec<World>,
        happens: impl FnOnce(&mut Source),
    ) {
        let mut source = world.source[h].clone();
        if let Some(source) = &mut source {
            happens(Rc::make_mut(source));
        }
        if source != world.source[h] {
            let mut world = world.clone();
            world.source[h] = source;
            self.source_works(world, h, next);
        }
    }

    /// A source does what it has to do, and its process may die after each of its steps.
    fn source_works(&self, world: World, h: usize, next: &mut Vec<World>) {
        let from = self.ways[h].0;
        let mut open = vec![(world, None)];
        while let Some((mut world, mut late)) = open.pop() {
            let Some(source) = &mut world.source[h] else {
                next.push(world);
                continue;
            };
            let source = Rc::make_mut(source);
            let Some(action) = source.poll() else {
                let pauses = source.poll_timeout().is_some() && !source.listens();
                if pauses {
                    // Nothing can happen then that cannot happen when it has asked again.
                    source.handle_timeout(NOW);
                    open.push((world, late));
                } else {
                    // Words make no difference.
                    source.take_why();
                    next.push(world);
                }
                continue;
            };
            let results = match &action {
                SourceAction::Note(note) => {
                    let fails = matches!(note, Note::Offering | Note::Committing);
                    let mut failed = world.clone();
                    if fails && let Some(source) = &mut failed.source[h] {
                        Rc::make_mut(source).handle_result(NOW, SourceResult::Failed(()));
                        open.push((failed, late));
                    }
                    if self.without == Without::CommitAhead && *note == Note::Committing {
                        late = Some(*note);
                    } else {
                        world.written[h] = Some(*note);
                    }
                    vec![SourceResult::Done]
                }
                SourceAction::Describe => {
                    let draft = Bytes::new();
                    vec![SourceResult::Described { queued: 0, draft }]
                }
                SourceAction::Freeze => {
                    let free = match world.sockets[from] {
                        Socket::Lives => true,
                        // It is locked.
                        Socket::Still(_) => self.without == Without::Lock,
                        Socket::None | Socket::Died => false,
                    };
                    if free {
                        world.sockets[from] = Socket::Still(h);
                        let image = Bytes::new();
                        vec![SourceResult::Frozen { image }]
                    } else {
                        vec![SourceResult::Failed(())]
                    }
                }
                SourceAction::Confirm => vec![
                    SourceResult::Confirmed {
                        packets: Vec::new(),
                    },
                    SourceResult::Failed(()),
                ],
                SourceAction::Send(message) => {
                    world.say(h, message);
                    vec![SourceResult::Done]
                }
                SourceAction::Keep => {
                    if world.sockets[from] == Socket::Still(h) {
                        world.sockets[from] = Socket::Lives;
                    }
                    vec![SourceResult::Done]
                }
                SourceAction::Discard => {
                    if world.sockets[from] == Socket::Still(h) {
                        world.sockets[from] = Socket::None;
                    }
                    vec![SourceResult::Done]
                }
                SourceAction::LookUpDecision => vec![SourceResult::Decided(None)],
                SourceAction::Connect
                | SourceAction::Finish
                | SourceAction::EndRedirect
                | SourceAction::Silence
                | SourceAction::Doubt => vec![SourceResult::Done],
            };
            for result in results {
                let mut world = world.clone();
                if let Some(source) = &mut world.source[h] {
                    Rc::make_mut(source).handle_result(NOW, result);
                }
                if self.may_crash(&world, from) {
                    next.push(self.crash(world.clone(), from));
                }
                let is_note = matches!(action, SourceAction::Note(_));
                let late = if is_note {
                    late
                } else {
                    world.written[h] = late.or(world.written[h]);
                    None
                };
                open.push((world, late));
            }
        }
    }

    /// Something happens to a target, and it does what follows.
    fn at_target(
        &self,
        world: &World,
        h: usize,
        next: &mut Vec<World>,
        happens: impl FnOnce(&mut Target),
    ) {
        let mut target = world.target[h].clone();
        happens(Rc::make_mut(&mut target));
        if target != world.target[h] {
            let mut world = world.clone();
            world.target[h] = target;
            self.target_works(world, h, next);
        }
    }

    /// A target does what it has to do, and its process may die after each of its steps.
    fn target_works(&self, world: World, h: usize, next: &mut Vec<World>) {
        let to = self.ways[h].1;
        let mut open = vec![(world, None)];
        while let Some((mut world, mut late)) = open.pop() {
            let Some(action) = Rc::make_mut(&mut world.target[h]).poll(id(h)) else {
                world.noted[h] = late.or(world.noted[h]);
                let target = Rc::make_mut(&mut world.target[h]);
                // What it has said already.
                while target.poll_ready().is_some() || target.poll_forgotten().is_some() {}
                target.forget_words();
                next.push(world);
                continue;
            };
            let moved_on = world.moved_on[h] && self.without != Without::Comparing;
            let done = || TargetResult::Done;
            let mut after = Vec::new();
            match &action {
                TargetAction::Examine { .. } => {
                    after.push((world.clone(), TargetResult::Failed(no())));
                    after.push((world, done()));
                }
                TargetAction::Lock => {
                    after.push((world.clone(), TargetResult::Failed(no())));
                    after.push((world, TargetResult::Locked(self.locked())));
                }
                // Two with the same addresses cannot be there: the lock and the kernel refuse the second.
                TargetAction::Build { .. } => match world.sockets[to] {
                    Socket::None | Socket::Died => {
                        world.sockets[to] = Socket::Still(h);
                        after.push((world, done()));
                    }
                    Socket::Still(_) | Socket::Lives => {
                        after.push((world, TargetResult::Failed(no())));
                    }
                },
                TargetAction::Note(note) => {
                    if !note.is_end() {
                        after.push((world.clone(), TargetResult::Failed(no())));
                    }
                    if self.without == Without::WriteAhead && *note == Note::Activating {
                        late = Some(*note);
                    } else {
                        world.noted[h] = Some(*note);
                    }
                    after.push((world, done()));
                }
                TargetAction::Activate { .. } => {
                    let mut failed = world.clone();
                    failed.sockets[to] = Socket::None;
                    let result = TargetResult::NotActivated {
                        why: no(),
                        moved_on,
                        is_locked: true,
                    };
                    after.push((failed, result));
                    world.sockets[to] = Socket::Lives;
                    world.lived[h] = true;
                    after.push((world, done()));
                }
                TargetAction::Discard { .. } => {
                    if world.sockets[to] == Socket::Still(h) {
                        world.sockets[to] = Socket::None;
                    }
                    after.push((world, TargetResult::Discarded { moved_on }));
                }
                TargetAction::Unlock | TargetAction::Deliver => after.push((world, done())),
                TargetAction::Send { message, .. } => {
                    world.say(h, message);
                    after.push((world, done()));
                }
            }
            let is_note = matches!(action, TargetAction::Note(_));
            for (mut world, result) in after {
                // What is sent has no result.
                if !matches!(action, TargetAction::Send { .. }) {
                    Rc::make_mut(&mut world.target[h]).handle_result(NOW, id(h), result);
                }
                if self.may_crash(&world, to) {
                    next.push(self.crash(world.clone(), to));
                }
                let late = if is_note {
                    late
                } else {
                    world.noted[h] = late.or(world.noted[h]);
                    None
                };
                open.push((world, late));
            }
        }
    }

    fn deliver(&self, world: &World, h: usize, said: Said, next: &mut Vec<World>) {
        let mut message = said.message(h, self.at_once);
        if said.is_for_target() {
            return self.to_target(world.clone(), h, message, next);
        }
        if self.without == Without::Doubt && said == Said::Unknown {
            message = Said::Aborted.message(h, self.at_once);
        }
        self.at_source(world, h, next, |source| source.handle_message(NOW, message));
    }

    fn to_target(&self, mut world: World, h: usize, message: Message, next: &mut Vec<World>) {
        let is_commit = matches!(message, Message::Commit { .. });
        if is_commit
            && self.without == Without::Deadline
            && world.target[h].fate(id(h)) == Some(Fate::Kept)
        {
            world.target[h] = self.prepared(h);
            world.sockets[self.ways[h].1] = Socket::Still(h);
        }
        let target = Rc::make_mut(&mut world.target[h]);
        let recalled = world.noted[h].filter(|_| !target.knows(id(h)));
        let recalled = recalled.map(|note| Recalled {
            note,
            offered_by: None,
        });
        match target.handle_message(NOW, &self.name, (), message, recalled.as_ref()) {
            Heard::Poll(_) => self.target_works(world, h, next),
            Heard::Answer(answer) => {
                world.say(h, &answer);
                next.push(world);
            }
            Heard::Ignored => {}
            Heard::Foreign(_) | Heard::Unexpected(_) => panic!("nobody else says anything"),
        }
    }

    /// For longer than the source waits for an answer, or not at all.
    fn locked(&self) -> Duration {
        Duration::from_millis(self.at_once.into())
    }

    /// A target that has built the connection.
    fn prepared(&self, h: usize) -> Rc<Target> {
        let mut prepared = no_target();
        let target = Rc::make_mut(&mut prepared);
        for said in [Said::Offer, Said::Image] {
            let message = said.message(h, self.at_once);
            let heard = target.handle_message(NOW, &self.name, (), message, None);
            assert_eq!(heard, Heard::Poll(id(h)));
            while let Some(action) = target.poll(id(h)) {
                let result = match action {
                    TargetAction::Lock => TargetResult::Locked(self.locked()),
                    _ => TargetResult::Done,
                };
                target.handle_result(NOW, id(h), result);
            }
        }
        prepared
    }
}
