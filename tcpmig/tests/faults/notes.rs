//! A process that dies while it notes, and while its journal changes to the next file.

use std::thread;
use std::time::Duration;

use tcpmig::driver::journal::{File, Journal, Note};
use tcpmig::handover::HandoverId;
use tcpmig_sys::lab::Lab;

use crate::process::Process;

/// The journal tells whatever the process had said to have noted.
pub(crate) fn a_process_that_dies_while_it_notes(mut random: impl FnMut() -> u64) {
    let mut lab = Lab::new().unwrap();
    let host = lab.host("notes", &[]).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    let mut open = 0;
    for _ in 0..20 {
        let mut process = Process::start(
            &host,
            "notes",
            &Default::default(),
            &path,
            Default::default(),
        );
        process.hear("begun");
        thread::sleep(Duration::from_micros(random() % 5_000));
        process.kill();
        let said: Vec<(HandoverId, String)> = process
            .rest()
            .filter_map(|line| {
                let (id, note) = line.split_once(' ')?;
                let id = u128::from_str_radix(id, 16).ok()?;
                let id = HandoverId::from_bytes(id.to_be_bytes());
                note.ends_with('.')
                    .then(|| (id, note.trim_end_matches('.').to_owned()))
            })
            .collect();
        let journal = File::open_with(&path, 50).expect("it is whole");
        let left = journal.left_open();
        let told = |id| {
            let source = left.iter().find(|open| open.id == id).map(|open| open.note);
            (source, journal.lookup(id))
        };
        assert!(left.len() <= open + 1, "{left:?}");
        open = left.len();
        // It may have noted what it had no time to say.
        let Some((last, note)) = said.last() else {
            continue;
        };
        let possible: &[_] = match note.as_str() {
            "Offering" => &[(Some(Note::Offering), None), (Some(Note::Committing), None)],
            "Committing" => &[(Some(Note::Committing), None), (None, None)],
            "Moved" => &[(None, None), (None, Some(Note::Prepared))],
            "Prepared" => &[(None, Some(Note::Prepared)), (None, Some(Note::Activating))],
            "Activating" => &[(None, Some(Note::Activating)), (None, Some(Note::Active))],
            _ => &[(None, Some(Note::Active))],
        };
        assert!(possible.contains(&told(*last)), "{note}: {:?}", told(*last));
        // Those before it, as far back as is promised.
        let ended: Vec<_> = said
            .iter()
            .filter(|(id, note)| note == "Active" && id != last)
            .collect();
        for (id, _) in ended.iter().rev().take(8) {
            assert_eq!(told(*id), (None, Some(Note::Active)));
        }
    }
}
