//! Files that every later version has to read, and to write again bit by bit
//! as long as it writes their format version. None of them is ever edited or
//! replaced: a change of what is written is a new version with files of its own.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

mod common;

use tcpmig_format::{Envelope, FORMAT_VERSION, Image, Limits, SecretBytes};

struct Golden {
    version: u16,
    file: &'static [u8],
    /// CRC-32 of the whole file.
    sum: u32,
    image: Image,
}

macro_rules! golden {
    ($version:literal, $name:ident, $sum:literal) => {
        Golden {
            version: $version,
            file: include_bytes!(concat!(
                "golden/v",
                stringify!($version),
                "-",
                stringify!($name),
                ".tcpmig"
            )),
            sum: $sum,
            image: common::$name(),
        }
    };
}

fn all() -> [Golden; 22] {
    [
        golden!(1, full, 0x40a1_9f05),
        golden!(1, broken, 0x0aa4_a05e),
        golden!(1, listener, 0xa5fc_40de),
        golden!(1, options, 0xc8d7_5a01),
        golden!(1, smallest_tcp, 0x1489_2d5e),
        golden!(1, smallest, 0x8b19_e8de),
        golden!(1, smallest_listener, 0xc482_42b5),
        golden!(2, full, 0xf662_7202),
        golden!(2, broken, 0x22e4_5ed9),
        golden!(2, listener, 0x4ea0_abd2),
        golden!(2, options, 0x06fb_4840),
        golden!(2, smallest_tcp, 0x452f_fad7),
        golden!(2, smallest, 0x8ec1_a856),
        golden!(2, smallest_listener, 0x3a35_d695),
        golden!(3, full, 0xa403_f898),
        golden!(3, layered, 0x6979_de97),
        golden!(3, broken, 0xefa0_8881),
        golden!(3, listener, 0xf560_e581),
        golden!(3, options, 0x4ac9_b409),
        golden!(3, smallest_tcp, 0x2c2d_fdd0),
        golden!(3, smallest, 0x7ff0_3744),
        golden!(3, smallest_listener, 0xd6ae_2163),
    ]
}

/// Without the fields that came after this version.
fn as_of(version: u16, mut image: Image) -> Image {
    if version < 2 {
        image.taken = None;
    }
    image
}

#[test]
fn no_file_was_edited() {
    for golden in all() {
        let sum = crc32fast::hash(golden.file);
        assert_eq!(sum, golden.sum, "{:?} is {sum:#010x}", golden.image);
    }
}

#[test]
fn files_of_every_version_are_read() {
    for golden in all() {
        assert_eq!(Envelope::peek(golden.file).unwrap().version, golden.version);
        let image = as_of(golden.version, golden.image);
        let limits = Limits::default();
        assert_eq!(Image::decode(golden.file, &limits).unwrap(), image);
        let shared = Image::decode_shared(SecretBytes::from(golden.file), &limits);
        assert_eq!(shared.unwrap(), image);
    }
}

/// If this fails, what is written has changed: it needs a version of its own.
#[test]
fn files_of_this_version_are_written_the_same() {
    let all = all();
    let own = || all.iter().filter(|golden| golden.version == FORMAT_VERSION);
    assert!(own().count() > 0, "version {FORMAT_VERSION} has no files");
    for golden in own() {
        assert_eq!(golden.image.encode().unwrap(), golden.file);
    }
}
