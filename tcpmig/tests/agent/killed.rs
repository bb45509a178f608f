//! Agents and servers that are killed at any moment, under traffic.

use std::thread::sleep;
use std::time::Duration;

use tcpmig_sys::kernel_test;

use crate::hosts::{Hosts, signal};
use crate::support::Program;
use crate::traffic::Traffic;

/// How many connections move when somebody is killed.
const CONNECTIONS: usize = 4;

/// Numbers at random, the same for the same seed.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn of(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    SourceAgent,
    TargetAgent,
    SourceServer,
    TargetServer,
}

const VICTIMS: [Victim; 4] = [
    Victim::SourceAgent,
    Victim::TargetAgent,
    Victim::SourceServer,
    Victim::TargetServer,
];

pub(crate) fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// What became of a connection that the server gave away: `moved`, `kept`, `lost` or `gone`.
pub(crate) fn outcome(server: &Program) -> String {
    loop {
        let line = server.hear();
        let word = line.split(' ').next().unwrap_or_default();
        if ["moved", "kept", "lost", "gone"].contains(&word) {
            return word.to_owned();
        }
    }
}

/// Moves all connections while somebody is killed.
fn run(victim: Victim, random: &mut Random) {
    let mut hosts = Hosts::new();
    let mut servers = [hosts.python("a"), hosts.python("b")];
    let traffic: Vec<Traffic> = (0..CONNECTIONS)
        .map(|_| Traffic::start(&hosts.peer))
        .collect();
    for one in &traffic {
        one.goes_on();
    }
    let pause = Duration::from_micros(random.below(50_000));
    println!("{victim:?} is killed {pause:?} after the order");
    signal(&servers[0], "USR1");
    sleep(pause);
    let of = match victim {
        Victim::SourceAgent | Victim::SourceServer => 0,
        Victim::TargetAgent | Victim::TargetServer => 1,
    };
    match victim {
        Victim::SourceAgent | Victim::TargetAgent => {
            let killed = &mut hosts.agents[of].program.child;
            killed.kill().unwrap();
            killed.wait().unwrap();
            hosts.agents[of] = hosts.start_agent(["a", "b"][of]);
        }
        Victim::SourceServer | Victim::TargetServer => {
            let killed = &mut servers[of].child;
            killed.kill().unwrap();
            killed.wait().unwrap();
        }
    }
    // Nobody says what became of those of a server that is dead.
    let outcomes: Vec<String> = match victim {
        Victim::SourceServer => Vec::new(),
        _ => traffic.iter().map(|_| outcome(&servers[0])).collect(),
    };
    println!("{outcomes:?}");
    let live = traffic.iter().filter(|one| one.settles()).count();
    let is = |word: &str| outcomes.iter().filter(|outcome| *outcome == word).count();
    let (kept, moved) = (is("kept"), is("moved"));
    match victim {
        Victim::SourceServer => {}
        // They died with the server that they had moved to.
        Victim::TargetServer => assert!((kept..=kept + moved).contains(&live), "{live} live"),
        // One that an agent had activated, and did not get to pass on before it died, has died with it. Of one that it had
        // passed on the next agent knows only that it may have lived, unless its source had been told.
        Victim::TargetAgent => {
            let heard: Vec<String> = servers[1].lines.try_iter().collect();
            let arrived = heard.iter().filter(|line| line.starts_with("arrived"));
            let least = kept + arrived.count().saturating_sub(is("lost"));
            assert!(
                (least..=kept + moved).contains(&live),
                "{live} live: {heard:?}"
            );
        }
        // Of one that is gone the next agent knows only that it is not here: its end was noted, and not told.
        Victim::SourceAgent => {
            assert!(
                (kept + moved..=kept + moved + is("gone")).contains(&live),
                "{live} live"
            );
        }
    }
    for one in traffic {
        one.was_right();
    }
}

kernel_test!(whoever_is_killed_no_byte_is_lost_or_comes_twice, || {
    let runs = number("TCPMIG_AGENT_KILLS").unwrap_or(4);
    let seed = number("TCPMIG_AGENT_KILLS_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    println!("TCPMIG_AGENT_KILLS_SEED={seed}");
    let mut random = Random::of(seed);
    let only = std::env::var("TCPMIG_AGENT_KILLS_ONLY").ok();
    let victims = VICTIMS.into_iter().cycle();
    let meant = |victim: &Victim| {
        only.as_ref()
            .is_none_or(|only| *only == format!("{victim:?}"))
    };
    for victim in victims.filter(meant).take(runs as usize) {
        run(victim, &mut random);
    }
});
