//! The list of layers.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};
use serde::ser::{Serialize, Serializer};

use super::v1::App;
use crate::MAX_LAYERS;

/// Layers from the bottom up. Each has the fields that the only one of version 1 had.
pub(super) struct Layers<'a>(pub(super) Vec<App<'a>>);

impl Serialize for Layers<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Layers<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct All;

        impl<'de> Visitor<'de> for All {
            type Value = Vec<App<'de>>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of layers")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut layers = Vec::new();
                while let Some(layer) = seq.next_element()? {
                    // What a list costs in memory does not follow from its bytes alone.
                    if layers.len() == MAX_LAYERS {
                        return Err(A::Error::custom(format_args!(
                            "more than {MAX_LAYERS} layers"
                        )));
                    }
                    layers.push(layer);
                }
                Ok(layers)
            }
        }

        deserializer.deserialize_seq(All).map(Layers)
    }
}
