//! What holds for every image and for every damage to one.

mod common;

use common::strategy;
use proptest::prelude::*;
use tcpmig_format::{DecodeError, Envelope, Image, Limits};

fn decode(bytes: &[u8]) -> Result<Image, DecodeError> {
    Image::decode(bytes, &Limits::default())
}

proptest! {
    #[test]
    fn images_survive_the_round_trip(image in strategy::image()) {
        let bytes = image.encode().unwrap();
        prop_assert_eq!(Envelope::peek(&bytes).unwrap().image_length(), bytes.len() as u64);
        let decoded = decode(&bytes).unwrap();
        prop_assert_eq!(&decoded, &image);
        prop_assert_eq!(decoded.encode().unwrap(), bytes);
    }

    #[test]
    fn any_changed_byte_is_found(image in strategy::image(), at: prop::sample::Index, flip in 1..=u8::MAX) {
        let mut bytes = image.encode().unwrap().to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        prop_assert!(decode(&bytes).is_err(), "byte {at}");
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
        let _ = Envelope::peek(&bytes);
        prop_assert!(decode(&bytes).is_err());
    }

    #[test]
    fn arbitrary_payloads_never_panic(payload in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode(&common::wire::sealed(&payload));
    }

    /// Damage behind a good checksum: only the decoder itself is left to notice.
    #[test]
    fn changed_payloads_decode_to_valid_images_or_not_at_all(
        image in strategy::image(),
        changes in prop::collection::vec(any::<(prop::sample::Index, u8)>(), 1..4),
    ) {
        let bytes = image.encode().unwrap();
        let mut payload = bytes[Envelope::LEN..].to_vec();
        for (at, value) in changes {
            let at = at.index(payload.len());
            payload[at] = value;
        }
        if let Ok(image) = decode(&common::wire::sealed(&payload)) {
            prop_assert_eq!(decode(&image.encode().unwrap()).unwrap(), image);
        }
    }
}

#[test]
fn any_changed_bit_is_found() {
    let bytes = common::full().encode().unwrap().to_vec();
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1 << bit;
            assert!(decode(&bytes).is_err(), "byte {at}, bit {bit}");
        }
    }
}

#[test]
fn every_truncation_is_found() {
    let bytes = common::full().encode().unwrap();
    for len in 0..bytes.len() {
        assert!(
            matches!(decode(&bytes[..len]), Err(DecodeError::TooShort { .. })),
            "{len}"
        );
        if len >= Envelope::LEN {
            let cut = common::wire::sealed(&bytes[Envelope::LEN..len]);
            assert!(
                matches!(decode(&cut), Err(DecodeError::Malformed { .. })),
                "{len}"
            );
        }
    }
}
