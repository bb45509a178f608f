//! Where TLS records end.

/// The longest record that there can be: its header and what TLS 1.2 allows of protected content (RFC 5246, section 6.2.3).
const MOST: usize = 5 + (1 << 14) + 2048;

/// The length of the first record if it is whole.
///
/// What does not begin as a record is as long as it is: rustls has the word for what is wrong with it.
pub(super) fn first(bytes: &[u8]) -> Option<usize> {
    // Change cipher spec, alert, handshake, application data, heartbeat.
    if !(20..=24).contains(bytes.first()?) {
        return Some(bytes.len().min(MOST));
    }
    let &[_, major, _, high, low, ..] = bytes else {
        return None;
    };
    let len = 5 + usize::from(u16::from_be_bytes([high, low]));
    if major != 3 || len > MOST {
        return Some(bytes.len().min(MOST));
    }
    (bytes.len() >= len).then_some(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_whole_when_all_of_it_is_there() {
        let record = [23, 3, 3, 0, 3, 1, 2, 3, 22];
        for len in 0..=record.len() {
            let expected = (len >= 8).then_some(8);
            assert_eq!(first(&record[..len]), expected, "{len} bytes");
        }
    }

    #[test]
    fn what_is_not_a_record_goes_to_rustls_as_it_is() {
        assert_eq!(first(b"G"), Some(1));
        assert_eq!(first(b"GET / HTTP/1.1\r\n"), Some(16));
        assert_eq!(first(&[23, 3, 3, 0xff, 0xff, 0]), Some(6));
    }
}
