//! What runs on a connection.

use std::fmt;

use crate::image::{MAX_BYTES, MAX_TEXT};
use crate::{EncodeError, SecretBytes};

/// The most layers that an image can have.
pub const MAX_LAYERS: usize = 16;

/// The state of one protocol or application on a connection, opaque to this crate.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Layer {
    /// What `payload` is, at most 255 bytes: the name of the software or format, for instance a
    /// reversed domain name.
    pub kind: String,
    /// The version of `payload`, counted by its kind.
    pub version: u32,
    /// The state.
    pub payload: SecretBytes,
}

impl Layer {
    /// A layer of this kind and version.
    pub fn new(kind: impl Into<String>, version: u32, payload: impl Into<SecretBytes>) -> Self {
        Self {
            kind: kind.into(),
            version,
            payload: payload.into(),
        }
    }

    /// The error that nobody consumes this layer.
    #[must_use]
    pub fn unconsumed(&self) -> UnconsumedLayer {
        UnconsumedLayer {
            kind: self.kind.clone(),
            version: self.version,
        }
    }
}

/// Its kind and version: `"org.example.chat" version 3`.
impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} version {}", self.kind, self.version)
    }
}

/// A layer of an image is left that nobody consumed: whoever goes on without it would damage the
/// session.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("nothing here consumes the layer {kind:?} version {version}")]
#[non_exhaustive]
pub struct UnconsumedLayer {
    /// Its kind.
    pub kind: String,
    /// Its version.
    pub version: u32,
}

/// The layers of an image while they are consumed, from the bottom up.
///
/// ```
/// use tcpmig_format::{Image, Layer};
///
/// let mut image = Image::default();
/// image.layers = vec![
///     Layer::new("org.example.tls", 1, &b"keys"[..]),
///     Layer::new("org.example.chat", 3, &b"room 7"[..]),
/// ];
///
/// let mut layers = image.read_layers();
/// let tls = layers.next_of("org.example.tls").expect("it runs over TLS");
/// assert_eq!(tls.version, 1);
/// // Nobody here knows the chat, so the connection must not go on here.
/// let error = layers.finish().unwrap_err();
/// let text = r#"nothing here consumes the layer "org.example.chat" version 3"#;
/// assert_eq!(error.to_string(), text);
/// ```
#[derive(Debug, Clone)]
#[must_use = "only `finish` notices a layer that nobody consumed"]
pub struct LayerReader<'a> {
    rest: &'a [Layer],
}

impl<'a> LayerReader<'a> {
    /// Begins with the first of these.
    pub fn new(layers: &'a [Layer]) -> Self {
        Self { rest: layers }
    }

    /// Consumes the lowest layer that is left, if it is of this kind. Its version is the caller's
    /// to check.
    pub fn next_of(&mut self, kind: &str) -> Option<&'a Layer> {
        let (first, rest) = self.rest.split_first()?;
        if first.kind != kind {
            return None;
        }
        self.rest = rest;
        Some(first)
    }

    /// Makes sure that nothing is left.
    ///
    /// # Errors
    ///
    /// [`UnconsumedLayer`], the lowest one.
    pub fn finish(self) -> Result<(), UnconsumedLayer> {
        self.rest
            .first()
            .map_or(Ok(()), |left| Err(left.unconsumed()))
    }
}

/// What the format allows.
pub(crate) fn check(layers: &[Layer]) -> Result<(), EncodeError> {
    if layers.len() > MAX_LAYERS {
        return Err(EncodeError::TooManyLayers(layers.len()));
    }
    let longest = layers.iter().map(|layer| layer.kind.len()).max();
    let payloads = layers.iter().map(|layer| layer.payload.len()).sum();
    for (what, len, limit) in [
        ("the kind of a layer", longest.unwrap_or(0), MAX_TEXT),
        ("the payloads of all layers", payloads, MAX_BYTES),
    ] {
        if len > limit {
            return Err(EncodeError::TooLong { what, len, limit });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(kinds: &[&str]) -> Vec<Layer> {
        let layer = |kind: &&str| Layer::new(*kind, 1, SecretBytes::new());
        kinds.iter().map(layer).collect()
    }

    #[test]
    fn layers_are_consumed_from_the_bottom_up() {
        let layers = named(&["tls", "http"]);
        let mut reader = LayerReader::new(&layers);
        assert!(reader.next_of("http").is_none(), "TLS is below it");
        assert_eq!(reader.next_of("tls"), Some(&layers[0]));
        assert_eq!(reader.clone().finish(), Err(layers[1].unconsumed()));
        assert_eq!(reader.next_of("http"), Some(&layers[1]));
        assert!(reader.next_of("http").is_none());
        assert_eq!(reader.finish(), Ok(()));
    }

    #[test]
    fn the_format_has_limits_for_layers() {
        assert_eq!(check(&named(&["x"; MAX_LAYERS])), Ok(()));
        assert_eq!(
            check(&named(&["x"; MAX_LAYERS + 1])),
            Err(EncodeError::TooManyLayers(17))
        );
        assert_eq!(check(&named(&["", &"x".repeat(255)])), Ok(()));
        assert!(matches!(
            check(&named(&["", &"x".repeat(256)])),
            Err(EncodeError::TooLong { len: 256, .. })
        ));
    }
}
