//! Files that every later version has to read, and to write again bit by bit
//! as long as it writes their format version.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

mod common;

use tcpmig_format::{Image, Limits};

const FULL: &[u8] = include_bytes!("golden/v1-full.tcpmig");
const BROKEN: &[u8] = include_bytes!("golden/v1-broken.tcpmig");
const LISTENER: &[u8] = include_bytes!("golden/v1-listener.tcpmig");
const OPTIONS: &[u8] = include_bytes!("golden/v1-options.tcpmig");
const SMALLEST_TCP: &[u8] = include_bytes!("golden/v1-smallest-tcp.tcpmig");

#[track_caller]
fn check(file: &[u8], image: &Image) {
    assert_eq!(Image::decode(file, &Limits::default()).unwrap(), *image);
    assert_eq!(image.encode().unwrap(), file);
}

#[test]
fn version_1_full() {
    check(FULL, &common::full());
}

#[test]
fn version_1_broken() {
    check(BROKEN, &common::broken());
}

#[test]
fn version_1_listener() {
    check(LISTENER, &common::listener());
}

#[test]
fn version_1_options() {
    check(OPTIONS, &common::options());
}

#[test]
fn version_1_smallest_tcp() {
    check(SMALLEST_TCP, &common::smallest_tcp());
}
