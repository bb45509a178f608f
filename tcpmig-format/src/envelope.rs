//! The fixed header of an image.

use crc32fast::Hasher;

use crate::{DecodeError, FORMAT_VERSION};

/// The first bytes of an image.
///
/// A letter outside ASCII, both kinds of line end and the DOS end of file make
/// the usual damage by text-mode transfers show at once.
pub const MAGIC: [u8; 8] = *b"\x89TCPM\r\n\x1a";

/// Where the checksum is; it covers everything before and after itself.
const CHECKSUM_AT: usize = 20;

/// The header of an image: all numbers big-endian, in this order after the
/// [`MAGIC`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Envelope {
    /// The version of the format that wrote the image.
    pub version: u16,
    /// The lowest version whose readers understand it.
    pub min_version: u16,
    /// Length of the payload, in bytes.
    pub length: u64,
    /// CRC-32 (IEEE 802.3) of the header before it and of the payload.
    pub checksum: u32,
}

impl Envelope {
    /// Length of the header, in bytes.
    pub const LEN: usize = 24;

    /// Reads the header at the start of `bytes`, of any version and whatever
    /// follows it.
    ///
    /// # Errors
    ///
    /// [`DecodeError::TooShort`] and [`DecodeError::BadMagic`].
    pub fn peek(bytes: &[u8]) -> Result<Self, DecodeError> {
        let Some(header) = bytes.first_chunk::<{ Self::LEN }>() else {
            // A file of another kind is told apart even if it is short.
            return Err(if MAGIC.starts_with(&bytes[..bytes.len().min(8)]) {
                DecodeError::TooShort {
                    len: bytes.len(),
                    needed: Self::LEN as u64,
                }
            } else {
                DecodeError::BadMagic
            });
        };
        let [
            magic @ ..,
            v0,
            v1,
            m0,
            m1,
            l0,
            l1,
            l2,
            l3,
            l4,
            l5,
            l6,
            l7,
            c0,
            c1,
            c2,
            c3,
        ] = *header;
        if magic != MAGIC {
            return Err(DecodeError::BadMagic);
        }
        Ok(Self {
            version: u16::from_be_bytes([v0, v1]),
            min_version: u16::from_be_bytes([m0, m1]),
            length: u64::from_be_bytes([l0, l1, l2, l3, l4, l5, l6, l7]),
            checksum: u32::from_be_bytes([c0, c1, c2, c3]),
        })
    }

    /// Length of the whole image, in bytes.
    #[must_use]
    pub const fn image_length(&self) -> u64 {
        self.length.saturating_add(Self::LEN as u64)
    }

    /// Whether this crate reads the image.
    ///
    /// # Errors
    ///
    /// [`DecodeError::VersionOrder`] and [`DecodeError::UnsupportedVersion`].
    pub fn check_version(&self) -> Result<(), DecodeError> {
        let (version, min_version) = (self.version, self.min_version);
        if min_version == 0 || min_version > version {
            return Err(DecodeError::VersionOrder {
                version,
                min_version,
            });
        }
        if min_version > FORMAT_VERSION {
            return Err(DecodeError::UnsupportedVersion {
                version,
                min_version,
            });
        }
        Ok(())
    }
}

/// Checks the envelope and returns it with the payload.
pub(crate) fn open(bytes: &[u8], max_image: usize) -> Result<(Envelope, &[u8]), DecodeError> {
    let envelope = Envelope::peek(bytes)?;
    envelope.check_version()?;
    let needed = envelope.image_length();
    if needed > max_image as u64 {
        return Err(DecodeError::TooLong {
            what: "image",
            len: needed,
            limit: max_image,
        });
    }
    let len = bytes.len() as u64;
    if len < needed {
        return Err(DecodeError::TooShort {
            len: bytes.len(),
            needed,
        });
    }
    if len > needed {
        return Err(DecodeError::TrailingBytes {
            count: len - needed,
        });
    }
    let computed = checksum(bytes);
    if computed != envelope.checksum {
        return Err(DecodeError::ChecksumMismatch {
            stored: envelope.checksum,
            computed,
        });
    }
    Ok((envelope, &bytes[Envelope::LEN..]))
}

/// Fills in the header of an image whose payload is in place and has this checksum, if it was summed.
pub(crate) fn seal(image: &mut [u8], version: u16, min_version: u16, payload: Option<&Hasher>) {
    let length = (image.len() - Envelope::LEN) as u64;
    image[..8].copy_from_slice(&MAGIC);
    image[8..10].copy_from_slice(&version.to_be_bytes());
    image[10..12].copy_from_slice(&min_version.to_be_bytes());
    image[12..20].copy_from_slice(&length.to_be_bytes());
    let mut checksum = Hasher::new();
    checksum.update(&image[..CHECKSUM_AT]);
    match payload {
        Some(payload) => checksum.combine(payload),
        None => checksum.update(&image[Envelope::LEN..]),
    }
    image[CHECKSUM_AT..Envelope::LEN].copy_from_slice(&checksum.finalize().to_be_bytes());
}

fn checksum(image: &[u8]) -> u32 {
    let mut hasher = Hasher::new();
    hasher.update(&image[..CHECKSUM_AT]);
    hasher.update(&image[Envelope::LEN..]);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; Envelope::LEN];
        image.extend_from_slice(payload);
        let mut hasher = Hasher::new();
        hasher.update(payload);
        seal(&mut image, FORMAT_VERSION, 1, Some(&hasher));
        let combined = image.clone();
        seal(&mut image, FORMAT_VERSION, 1, None);
        assert_eq!(image, combined);
        image
    }

    #[test]
    fn sealed_envelopes_open() {
        let image = sealed(b"payload");
        let (envelope, payload) = open(&image, 1000).unwrap();
        assert_eq!(payload, b"payload");
        assert_eq!(envelope, Envelope::peek(&image[..Envelope::LEN]).unwrap());
        assert_eq!(envelope.version, FORMAT_VERSION);
        assert_eq!(envelope.image_length(), 31);
    }

    #[test]
    fn other_files_are_told_apart() {
        for bytes in [&b"GIF89a"[..], b"\x89TCPM\n\x1a", &[0; 100]] {
            assert_eq!(Envelope::peek(bytes), Err(DecodeError::BadMagic));
        }
        assert!(matches!(
            Envelope::peek(b"\x89TCPM\r\n"),
            Err(DecodeError::TooShort { len: 7, needed: 24 })
        ));
    }

    #[test]
    fn newer_versions_are_read_while_they_allow_it() {
        let check = |version, min_version| {
            Envelope {
                version,
                min_version,
                length: 0,
                checksum: 0,
            }
            .check_version()
        };
        assert_eq!(check(FORMAT_VERSION, FORMAT_VERSION), Ok(()));
        assert_eq!(check(FORMAT_VERSION + 5, FORMAT_VERSION), Ok(()));
        assert!(matches!(
            check(FORMAT_VERSION + 1, FORMAT_VERSION + 1),
            Err(DecodeError::UnsupportedVersion { .. })
        ));
        for (version, min_version) in [(0, 0), (1, 0), (1, 2)] {
            assert!(matches!(
                check(version, min_version),
                Err(DecodeError::VersionOrder { .. })
            ));
        }
    }

    #[test]
    fn lengths_are_held_against_limit_and_input() {
        let image = sealed(b"payload");
        assert!(matches!(
            open(&image, 30),
            Err(DecodeError::TooLong {
                len: 31,
                limit: 30,
                ..
            })
        ));
        let mut longer = image.clone();
        longer.push(0);
        assert_eq!(
            open(&longer, 31),
            Err(DecodeError::TrailingBytes { count: 1 })
        );
        let mut huge = image;
        huge[12..20].fill(0xff);
        assert!(matches!(
            open(&huge, usize::MAX),
            Err(DecodeError::TooShort { .. } | DecodeError::TooLong { .. })
        ));
    }
}
