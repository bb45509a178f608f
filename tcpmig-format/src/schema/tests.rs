//! Readers and writers of different versions with each other.

use super::{Source, read};
use crate::{DecodeError, Envelope, FORMAT_VERSION, Image, Limits};

/// The same images, as the writer of each version wrote them.
const FILES: [[&[u8]; 3]; 7] = [
    [
        include_bytes!("../../tests/golden/v1-full.tcpmig"),
        include_bytes!("../../tests/golden/v2-full.tcpmig"),
        include_bytes!("../../tests/golden/v3-full.tcpmig"),
    ],
    [
        include_bytes!("../../tests/golden/v1-broken.tcpmig"),
        include_bytes!("../../tests/golden/v2-broken.tcpmig"),
        include_bytes!("../../tests/golden/v3-broken.tcpmig"),
    ],
    [
        include_bytes!("../../tests/golden/v1-listener.tcpmig"),
        include_bytes!("../../tests/golden/v2-listener.tcpmig"),
        include_bytes!("../../tests/golden/v3-listener.tcpmig"),
    ],
    [
        include_bytes!("../../tests/golden/v1-options.tcpmig"),
        include_bytes!("../../tests/golden/v2-options.tcpmig"),
        include_bytes!("../../tests/golden/v3-options.tcpmig"),
    ],
    [
        include_bytes!("../../tests/golden/v1-smallest_tcp.tcpmig"),
        include_bytes!("../../tests/golden/v2-smallest_tcp.tcpmig"),
        include_bytes!("../../tests/golden/v3-smallest_tcp.tcpmig"),
    ],
    [
        include_bytes!("../../tests/golden/v1-smallest.tcpmig"),
        include_bytes!("../../tests/golden/v2-smallest.tcpmig"),
        include_bytes!("../../tests/golden/v3-smallest.tcpmig"),
    ],
    [
        include_bytes!("../../tests/golden/v1-smallest_listener.tcpmig"),
        include_bytes!("../../tests/golden/v2-smallest_listener.tcpmig"),
        include_bytes!("../../tests/golden/v3-smallest_listener.tcpmig"),
    ],
];

fn read_as(reader: u16, file: &[u8]) -> Result<Image, DecodeError> {
    let payload = &file[Envelope::LEN..];
    read(reader, payload, Source::Copied, &Limits::default())
}

#[test]
fn each_reader_takes_each_version_that_it_can_and_skips_what_it_does_not_know() {
    let mut refused = 0;
    for files in FILES {
        assert_eq!(files.len(), usize::from(FORMAT_VERSION));
        for reader in 1..=FORMAT_VERSION {
            for writer in 1..=FORMAT_VERSION {
                let file = files[usize::from(writer) - 1];
                if Envelope::peek(file).unwrap().min_version > reader {
                    refused += 1;
                    continue;
                }
                // The envelope names the writer; what is later than the reader is read as its own.
                let version = reader.min(writer);
                assert_eq!(
                    read_as(version, file).unwrap(),
                    read_as(version, files[usize::from(version) - 1]).unwrap(),
                    "written by {writer}, read by {reader}"
                );
            }
        }
    }
    // Version 3 by the readers of 1 and 2.
    assert_eq!(refused, 2 * FILES.len());
}

#[test]
fn earlier_images_mean_what_they_meant() {
    for [first, second, third] in FILES {
        let image = read_as(3, third).unwrap();
        assert_eq!(read_as(2, second).unwrap(), image);
        assert_eq!(
            read_as(1, first).unwrap(),
            Image {
                taken: None,
                ..image
            }
        );
    }
}

/// A reader that did not look at the envelope would be warned by the payload as well.
#[test]
fn the_payload_of_version_3_is_not_one_of_an_earlier_reader() {
    let layered = include_bytes!("../../tests/golden/v3-layered.tcpmig");
    for [.., file] in FILES.into_iter().chain([[&layered[..]; 3]]) {
        for reader in 1..3 {
            let error = read_as(reader, file).unwrap_err();
            let by_name = matches!(
                error,
                DecodeError::MissingCritical("ip" | "tcp") | DecodeError::UnknownCritical(_)
            );
            assert!(by_name, "{error}");
        }
    }
}

#[test]
fn earlier_writers_are_kept_to_the_byte() {
    for files in FILES {
        let image = read_as(FORMAT_VERSION, files[usize::from(FORMAT_VERSION) - 1]).unwrap();
        for (version, file) in (1..).zip(files) {
            assert_eq!(image.encode_as(version).unwrap(), file, "version {version}");
        }
    }
}

#[test]
fn a_critical_part_that_a_reader_does_not_know_is_refused_by_name() {
    // The first of these names, which is in the list, trades one letter for a name that no version has.
    let [_, second, third] = FILES[0];
    for (readers, file, known, unknown) in [
        (1..=2, second, "app", "abp"),
        (1..=2, second, "tcp", "tcq"),
        // One that only earlier versions have.
        (3..=3, third, "tcp", "app"),
        (3..=3, third, "layers", "lawyer"),
    ] {
        let mut names = file.windows(known.len());
        let at = names.position(|name| name == known.as_bytes()).unwrap();
        let mut file = file.to_vec();
        file[at..at + known.len()].copy_from_slice(unknown.as_bytes());
        for reader in readers {
            let error = read_as(reader, &file).unwrap_err();
            assert_eq!(error, DecodeError::UnknownCritical(unknown.into()));
        }
    }
}
