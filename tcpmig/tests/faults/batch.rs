//! A fault while many connections are handed over.

use std::collections::{BTreeMap, HashMap};
use std::thread;
use std::time::Duration;

use crate::peer::Peer;
use crate::roles::BATCH;
use crate::support::until;
use crate::{Fault, Scene, When};

/// How often each peer sends: together they leave room for what moves them.
const EVERY: Duration = Duration::from_millis(25);

/// The fault comes so long after so many have ended. How many became what.
pub(crate) fn try_fault(ended: usize, time: Duration, fault: Fault) -> String {
    let scene = Scene::new(fault, When::Many(ended, time));
    let mut target = scene.target("targets");
    let mut source = scene.source("sources");
    source.hear("listening");
    let peers: Vec<Peer> = (0..BATCH)
        .map(|_| Peer::start(&scene.net.peer, EVERY))
        .collect();
    let marks: Vec<u64> = peers.iter().map(Peer::mark).collect();
    until("all get on before the move", || {
        let mut both = peers.iter().zip(&marks);
        both.all(|(peer, mark)| peer.mark() > mark + 20_000)
    });
    source.say("move");
    source.hear("moving");
    let mut lines: Vec<String> = (0..ended).map(|_| source.hear_next()).collect();
    thread::sleep(time);
    scene.happen(fault, &mut source, &mut target);
    if fault.kills_source() {
        lines.extend(source.rest());
        source = scene.source("again");
        lines.extend(source.hear_all("nothing is open"));
    } else {
        lines.extend(source.hear_all("ended"));
    }
    let marks: Vec<u64> = peers.iter().map(Peer::mark).collect();
    // A handover in doubt is asked about again: the last word counts.
    let told: HashMap<u16, &str> = lines
        .iter()
        .filter_map(|line| line.split_once(' '))
        .map(|(port, fate)| (port.parse().unwrap(), fate))
        .collect();
    let mut became = BTreeMap::new();
    let mut lost = Vec::new();
    for (peer, from) in peers.iter().zip(marks) {
        let fate = told.get(&peer.port()).copied();
        let goes_on = || peer.mark() > from + 20_000;
        match fate {
            Some("Lost") => {
                assert!(fault.kills_source() || fault.kills_target());
                lost.push((peer, peer.mark()));
            }
            Some("Moved") if fault.kills_target() || fault == Fault::FlushSource => {
                until("it moved", || goes_on() || peer.has_ended());
            }
            // On a slow machine the target can be too late.
            Some("Kept") if fault.kills_source() => {
                until("it ended with the source", || peer.has_ended());
            }
            Some("Kept" | "Moved") => {
                let what = format!("{}: {fate:?}, {lines:?}", peer.port());
                until(&what, || goes_on() || peer.has_ended());
                assert!(!peer.has_ended(), "{what}: FIN or RST at the peer");
            }
            // It was not begun, or it had ended.
            None if fault.kills_source() => {
                until("it goes on or has ended", || goes_on() || peer.has_ended());
            }
            other => panic!("{other:?}"),
        }
        *became.entry(fate.unwrap_or("not said")).or_insert(0) += 1;
    }
    thread::sleep(Duration::from_millis(300));
    for (peer, mark) in lost {
        assert_eq!(peer.mark(), mark, "somebody answered");
    }
    assert!(peers.iter().all(Peer::is_unharmed), "other bytes came back");
    format!("{became:?}")
}
