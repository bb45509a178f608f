use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::decision::suffixed;
use super::*;

fn id(n: u32) -> HandoverId {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&n.to_be_bytes());
    HandoverId::from_bytes(bytes)
}

fn about(role: Role) -> HandoverInfo {
    HandoverInfo {
        role,
        flow: "198.18.0.80:80,198.18.0.9:51234".parse().unwrap(),
        host: "host-b".to_owned(),
        address: (role == Role::Source).then(|| "198.18.0.2:7077".parse().unwrap()),
    }
}

/// What a journal tells a process that opens it: of each handover as a source what is open, and of each as a target.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Told {
    open: BTreeMap<u32, Note>,
    targets: BTreeMap<u32, Note>,
}

fn number(id: HandoverId) -> u32 {
    let bytes = id.bytes();
    u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

fn told(journal: &File, known: u32) -> Told {
    let open = journal.left_open().into_iter();
    let recalled = |n| journal.lookup(id(n)).map(|note| (n, note));
    Told {
        open: open.map(|open| (number(open.id), open.note)).collect(),
        targets: (0..known).filter_map(recalled).collect(),
    }
}

/// Opens a copy, so that what opening changes does not matter to the next one.
fn told_by_copy(of: &Path, known: u32) -> Result<Told, JournalError> {
    let directory = tempfile::tempdir().unwrap();
    let copy = directory.path().join("journal");
    for suffix in ["", ".old", ".new", ".link"] {
        let from = suffixed(of, suffix);
        if from.exists() {
            fs::copy(from, suffixed(&copy, suffix)).unwrap();
        }
    }
    File::open(&copy).map(|journal| told(&journal, known))
}

/// A file with this in it. Not one that is truncated: some file systems would wait for the disk.
fn put(path: &Path, bytes: &[u8]) {
    let _ = fs::remove_file(path);
    fs::write(path, bytes).unwrap();
}

fn journal() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    (directory, path)
}

/// Handovers of all ends, each with what is to be told of it after each of its notes.
fn notes() -> Vec<(u32, Note)> {
    use Note::*;
    let ways: [&[Note]; 8] = [
        &[Offering, Committing, Moved],
        &[Offering],
        &[Offering, Committing],
        &[Offering, Kept],
        &[Prepared, Activating, Active],
        &[Prepared],
        &[Prepared, Activating],
        &[Prepared, Aborted],
    ];
    let mut notes = Vec::new();
    for step in 0..3 {
        for (n, way) in ways.iter().enumerate() {
            notes.extend(way.get(step).map(|note| (n as u32, *note)));
        }
    }
    notes
}

fn write(journal: &File, n: u32, note: Note) {
    match note {
        Note::Offering | Note::Prepared => journal.begin(id(n), &about(note.role())).unwrap(),
        _ => journal.note(id(n), note).unwrap(),
    }
}

impl Told {
    fn take(&mut self, n: u32, note: Note) {
        match note.role() {
            Role::Source if note.is_end() => drop(self.open.remove(&n)),
            Role::Source => drop(self.open.insert(n, note)),
            Role::Target => drop(self.targets.insert(n, note)),
        }
    }
}

#[test]
fn the_next_process_is_told_all_of_it_and_this_one_nothing() {
    let (_directory, path) = journal();
    let first = File::open(&path).unwrap();
    let mut expected = Told::default();
    for (n, note) in notes() {
        write(&first, n, note);
        expected.take(n, note);
    }
    assert_eq!(told(&first, 8), Told::default());
    drop(first);
    let second = File::open(&path).unwrap();
    assert_eq!(told(&second, 8), expected);
    let open = &second.left_open()[0];
    assert_eq!(open.about, about(Role::Source));
    // An end that is noted now is one for the third as well.
    second.note(id(2), Note::Lost).unwrap();
    expected.take(2, Note::Lost);
    assert_eq!(told(&second, 8), expected);
    drop(second);
    assert_eq!(told(&File::open(&path).unwrap(), 8), expected);
}

#[test]
fn a_journal_that_ends_anywhere_tells_what_was_written_whole() {
    let (_directory, path) = journal();
    let journal = File::open(&path).unwrap();
    // The state after each record, by the bytes that the file has then.
    let mut states = vec![(fs::metadata(&path).unwrap().len(), Told::default())];
    for (n, note) in notes() {
        write(&journal, n, note);
        let mut told = states.last().unwrap().1.clone();
        told.take(n, note);
        states.push((fs::metadata(&path).unwrap().len(), told));
    }
    let bytes = fs::read(&path).unwrap();
    drop(journal);
    for len in 0..=bytes.len() {
        put(&path, &bytes[..len]);
        let whole = states.iter().rev().find(|(end, _)| *end <= len as u64);
        let expected = whole.map(|(_, told)| told.clone()).unwrap_or_default();
        let journal = File::open(&path).unwrap();
        assert_eq!(told(&journal, 8), expected, "of {len} bytes");
        // And what is noted then is told as well.
        write(&journal, 77, Note::Offering);
        drop(journal);
        let told = told(&File::open(&path).unwrap(), 8);
        assert_eq!(told.open.get(&77), Some(&Note::Offering), "of {len} bytes");
    }
}

#[test]
fn a_changed_byte_is_an_error_and_never_another_story() {
    let (_directory, path) = journal();
    let journal = File::open(&path).unwrap();
    for (n, note) in notes() {
        write(&journal, n, note);
    }
    drop(journal);
    let bytes = fs::read(&path).unwrap();
    let head = super::record::head().unwrap().len();
    for at in head..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        put(&path, &damaged);
        let error = File::open(&path).expect_err("it is noticed");
        assert!(matches!(error, JournalError::Damaged { at: begin, .. } if begin <= at as u64));
    }
}

#[test]
fn another_boot_another_file_and_a_second_process() {
    let (_directory, path) = journal();
    let journal = File::open(&path).unwrap();
    write(&journal, 1, Note::Offering);
    let error = File::open(&path).expect_err("it is in use");
    assert!(
        error.to_string().contains("in use by another process"),
        "{error}"
    );
    assert!(read(&path).unwrap().in_use);
    drop(journal);
    assert!(!read(&path).unwrap().in_use);
    for suffix in ["", ".lock"] {
        let mode = fs::metadata(suffixed(&path, suffix)).unwrap().permissions();
        assert_eq!(mode.mode() & 0o777, 0o600, "{suffix}");
    }
    // After another boot nothing of it is true.
    let mut bytes = fs::read(&path).unwrap();
    bytes[30] ^= 1;
    fs::write(&path, &bytes).unwrap();
    assert_eq!(told_by_copy(&path, 8).unwrap(), Told::default());
    fs::write(&path, "something else").unwrap();
    let error = File::open(&path).expect_err("it is not a journal");
    assert!(matches!(error, JournalError::NotAJournal { .. }), "{error}");
    assert_eq!(fs::read(&path).unwrap(), b"something else");
}

#[test]
fn it_does_not_grow_for_ever_and_forgets_nothing_that_is_open() {
    let (_directory, path) = journal();
    let journal = File::open_with(&path, 100).unwrap();
    write(&journal, 0, Note::Offering);
    write(&journal, 1, Note::Offering);
    write(&journal, 1, Note::Committing);
    write(&journal, 2, Note::Prepared);
    let mut largest = 0;
    for n in 3..2000 {
        let way = if n % 2 == 0 {
            [Note::Offering, Note::Committing, Note::Moved]
        } else {
            [Note::Prepared, Note::Activating, Note::Active]
        };
        for note in way {
            write(&journal, n, note);
        }
        largest = largest.max(fs::metadata(&path).unwrap().len());
    }
    assert!(largest < 110 * 160, "{largest} bytes");
    drop(journal);
    let told = told_by_copy(&path, 2000).unwrap();
    assert_eq!(
        told.open,
        BTreeMap::from([(0, Note::Offering), (1, Note::Committing)])
    );
    assert_eq!(told.targets[&2], Note::Prepared);
    let last: Vec<u32> = told.targets.keys().rev().take(16).copied().collect();
    assert_eq!(last, (0..16).map(|i| 1999 - 2 * i).collect::<Vec<_>>());
    for suffix in ["", ".old"] {
        let mode = fs::metadata(suffixed(&path, suffix)).unwrap().permissions();
        assert_eq!(mode.mode() & 0o777, 0o600, "{suffix}");
    }
}

#[test]
fn since_when_a_handover_is_in_doubt_outlives_its_process_and_changes_nothing_else() {
    let (_directory, path) = journal();
    let journal = File::open_with(&path, 20).unwrap();
    write(&journal, 1, Note::Offering);
    journal.in_doubt(id(1)).unwrap();
    write(&journal, 1, Note::Committing);
    // Nobody has it: nothing is noted.
    journal.in_doubt(id(2)).unwrap();
    let since = |listing: &Listing| listing.open[0].in_doubt_since.expect("it was noted");
    let noted = since(&read(&path).unwrap());
    journal.in_doubt(id(1)).unwrap();
    // Over several generations.
    for n in 10..200 {
        for note in [Note::Prepared, Note::Activating, Note::Active] {
            write(&journal, n, note);
        }
    }
    drop(journal);
    let listing = read(&path).unwrap();
    assert_eq!(since(&listing), noted, "the first time is what counts");
    assert_eq!(listing.open.len(), 1);
    let told = told(&File::open(&path).unwrap(), 8);
    assert_eq!(told.open, BTreeMap::from([(1, Note::Committing)]));
}

/// A process that dies between two calls of the change to the next generation.
#[test]
fn a_change_of_generation_that_is_cut_off_changes_nothing() {
    let (_directory, path) = journal();
    let with = |suffix| suffixed(&path, suffix);
    let journal = File::open_with(&path, 20).unwrap();
    let mut n = 0;
    let mut expected = Told::default();
    let mut note = |journal: &File, n, note| {
        write(journal, n, note);
        expected.take(n, note);
        expected.clone()
    };
    note(&journal, 1000, Note::Offering);
    note(&journal, 1000, Note::Committing);
    // Until the second change: there are older ones then.
    let (before, old, expected) = loop {
        let old_before = fs::read(with(".old")).ok();
        note(&journal, n, Note::Prepared);
        let noted = fs::read(&path).unwrap();
        let last = note(&journal, n, Note::Aborted);
        n += 1;
        if let Some(old) = old_before
            && fs::read(with(".old")).unwrap() != old
        {
            // As it was with the last note and before the change.
            let full = fs::read(with(".old")).unwrap();
            assert!(full.starts_with(&noted));
            break (full, old, last);
        }
    };
    let new = fs::read(&path).unwrap();
    drop(journal);
    // The older ones may be forgotten, with or without the change.
    let recent = |told: Told| (told.open, told.targets.into_iter().next_back());
    let expected = recent(expected);
    let place = |name: &'static str, bytes: Option<&[u8]>| match bytes {
        Some(bytes) => put(&with(name), bytes),
        None => drop(fs::remove_file(with(name))),
    };
    let check = |what: &str| {
        let copied = told_by_copy(&path, n).unwrap();
        assert_eq!(recent(copied), expected, "{what}");
        let again = File::open_with(&path, 20).unwrap();
        assert_eq!(recent(told(&again, n)), expected, "{what}");
        // And it goes on from there.
        for m in 0..40 {
            write(&again, 5000 + m, Note::Prepared);
            write(&again, 5000 + m, Note::Aborted);
        }
        drop(again);
        assert_eq!(told_by_copy(&path, n).unwrap().open, expected.0, "{what}");
    };
    for len in (0..=new.len()).step_by(7).chain([new.len()]) {
        place("", Some(&before));
        place(".old", Some(&old));
        place(".new", Some(&new[..len]));
        place(".link", None);
        check(&format!("{len} bytes of the next one are written"));
    }
    for (what, name) in [("linked", ".link"), ("the old one is replaced", ".old")] {
        place("", Some(&before));
        place(".old", Some(&old));
        place(".new", Some(&new));
        place(".link", None);
        place(name, Some(&before));
        check(what);
    }
    place("", Some(&new));
    place(".old", Some(&before));
    place(".new", None);
    place(".link", None);
    check("done");
}

#[test]
fn a_disk_that_is_full_says_so_and_spoils_nothing() {
    let (_directory, path) = journal();
    let journal = File::open(&path).unwrap();
    write(&journal, 1, Note::Offering);
    // A part of a record, as a full disk leaves it.
    let whole = fs::metadata(&path).unwrap().len();
    journal.tear();
    assert!(fs::metadata(&path).unwrap().len() > whole);
    write(&journal, 1, Note::Committing);
    drop(journal);
    let told = told_by_copy(&path, 8).unwrap();
    assert_eq!(told.open, BTreeMap::from([(1, Note::Committing)]));
}

proptest! {
    #[test]
    fn any_bytes_are_records_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        if let Ok((records, len)) = super::record::decode(&bytes) {
            prop_assert!(len <= bytes.len());
            let again: Vec<u8> = records.iter().flat_map(super::record::Record::encode).collect();
            prop_assert_eq!(&again[..], &bytes[..len]);
        }
    }

    #[test]
    fn any_rest_of_a_record_is_one_or_refused(rest in prop::collection::vec(any::<u8>(), 0..100)) {
        let len = rest.len() as u16;
        let mut bytes = len.to_be_bytes().to_vec();
        bytes.extend((!len).to_be_bytes());
        bytes.extend(crc32fast::hash(&rest).to_be_bytes());
        bytes.extend(rest);
        let _ = super::record::decode(&bytes);
    }
}
