//! The subject of a certificate: one common name.

use rcgen::{DistinguishedName, DnType};

/// The subject that consists of this name.
pub(super) fn common_name(name: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    subject
}

/// The name in a subject that [`common_name`] made: `SET { SEQUENCE { OID 2.5.4.3, UTF8String } }`.
pub(super) fn read_common_name(subject: &[u8]) -> Option<&str> {
    const SET: u8 = 0x31;
    const SEQUENCE: u8 = 0x30;
    const UTF8_STRING: u8 = 0x0c;
    const COMMON_NAME: &[u8] = &[0x06, 3, 0x55, 4, 3];

    let attribute = der_value(SEQUENCE, der_value(SET, subject)?)?;
    let name = der_value(UTF8_STRING, attribute.strip_prefix(COMMON_NAME)?)?;
    std::str::from_utf8(name).ok()
}

/// The contents of `der` if it is one value with the given tag and nothing else.
fn der_value(tag: u8, der: &[u8]) -> Option<&[u8]> {
    let (&found, rest) = der.split_first()?;
    let (&len, rest) = rest.split_first()?;
    let (len, value) = match len {
        0..=0x7f => (len as usize, rest),
        0x81 => rest
            .split_first()
            .map(|(&len, rest)| (len as usize, rest))?,
        _ => return None,
    };
    (found == tag && value.len() == len).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_single_common_name_is_read() {
        let subject = b"\x31\x0a\x30\x08\x06\x03\x55\x04\x03\x0c\x01a";
        assert_eq!(read_common_name(subject), Some("a"));
        for end in 0..subject.len() {
            assert_eq!(read_common_name(&subject[..end]), None);
        }
        let two = [&subject[..], &subject[..]].concat();
        assert_eq!(read_common_name(&two), None);
        let organisation = b"\x31\x0a\x30\x08\x06\x03\x55\x04\x0a\x0c\x01a";
        assert_eq!(read_common_name(organisation), None);
    }
}
