//! The names of the parts that a reader must understand.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};
use serde::ser::{Serialize, Serializer};

use super::visit::Name;

/// Far above the number of parts that there are, and low enough that a list of
/// short names does not grow in memory.
const MAX_NAMES: usize = 64;

/// The parts that a version can name, and whether an image has them.
pub(super) type Parts = [(&'static str, bool); 5];

pub(super) struct Critical<'a>(pub(super) Vec<&'a str>);

impl Critical<'_> {
    /// Other names for the same parts.
    pub(super) fn renamed(mut self, names: [(&str, &'static str); 2]) -> Self {
        for name in &mut self.0 {
            if let Some((_, new)) = names.iter().find(|(old, _)| old == name) {
                *name = new;
            }
        }
        self
    }
}

impl Serialize for Critical<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Critical<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names;

        impl<'de> Visitor<'de> for Names {
            type Value = Vec<&'de str>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of names")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut names = Vec::new();
                while let Some(Name(name)) = seq.next_element()? {
                    if names.len() == MAX_NAMES {
                        return Err(A::Error::custom(format_args!(
                            "more than {MAX_NAMES} names"
                        )));
                    }
                    names.push(name);
                }
                Ok(names)
            }
        }

        deserializer.deserialize_seq(Names).map(Critical)
    }
}
