//! Readers and writers of different versions with each other.

use super::{Source, read};
use crate::{DecodeError, Envelope, FORMAT_VERSION, Image, Limits};

/// The same images, as the writer of each version wrote them.
const FILES: [[&[u8]; 2]; 7] = [
    [
        include_bytes!("../../tests/golden/v1-full.tcpmig"),
        include_bytes!("../../tests/golden/v2-full.tcpmig"),
    ],
    [
        include_bytes!("../../tests/golden/v1-broken.tcpmig"),
        include_bytes!("../../tests/golden/v2-broken.tcpmig"),
    ],
    [
        include_bytes!("../../tests/golden/v1-listener.tcpmig"),
        include_bytes!("../../tests/golden/v2-listener.tcpmig"),
    ],
    [
        include_bytes!("../../tests/golden/v1-options.tcpmig"),
        include_bytes!("../../tests/golden/v2-options.tcpmig"),
    ],
    [
        include_bytes!("../../tests/golden/v1-smallest_tcp.tcpmig"),
        include_bytes!("../../tests/golden/v2-smallest_tcp.tcpmig"),
    ],
    [
        include_bytes!("../../tests/golden/v1-smallest.tcpmig"),
        include_bytes!("../../tests/golden/v2-smallest.tcpmig"),
    ],
    [
        include_bytes!("../../tests/golden/v1-smallest_listener.tcpmig"),
        include_bytes!("../../tests/golden/v2-smallest_listener.tcpmig"),
    ],
];

fn read_as(reader: u16, file: &[u8]) -> Result<Image, DecodeError> {
    let payload = &file[Envelope::LEN..];
    read(reader, payload, Source::Copied, &Limits::default())
}

#[test]
fn each_reader_takes_each_version_and_skips_what_it_does_not_know() {
    for files in FILES {
        assert_eq!(files.len(), usize::from(FORMAT_VERSION));
        for reader in 1..=FORMAT_VERSION {
            for writer in 1..=FORMAT_VERSION {
                // What both know, as the older of them knows it.
                let common = files[usize::from(reader.min(writer)) - 1];
                let image = read_as(reader, files[usize::from(writer) - 1]);
                assert_eq!(
                    image.unwrap(),
                    read_as(FORMAT_VERSION, common).unwrap(),
                    "written by {writer}, read by {reader}"
                );
            }
        }
    }
}

#[test]
fn earlier_writers_are_kept_to_the_octet() {
    for files in FILES {
        let image = read_as(FORMAT_VERSION, files[usize::from(FORMAT_VERSION) - 1]).unwrap();
        for (version, file) in (1..).zip(files) {
            assert_eq!(image.encode_as(version).unwrap(), file, "version {version}");
        }
    }
}

#[test]
fn a_critical_part_that_a_reader_does_not_know_is_refused_by_name() {
    // `app` and `tcp` trade one letter for names that no version has.
    let [_, newest] = FILES[0];
    for (known, unknown) in [(&b"\xa3app"[..], &b"\xa3abp"[..]), (b"\xa3tcp", b"\xa3tcq")] {
        let at = newest.windows(4).position(|name| name == known).unwrap();
        let mut file = newest.to_vec();
        file[at..at + 4].copy_from_slice(unknown);
        let name = String::from_utf8(unknown[1..].to_vec()).unwrap();
        for reader in 1..=FORMAT_VERSION {
            let error = read_as(reader, &file).unwrap_err();
            assert_eq!(error, DecodeError::UnknownCritical(name.clone()));
        }
    }
}
