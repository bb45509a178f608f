//! The rules of this locker in the table `raw`, as they are written and read back.
//!
//! `PREROUTING` and `OUTPUT` jump to two chains of its own. In each, marks that pass come first, then one rule for each
//! locked flow: it names both ends, the second in which the lease ends (the match `time`, so that the kernel ends it),
//! and in its comment what a sweep and a list have to know. The match goes by the wall clock, which may be set; the
//! comment by one that is not, see [`clock`](super::clock). What arrives for a flow whose packets somebody wants goes
//! to a chain of his own, which logs and drops.

use std::collections::{HashMap, HashSet};
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use tcpmig_format::FourTuple;

use super::clock::Now;
use crate::Owner;
use crate::lease::Lease;

const IN: &str = "tcpmig-in";
const OUT: &str = "tcpmig-out";
/// In front of the group in the name of a chain that logs.
const LOG: &str = "tcpmig-log";
/// By how many seconds a rule may end early or late: it ends with a whole one, and clocks drift.
const TOLERANCE: u64 = 1;
const COMMENT: &str = "tcpmig";
const HOOKS: [(&str, &str); 2] = [("PREROUTING", IN), ("OUTPUT", OUT)];

/// One locked flow.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Rule {
    pub(super) flow: FourTuple,
    pub(super) lease: Lease,
    /// The last second in which it matches, since 1970.
    pub(super) stop: u64,
    /// The group of NFLOG that gets copies.
    pub(super) group: Option<u16>,
}

/// What one family's table holds of this locker.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Rules {
    /// Whether the chains are there and jumped to.
    pub(super) ready: bool,
    /// Whether anything is there.
    pub(super) any: bool,
    pub(super) marks: Vec<u32>,
    pub(super) rules: Vec<Rule>,
    /// The groups that have a chain.
    pub(super) groups: Vec<u16>,
    jumps: Vec<usize>,
}

impl Rules {
    /// Reads what `iptables-save` printed. Rules that are not this locker's are left out.
    pub(super) fn read(text: &str) -> Self {
        let mut rules = Self::default();
        let mut chains = [false; 2];
        for line in text.lines() {
            if let Some(chain) = line.strip_prefix(':') {
                let name = chain.split(' ').next().unwrap_or_default();
                for (there, (_, ours)) in chains.iter_mut().zip(HOOKS) {
                    *there |= name == ours;
                }
                if let Some(group) = name.strip_prefix(LOG).and_then(|group| group.parse().ok()) {
                    rules.groups.push(group);
                }
                continue;
            }
            let words: Vec<&str> = line.split(' ').collect();
            match words.as_slice() {
                ["-A", hook, "-j", chain] => {
                    let jump = HOOKS.iter().position(|pair| *pair == (*hook, *chain));
                    rules.jumps.extend(jump);
                }
                ["-A", chain, "-m", "mark", "--mark", mark, "-j", "RETURN"] if *chain == IN => {
                    let mark = mark.strip_prefix("0x").unwrap_or(mark);
                    rules.marks.extend(u32::from_str_radix(mark, 16));
                }
                ["-A", chain, rest @ ..] if *chain == IN => rules.rules.extend(Rule::read(rest)),
                _ => {}
            }
        }
        rules.any = chains.contains(&true) || !rules.groups.is_empty() || !rules.jumps.is_empty();
        rules.ready = chains == [true; 2] && rules.jumps.contains(&0) && rules.jumps.contains(&1);
        rules
    }

    /// The rules whose lease has not ended.
    pub(super) fn held(&self, now: u64) -> impl Iterator<Item = &Rule> {
        self.rules.iter().filter(move |rule| rule.lease.runs(now))
    }

    /// Has the rules whose lease runs match to its end, whatever was done to the wall clock since they were written. Says
    /// how many did not.
    pub(super) fn correct(&mut self, now: Now) -> usize {
        let mut wrong = 0;
        for rule in self
            .rules
            .iter_mut()
            .filter(|rule| rule.lease.runs(now.running))
        {
            let stop = now.stop(rule.lease.until);
            if rule.stop.abs_diff(stop) > TOLERANCE {
                rule.stop = stop;
                wrong += 1;
            }
        }
        wrong
    }

    /// By flow, the rules whose lease has not ended.
    pub(super) fn by_flow(&self, now: u64) -> HashMap<FourTuple, &Rule> {
        self.held(now).map(|rule| (rule.flow, rule)).collect()
    }

    /// What is in `after` and not here, and what is here and not in `after`.
    pub(super) fn difference(&self, after: &Self) -> (Vec<Rule>, Vec<Rule>) {
        let only = |one: &Self, other: &Self| -> Vec<Rule> {
            let others: HashSet<&Rule> = other.rules.iter().collect();
            let mine = one.rules.iter().filter(|rule| !others.contains(rule));
            mine.cloned().collect()
        };
        (only(after, self), only(self, after))
    }

    /// Whether everything is here that the rules of `after` need.
    pub(super) fn holds_frame_of(&self, after: &Self) -> bool {
        self.ready
            && after.marks.iter().all(|mark| self.marks.contains(mark))
            && after.groups.iter().all(|group| self.groups.contains(group))
    }

    /// The batch that makes the table hold these rules, marks and groups, whatever of this locker it holds before.
    pub(super) fn write(&self) -> String {
        let mut text = self.frame();
        self.rules
            .iter()
            .for_each(|rule| rule.write(&mut text, "-A"));
        text.push_str("COMMIT\n");
        text
    }

    /// The batch that makes what rules need, for a table that has none.
    pub(super) fn write_frame(&self) -> String {
        let mut text = self.frame();
        text.push_str("COMMIT\n");
        text
    }

    /// The batch that adds and removes rules of a table that has what they need.
    pub(super) fn delta(add: &[Rule], remove: &[Rule]) -> String {
        let mut text = String::from("*raw\n");
        add.iter().for_each(|rule| rule.write(&mut text, "-A"));
        remove.iter().for_each(|rule| rule.write(&mut text, "-D"));
        text.push_str("COMMIT\n");
        text
    }

    fn frame(&self) -> String {
        let mut text = String::from("*raw\n");
        for (_, chain) in HOOKS {
            // This empties a chain that is there.
            line(&mut text, format_args!(":{chain} - [0:0]"));
        }
        for group in &self.groups {
            line(&mut text, format_args!(":{LOG}{group} - [0:0]"));
            line(
                &mut text,
                format_args!("-A {LOG}{group} -j NFLOG --nflog-group {group}"),
            );
            line(&mut text, format_args!("-A {LOG}{group} -j DROP"));
        }
        for (number, (hook, chain)) in HOOKS.into_iter().enumerate() {
            if !self.jumps.contains(&number) {
                line(&mut text, format_args!("-I {hook} -j {chain}"));
            }
        }
        for mark in &self.marks {
            for (_, chain) in HOOKS {
                line(
                    &mut text,
                    format_args!("-A {chain} -m mark --mark {mark:#x} -j RETURN"),
                );
            }
        }
        text
    }

    /// The batch that removes a chain that logs, which nothing jumps to.
    pub(super) fn remove_group(group: u16) -> String {
        format!("*raw\n-F {LOG}{group}\n-X {LOG}{group}\nCOMMIT\n")
    }

    /// The batch that removes all that is there.
    pub(super) fn remove_all(&self) -> String {
        let mut text = String::from("*raw\n");
        for number in &self.jumps {
            let (hook, chain) = HOOKS[*number];
            line(&mut text, format_args!("-D {hook} -j {chain}"));
        }
        for (_, chain) in HOOKS {
            line(&mut text, format_args!(":{chain} - [0:0]"));
            line(&mut text, format_args!("-X {chain}"));
        }
        text.push_str("COMMIT\n");
        text
    }
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a string does not fail.
    let _ = writeln!(text, "{line}");
}

impl Rule {
    fn read(words: &[&str]) -> Option<Self> {
        let after = |name: &str| {
            let at = words.iter().position(|word| *word == name)?;
            words.get(at + 1).copied()
        };
        let ip = |name| -> Option<IpAddr> { after(name)?.split('/').next()?.parse().ok() };
        let port = |name| -> Option<u16> { after(name)?.parse().ok() };
        let remote = SocketAddr::new(ip("-s")?, port("--sport")?);
        let local = SocketAddr::new(ip("-d")?, port("--dport")?);
        let at = words.iter().position(|word| *word == "--comment")?;
        let comment = words.get(at + 1..)?.iter();
        let comment: Vec<&str> = comment.map(|word| word.trim_matches('"')).collect();
        let [COMMENT, id, made, until, stop, owner @ ..] = comment.as_slice() else {
            return None;
        };
        Some(Self {
            flow: FourTuple::new(local, remote).ok()?,
            lease: Lease {
                id: (*id).to_owned(),
                made: made.parse().ok()?,
                until: until.parse().ok()?,
                owner: Owner::from_words(owner)?,
            },
            stop: stop.parse().ok()?,
            group: after("-j").and_then(|chain| chain.strip_prefix(LOG)?.parse().ok()),
        })
    }

    fn write(&self, text: &mut String, what: &str) {
        let Self {
            flow,
            lease,
            stop,
            group,
        } = self;
        let Lease {
            id, made, until, ..
        } = lease;
        let owner = lease.owner.words();
        let (remote, local) = (flow.remote(), flow.local());
        let target = group.map_or_else(|| "DROP".to_owned(), |group| format!("{LOG}{group}"));
        let date = date(*stop);
        for (chain, from, to, target) in [
            (IN, remote, local, target.as_str()),
            (OUT, local, remote, "DROP"),
        ] {
            line(
                text,
                format_args!(
                    "{what} {chain} -s {} -d {} -p tcp -m tcp --sport {} --dport {} -m time --datestop {date} \
                     -m comment --comment \"{COMMENT} {id} {made} {until} {stop} {owner}\" -j {target}",
                    from.ip(),
                    to.ip(),
                    from.port(),
                    to.port(),
                ),
            );
        }
    }
}

/// The last second for which the match `time` takes a rule: UTC, and not after 2038-01-19, which is the last it knows.
fn date(seconds: u64) -> String {
    let seconds = seconds.min(i32::MAX as u64);
    let (days, rest) = (seconds / 86400, seconds % 86400);
    // Days since 1970-01-01 to a date, in eras of 400 years that begin on March 1st.
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}",
        rest / 3600,
        rest / 60 % 60,
        rest % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00"),
            (951_827_696, "2000-02-29T12:34:56"),
            (1_709_251_199, "2024-02-29T23:59:59"),
            (1_709_251_200, "2024-03-01T00:00:00"),
            (1_798_761_599, "2026-12-31T23:59:59"),
            (i32::MAX as u64, "2038-01-19T03:14:07"),
            (u64::MAX, "2038-01-19T03:14:07"),
        ] {
            assert_eq!(date(seconds), text);
        }
    }

    #[test]
    fn rules_read_as_written() {
        let rule = |flow: &str, group: Option<u16>| Rule {
            flow: flow.parse().unwrap(),
            lease: Lease {
                id: "1f-2".to_owned(),
                made: 1_700_000_000_000,
                until: 1_700_000_060_123,
                owner: Owner {
                    started: group.map(|_| 777),
                    namespace: group.map(|_| 4_026_531_836),
                    ..Owner::new(4242, "curl".to_owned())
                },
            },
            stop: 1_700_000_060,
            group,
        };
        let rules = Rules {
            ready: true,
            any: true,
            marks: vec![7, 0x10],
            rules: vec![
                rule("10.0.0.1:80,10.0.0.9:51234", None),
                rule("[2001:db8::1]:80,[2001:db8::9]:51234", Some(20000)),
            ],
            groups: vec![20000],
            jumps: Vec::new(),
        };
        let text = rules.write().replace("-I ", "-A ");
        let read = Rules::read(&text);
        assert_eq!(read.jumps, [0, 1]);
        let jumps = rules.jumps.clone();
        assert_eq!(Rules { jumps, ..read }, rules);
    }

    #[test]
    fn a_clock_that_is_set_moves_the_end_of_rules() {
        let flow = "10.0.0.1:80,10.0.0.9:51234";
        let at = |running, wall| Now { running, wall };
        let before = at(5_000, 1_700_000_000_000);
        let rule = |made, until| Rule {
            flow: flow.parse().unwrap(),
            lease: Lease {
                id: "1f-2".to_owned(),
                made,
                until,
                owner: Owner::new(4242, "curl".to_owned()),
            },
            stop: before.stop(until),
            group: None,
        };
        let mut rules = Rules {
            // A lease of a minute, one that has ended, one that was saved before this host started.
            rules: vec![
                rule(5_000, 65_000),
                rule(1_000, 4_000),
                rule(900_000, 960_000),
            ],
            ..Rules::default()
        };
        assert_eq!(rules.rules[0].stop, 1_700_000_060);
        assert_eq!(
            rules.correct(at(15_000, 1_700_000_010_000)),
            0,
            "time passes"
        );
        for (step, name) in [(3_600_000, "forward"), (-7_200_000, "back")] {
            let now = at(15_000, 1_700_000_010_000_u64.saturating_add_signed(step));
            assert_eq!(rules.correct(now), 1, "{name}");
            // 50 seconds are left.
            assert_eq!(rules.rules[0].stop, now.wall / 1000 + 50, "{name}");
            assert_eq!(rules.correct(now), 0, "{name}, once more");
        }
        assert_eq!(rules.held(15_000).count(), 1);
        assert_eq!(rules.held(65_000).count(), 0);
    }

    #[test]
    fn rules_of_others_are_left_out() {
        let text = ":PREROUTING ACCEPT [0:0]\n-A PREROUTING -j other\n-A tcpmig-in -p tcp -j DROP\n\
            -A tcpmig-in -s 10.0.0.9/32 -d 10.0.0.1/32 -p tcp -m comment --comment \"tcpmig\" -j DROP\n";
        let read = Rules::read(text);
        assert_eq!(
            (read.rules, read.any, read.ready),
            (Vec::new(), false, false)
        );
    }
}
