//! The layer under those of the application: bytes that its server had read or produced.
//!
//! It is there only if there are such bytes. Its payload is the number of unprocessed bytes (64 bits, big endian), these, and the
//! unsent ones.

use tcpmig_format::{Layer, SecretBytes};

const KIND: &str = "org.tcpmig.buffers";
const VERSION: u32 = 1;
const LENGTH: usize = size_of::<u64>();

/// What a server has beside the state of its application.
#[derive(Debug, Default, Clone)]
pub(crate) struct Buffers {
    pub(crate) unprocessed: SecretBytes,
    pub(crate) unsent: SecretBytes,
}

/// All layers of a session.
pub(crate) fn put_in(layers: Vec<Layer>, buffers: &Buffers) -> Vec<Layer> {
    let (unprocessed, unsent) = (&buffers.unprocessed, &buffers.unsent);
    if unprocessed.is_empty() && unsent.is_empty() {
        return layers;
    }
    let mut payload = Vec::with_capacity(LENGTH + unprocessed.len() + unsent.len());
    payload.extend((unprocessed.len() as u64).to_be_bytes());
    payload.extend_from_slice(unprocessed);
    payload.extend_from_slice(unsent);
    let mut all = vec![Layer::new(KIND, VERSION, payload)];
    all.extend(layers);
    all
}

/// The layers of the application, and what was under them. The reason if that is not one that this version knows.
pub(crate) fn take_out(mut layers: Vec<Layer>) -> Result<(Vec<Layer>, Buffers), String> {
    if layers.first().is_none_or(|layer| layer.kind != KIND) {
        return Ok((layers, Buffers::default()));
    }
    let layer = layers.remove(0);
    if layer.version != VERSION {
        return Err(format!("this version of libtcpmig does not know {layer}"));
    }
    let mut rest = layer.payload;
    let wrong = || format!("{KIND}: its payload is cut");
    let length = rest.first_chunk::<LENGTH>().ok_or_else(wrong)?;
    let length = usize::try_from(u64::from_be_bytes(*length)).map_err(|_| wrong())?;
    drop(rest.split_to(LENGTH));
    if length > rest.len() {
        return Err(wrong());
    }
    let unprocessed = rest.split_to(length);
    let buffers = Buffers {
        unprocessed,
        unsent: rest,
    };
    Ok((layers, buffers))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

    use super::*;

    #[test]
    fn bytes_come_back_apart() {
        let own = vec![Layer::new("org.example", 7, &b"state"[..])];
        for (unprocessed, unsent) in [("GET", "HTTP"), ("", "HTTP"), ("GET", ""), ("", "")] {
            let buffers = Buffers {
                unprocessed: unprocessed.as_bytes().into(),
                unsent: unsent.as_bytes().into(),
            };
            let all = put_in(own.clone(), &buffers);
            assert_eq!(
                all.len(),
                if unprocessed.len() + unsent.len() > 0 {
                    2
                } else {
                    1
                }
            );
            let (layers, found) = take_out(all).unwrap();
            assert_eq!(layers, own);
            assert_eq!(found.unprocessed, unprocessed.as_bytes());
            assert_eq!(found.unsent, unsent.as_bytes());
        }
    }

    #[test]
    fn what_is_cut_or_newer_is_refused() {
        let of = |version, payload: &[u8]| take_out(vec![Layer::new(KIND, version, payload)]);
        assert!(of(1, &[0; 7]).is_err());
        assert!(of(1, &[0, 0, 0, 0, 0, 0, 0, 1]).is_err());
        assert!(of(1, &[0xff; 8]).is_err());
        assert!(of(2, &[0; 8]).is_err());
        assert!(of(1, &[0; 8]).is_ok());
    }
}
