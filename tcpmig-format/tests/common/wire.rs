//! Payloads written octet by octet, independent of the encoder.

use tcpmig_format::{FORMAT_VERSION, MAGIC};

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

pub(crate) fn octets(octets: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0xc6];
    bytes.extend(u32::try_from(octets.len()).unwrap().to_be_bytes());
    bytes.extend(octets);
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
