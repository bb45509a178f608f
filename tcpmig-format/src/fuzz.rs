//! Bodies of the fuzz targets, so that the targets are one line each and
//! these are compiled and linted with the crate.

use crate::{Envelope, FORMAT_VERSION, Image, LOWEST_COMPATIBLE_VERSION, Limits};

/// Decodes any octets; what decodes encodes to an image that is equal.
pub fn decode(bytes: &[u8]) {
    let _ = Envelope::peek(bytes);
    if let Ok(image) = Image::decode(bytes, &Limits::default()) {
        roundtrip(&image);
    }
    // Behind the checksum, where mutated octets hardly ever come.
    let mut sealed = vec![0; Envelope::LEN];
    sealed.extend_from_slice(bytes);
    crate::envelope::seal_as(&mut sealed, FORMAT_VERSION, LOWEST_COMPATIBLE_VERSION);
    if let Ok(image) = Image::decode(&sealed, &Limits::default()) {
        roundtrip(&image);
    }
}

/// Encodes an image and decodes it again: the images and their octets are equal.
pub fn roundtrip(image: &Image) {
    let bytes = image.encode().expect("valid by construction");
    let decoded = Image::decode(&bytes, &Limits::default()).expect("just encoded");
    assert_eq!(&decoded, image);
    let again = decoded.encode().expect("just decoded");
    assert_eq!(again, bytes, "encoding is deterministic");
}
