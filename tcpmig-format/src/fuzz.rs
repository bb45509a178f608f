//! Bodies of the fuzz targets, so that the targets are one line each and
//! these are compiled and linted with the crate.

mod edit;
mod msgpack;
#[cfg(test)]
mod tests;

use arbitrary::Arbitrary;

use crate::{Envelope, FORMAT_VERSION, Image, Limits, MAGIC};
pub use edit::{Edit, Junk};

/// Runs something and returns the bytes that it had allocated at most at one
/// time. Only who installs the global allocator can tell.
pub type Peak = fn(&mut dyn FnMut()) -> u64;

/// What decoding allocates at most, apart from twice its input: for names,
/// lists of them and the text of an error.
const ALLOCATION: u64 = 8 << 10;

/// Images that versions of this format have written, and which version.
const WRITTEN: &[(u16, &[u8])] = &[
    (1, include_bytes!("../tests/golden/v1-broken.tcpmig")),
    (1, include_bytes!("../tests/golden/v1-full.tcpmig")),
    (1, include_bytes!("../tests/golden/v1-listener.tcpmig")),
    (1, include_bytes!("../tests/golden/v1-options.tcpmig")),
    (1, include_bytes!("../tests/golden/v1-smallest.tcpmig")),
    (
        1,
        include_bytes!("../tests/golden/v1-smallest_listener.tcpmig"),
    ),
    (1, include_bytes!("../tests/golden/v1-smallest_tcp.tcpmig")),
    (2, include_bytes!("../tests/golden/v2-broken.tcpmig")),
    (2, include_bytes!("../tests/golden/v2-full.tcpmig")),
    (2, include_bytes!("../tests/golden/v2-listener.tcpmig")),
    (2, include_bytes!("../tests/golden/v2-options.tcpmig")),
    (2, include_bytes!("../tests/golden/v2-smallest.tcpmig")),
    (
        2,
        include_bytes!("../tests/golden/v2-smallest_listener.tcpmig"),
    ),
    (2, include_bytes!("../tests/golden/v2-smallest_tcp.tcpmig")),
    (3, include_bytes!("../tests/golden/v3-broken.tcpmig")),
    (3, include_bytes!("../tests/golden/v3-full.tcpmig")),
    (3, include_bytes!("../tests/golden/v3-layered.tcpmig")),
    (3, include_bytes!("../tests/golden/v3-listener.tcpmig")),
    (3, include_bytes!("../tests/golden/v3-options.tcpmig")),
    (3, include_bytes!("../tests/golden/v3-smallest.tcpmig")),
    (
        3,
        include_bytes!("../tests/golden/v3-smallest_listener.tcpmig"),
    ),
    (3, include_bytes!("../tests/golden/v3-smallest_tcp.tcpmig")),
];

/// Decodes any bytes; what decodes encodes to an image that is equal.
pub fn decode(bytes: &[u8], peak: Peak) {
    let _ = Envelope::peek(bytes);
    if let Some(image) = decoded(bytes, peak) {
        roundtrip(&image);
    }
    // Behind a good checksum, which changed bytes hardly ever have.
    let payload = match bytes.get(Envelope::LEN..) {
        Some(payload) if bytes.starts_with(&MAGIC) => payload,
        _ => bytes,
    };
    if let Some(image) = decoded(&sealed(FORMAT_VERSION, FORMAT_VERSION, payload), peak) {
        roundtrip(&image);
    }
}

/// Encodes an image and decodes it again: the images and their bytes are equal. What earlier
/// versions would have written of it is read as well.
pub fn roundtrip(image: &Image) {
    let bytes = image.encode().expect("valid by construction");
    let version = Envelope::peek(&bytes).map(|envelope| envelope.version);
    assert_eq!(version, Ok(FORMAT_VERSION));
    let decoded = Image::decode(&bytes, &Limits::default()).expect("just encoded");
    assert_eq!(&decoded, image);
    let shared = Image::decode_shared(bytes.clone(), &Limits::default());
    assert_eq!(shared.as_ref(), Ok(image));
    let again = decoded.encode().expect("just decoded");
    assert_eq!(again, bytes, "encoding is deterministic");
    for version in 1..FORMAT_VERSION {
        let old = image.encode_as(version).expect("valid by construction");
        let upgraded = Image::decode(&old, &Limits::default()).expect("just encoded");
        let again = upgraded.encode_as(version).expect("just decoded");
        assert_eq!(again, old, "what version {version} has stays as it was");
        let bytes = upgraded.encode().expect("just decoded");
        assert_eq!(Image::decode(&bytes, &Limits::default()), Ok(upgraded));
    }
}

/// A valid image and what is changed in its bytes.
#[derive(Arbitrary, Debug)]
pub struct Mutation {
    edits: Vec<Edit>,
    /// How many versions later its writer is.
    newer: u8,
    image: Image,
}

/// Changes a valid image and decodes it. What decodes encodes to an image that
/// is equal; changes without a meaning leave the image as it was.
pub fn mutate(mutation: &Mutation, peak: Peak) {
    let Ok(image) = mutation.image.encode() else {
        return;
    };
    let payload = edit::apply(&image[Envelope::LEN..], &mutation.edits);
    let version = FORMAT_VERSION + u16::from(mutation.newer);
    let found = decoded(&sealed(version, FORMAT_VERSION, &payload), peak);
    if let Some(found) = &found {
        roundtrip(found);
    }
    if mutation.edits.iter().all(Edit::is_harmless) {
        assert_eq!(found.as_ref(), Some(&mutation.image));
    }
}

/// What the writer of an older version, or of this one, may have left, and what
/// is changed in it.
#[derive(Arbitrary, Debug)]
pub struct Old<'a> {
    edits: Vec<Edit>,
    min_version: u16,
    payload: Payload<'a>,
}

#[derive(Arbitrary, Debug)]
enum Payload<'a> {
    /// That of one of the images that were written.
    Written(u8),
    /// Any bytes, as of this version.
    Bytes(u16, &'a [u8]),
}

/// Decodes an image of any version up to the current one. What decodes encodes
/// in the current version to an image that is equal.
pub fn upgrade(old: &Old<'_>, peak: Peak) {
    let (version, payload, written) = match old.payload {
        Payload::Written(number) => {
            let (version, image) = WRITTEN[usize::from(number) % WRITTEN.len()];
            (version, &image[Envelope::LEN..], Some(image))
        }
        Payload::Bytes(version, bytes) => (version.clamp(1, FORMAT_VERSION), bytes, None),
    };
    let min_version = 1 + old.min_version % version;
    let payload = edit::apply(payload, &old.edits);
    let found = decoded(&sealed(version, min_version, &payload), peak);
    if let Some(found) = &found {
        roundtrip(found);
    }
    if let Some(written) = written
        && old.edits.iter().all(Edit::is_harmless)
    {
        let image = Image::decode(written, &Limits::default()).expect("read for ever");
        assert_eq!(found, Some(image));
    }
}

/// Decodes, and watches what is allocated for that.
fn decoded(bytes: &[u8], peak: Peak) -> Option<Image> {
    let mut image = None;
    let allocated = peak(&mut || image = Image::decode(bytes, &Limits::default()).ok());
    let len = bytes.len();
    assert!(
        allocated <= 2 * len as u64 + ALLOCATION,
        "{allocated} bytes were allocated for {len}"
    );
    image
}

/// A payload in an envelope, independent of the encoder.
fn sealed(version: u16, min_version: u16, payload: &[u8]) -> Vec<u8> {
    let mut image = MAGIC.to_vec();
    image.extend(version.to_be_bytes());
    image.extend(min_version.to_be_bytes());
    image.extend((payload.len() as u64).to_be_bytes());
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&image);
    hasher.update(payload);
    image.extend(hasher.finalize().to_be_bytes());
    image.extend(payload);
    image
}
