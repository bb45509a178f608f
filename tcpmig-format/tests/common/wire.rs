//! Payloads written byte by byte, independent of the encoder.

use tcpmig_format::{DecodeError, FORMAT_VERSION, Image, Limits, MAGIC};

/// The payload in an envelope of this version.
pub(crate) fn sealed(payload: &[u8]) -> Vec<u8> {
    sealed_as(FORMAT_VERSION, FORMAT_VERSION, payload)
}

pub(crate) fn sealed_as(version: u16, min_version: u16, payload: &[u8]) -> Vec<u8> {
    let mut image = MAGIC.to_vec();
    image.extend(version.to_be_bytes());
    image.extend(min_version.to_be_bytes());
    image.extend((payload.len() as u64).to_be_bytes());
    let mut crc = crc32fast::Hasher::new();
    crc.update(&image);
    crc.update(payload);
    image.extend(crc.finalize().to_be_bytes());
    image.extend(payload);
    image
}

pub(crate) fn map(fields: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let len = u16::try_from(fields.len()).unwrap();
    let mut bytes = vec![0xde];
    bytes.extend(len.to_be_bytes());
    for (key, value) in fields {
        bytes.extend(text(key));
        bytes.extend(value);
    }
    bytes
}

pub(crate) fn list(values: &[Vec<u8>]) -> Vec<u8> {
    let len = u16::try_from(values.len()).unwrap();
    let mut bytes = vec![0xdc];
    bytes.extend(len.to_be_bytes());
    bytes.extend(values.concat());
    bytes
}

pub(crate) fn text(text: &str) -> Vec<u8> {
    let mut bytes = vec![0xda];
    bytes.extend(u16::try_from(text.len()).unwrap().to_be_bytes());
    bytes.extend(text.as_bytes());
    bytes
}

pub(crate) fn bin(value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0xc6];
    bytes.extend(u32::try_from(value.len()).unwrap().to_be_bytes());
    bytes.extend(value);
    bytes
}

pub(crate) fn number(value: u64) -> Vec<u8> {
    let mut bytes = vec![0xcf];
    bytes.extend(value.to_be_bytes());
    bytes
}

pub(crate) fn nil() -> Vec<u8> {
    vec![0xc0]
}

pub(crate) fn yes() -> Vec<u8> {
    vec![0xc3]
}

pub(crate) type Fields<'a> = Vec<(&'a str, Vec<u8>)>;

/// Decodes a payload with the default limits.
pub(crate) fn decode(payload: &[u8]) -> Result<Image, DecodeError> {
    Image::decode(&sealed(payload), &Limits::default())
}

/// The list of critical parts.
pub(crate) fn critical(names: &[&str]) -> (&'static str, Vec<u8>) {
    let names: Vec<_> = names.iter().map(|name| text(name)).collect();
    ("critical", list(&names))
}

/// The required fields of each structure.
pub(crate) fn layer() -> Fields<'static> {
    vec![
        ("kind", text("k")),
        ("version", number(1)),
        ("payload", bin(b"secret")),
    ]
}

/// Port 80 of an address.
pub(crate) fn end(address: &[u8]) -> Vec<u8> {
    map(&[("address", bin(address)), ("port", number(80))])
}

pub(crate) fn ip() -> Fields<'static> {
    let end = |last| end(&[10, 0, 0, last]);
    vec![
        ("family", text("ipv4")),
        ("local", end(1)),
        ("remote", end(2)),
    ]
}

pub(crate) fn send() -> Fields<'static> {
    vec![
        ("snd_una", number(7)),
        ("sent", bin(b"sent")),
        ("unsent", bin(b"")),
    ]
}

pub(crate) fn tcp() -> Fields<'static> {
    let window = ["snd_wl1", "snd_wnd", "max_window", "rcv_wnd", "rcv_wup"];
    let window: Fields<'_> = window.map(|name| (name, number(0))).into();
    let receive = [("rcv_nxt", number(0)), ("queue", bin(b""))];
    vec![
        ("state", number(1)),
        ("send", map(&send())),
        ("receive", map(&receive)),
        ("negotiated", map(&[("mss_clamp", number(1460))])),
        ("window", map(&window)),
    ]
}

/// The fields with one of them replaced.
pub(crate) fn with<'a>(mut fields: Fields<'a>, name: &str, value: Vec<u8>) -> Fields<'a> {
    fields.iter_mut().find(|(key, _)| *key == name).unwrap().1 = value;
    fields
}

/// The subject that is a connection with these parts.
pub(crate) fn connection(parts: &[(&str, Vec<u8>)]) -> (&'static str, Vec<u8>) {
    ("subject", map(&[("connection", map(parts))]))
}

/// The subject that is a listener with these fields.
pub(crate) fn listener(fields: &[(&str, Vec<u8>)]) -> (&'static str, Vec<u8>) {
    ("subject", map(&[("listener", map(fields))]))
}

/// The layers that have these fields.
pub(crate) fn layers(all: &[Fields<'_>]) -> (&'static str, Vec<u8>) {
    let all: Vec<_> = all.iter().map(|fields| map(fields)).collect();
    ("layers", list(&all))
}

/// A payload of a connection that has one part.
pub(crate) fn part(name: &'static str, fields: &[(&str, Vec<u8>)]) -> Vec<u8> {
    map(&[critical(&[name]), connection(&[(name, map(fields))])])
}

/// A payload with one layer.
pub(crate) fn layered(fields: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let layers = ("layers", list(&[map(fields)]));
    map(&[critical(&["layers"]), connection(&[]), layers])
}
