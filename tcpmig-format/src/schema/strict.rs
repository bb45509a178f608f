//! A layer between serde's derived code and the decoder that remembers which
//! field is being read, so that errors can name it, and takes only what
//! FORMAT.md allows: derived code alone would also take lists for structures,
//! numbers for their keys, and text and octets for each other.

use std::cell::RefCell;
use std::fmt;

use serde::de::value::BorrowedStrDeserializer;
use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, Error, MapAccess, Unexpected, Visitor,
};

use super::visit::{Bin, List, Name, Scalar, Text, refuse_text};

/// The field being read, from the outermost structure inwards.
#[derive(Default)]
pub(super) struct Place<'de>(RefCell<Vec<Step<'de>>>);

/// A key in the input, and the fields of its structure.
struct Step<'de> {
    key: &'de str,
    fields: &'static [&'static str],
}

impl<'de> Place<'de> {
    fn enter(&self, key: &'de str, fields: &'static [&'static str]) {
        self.0.borrow_mut().push(Step { key, fields });
    }

    /// Not called after an error, so that the place of the error stays.
    fn leave(&self) {
        self.0.borrow_mut().pop();
    }

    /// Reads a value, keeping track of the place.
    pub(super) fn read<T, D>(&self, inner: D) -> Result<T, D::Error>
    where
        T: Deserialize<'de>,
        D: Deserializer<'de>,
    {
        T::deserialize(Strict { inner, place: self })
    }
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let steps = self.0.borrow();
        if steps.is_empty() {
            return f.write_str("payload");
        }
        for (depth, Step { key, fields }) in steps.iter().enumerate() {
            let dot = if depth > 0 { "." } else { "" };
            // A name from the input could be of any length.
            let known = fields.iter().find(|field| *field == key);
            write!(f, "{dot}{}", known.unwrap_or(&"(unknown field)"))?;
        }
        Ok(())
    }
}

/// A deserializer, seed or visitor and the place where it works.
struct Strict<'p, 'de, T> {
    inner: T,
    place: &'p Place<'de>,
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Strict<'_, 'de, S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, inner: D) -> Result<S::Value, D::Error> {
        let place = self.place;
        self.inner.deserialize(Strict { inner, place })
    }
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Strict<'_, 'de, D> {
    type Error = D::Error;

    fn is_human_readable(&self) -> bool {
        self.inner.is_human_readable()
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_any(Scalar(visitor))
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_ignored_any(visitor)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        // Not `deserialize_seq`, which takes octets for a list of numbers.
        self.inner.deserialize_any(List(visitor))
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_any(Text(visitor))
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_any(Bin(visitor))
    }

    fn deserialize_option<V: Visitor<'de>>(self, inner: V) -> Result<V::Value, D::Error> {
        let place = self.place;
        self.inner.deserialize_option(Strict { inner, place })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.inner.deserialize_any(Structure {
            visitor,
            fields,
            place: self.place,
        })
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char string
        byte_buf unit unit_struct newtype_struct tuple tuple_struct map enum
        identifier
    }
}

/// An optional field.
impl<'de, V: Visitor<'de>> Visitor<'de> for Strict<'_, 'de, V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.expecting(f)
    }

    fn visit_none<E: Error>(self) -> Result<V::Value, E> {
        self.inner.visit_none()
    }

    fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        let place = self.place;
        self.inner.visit_some(Strict { inner, place })
    }
}

struct Structure<'p, 'de, V> {
    visitor: V,
    fields: &'static [&'static str],
    place: &'p Place<'de>,
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Structure<'_, 'de, V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<V::Value, A::Error> {
        self.visitor.visit_map(Fields {
            map,
            fields: self.fields,
            place: self.place,
        })
    }

    refuse_text!();
}

struct Fields<'p, 'de, A> {
    map: A,
    fields: &'static [&'static str],
    place: &'p Place<'de>,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Fields<'_, 'de, A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, A::Error> {
        let Some(Name(key)) = self.map.next_key()? else {
            return Ok(None);
        };
        self.place.enter(key, self.fields);
        seed.deserialize(BorrowedStrDeserializer::new(key))
            .map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        let value = self.map.next_value_seed(Strict {
            inner: seed,
            place: self.place,
        })?;
        self.place.leave();
        Ok(value)
    }
}
