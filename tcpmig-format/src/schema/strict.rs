//! A layer between serde's derived code and the decoder that remembers which
//! field is being read, so that errors can name it, and takes only what
//! FORMAT.md allows: derived code alone would also take lists for structures,
//! numbers for their keys, and text and bytes for each other.

use std::cell::{Cell, RefCell};
use std::fmt;

use serde::de::value::BorrowedStrDeserializer;
use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Unexpected, Visitor,
};

use super::visit::{Bin, List, Name, Scalar, Text, refuse_text};

/// Where an error is: the fields from the innermost structure outwards, noted as it passes them.
#[derive(Default)]
pub(super) struct Place(RefCell<Vec<Step>>);

#[derive(Clone, Copy)]
enum Step {
    Field(&'static str),
    /// Of a list, from 0.
    Item(usize),
}

impl Place {
    fn passed(&self, key: &str, fields: &'static [&'static str]) {
        // A name from the input could be of any length.
        let known = fields.iter().find(|field| **field == key);
        let name = known.unwrap_or(&"(unknown field)");
        self.0.borrow_mut().push(Step::Field(name));
    }

    /// Reads a value; after an error this is where it is.
    pub(super) fn read<'de, T, D>(&self, inner: D) -> Result<T, D::Error>
    where
        T: Deserialize<'de>,
        D: Deserializer<'de>,
    {
        T::deserialize(Strict { inner, place: self })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let steps = self.0.borrow();
        let mut steps = steps.iter().rev().copied().peekable();
        // What is in the subject is named as it was before there was one: `tcp.send`.
        for outer in ["subject", "connection"] {
            let is_outer = |step: &Step| matches!(step, Step::Field(name) if *name == outer);
            if steps.len() > 1 {
                steps.next_if(is_outer);
            }
        }
        let Some(Step::Field(first)) = steps.next() else {
            return f.write_str("payload");
        };
        f.write_str(first)?;
        steps.try_for_each(|step| match step {
            Step::Field(name) => write!(f, ".{name}"),
            Step::Item(number) => write!(f, "[{number}]"),
        })
    }
}

/// A deserializer, seed or visitor and the place where it works.
struct Strict<'p, T> {
    inner: T,
    place: &'p Place,
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Strict<'_, S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, inner: D) -> Result<S::Value, D::Error> {
        let place = self.place;
        self.inner.deserialize(Strict { inner, place })
    }
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Strict<'_, D> {
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
        let place = self.place;
        // Not `deserialize_seq`, which takes bytes for a list of numbers.
        self.inner.deserialize_any(List(Items { visitor, place }))
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_any(visitor)
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
    }
}

/// An optional field.
impl<'de, V: Visitor<'de>> Visitor<'de> for Strict<'_, V> {
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

struct Structure<'p, V> {
    visitor: V,
    fields: &'static [&'static str],
    place: &'p Place,
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Structure<'_, V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<V::Value, A::Error> {
        let key = Cell::new(None);
        let value = self.visitor.visit_map(Fields {
            map,
            key: &key,
            place: self.place,
        });
        if value.is_err()
            && let Some(key) = key.get()
        {
            self.place.passed(key, self.fields);
        }
        value
    }

    refuse_text!();
}

/// The fields of a structure.
struct Fields<'p, 'de, A> {
    map: A,
    /// The last key, until its value was read.
    key: &'p Cell<Option<&'de str>>,
    place: &'p Place,
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
        self.key.set(Some(key));
        seed.deserialize(BorrowedStrDeserializer::new(key))
            .map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        let value = self.map.next_value_seed(Strict {
            inner: seed,
            place: self.place,
        })?;
        self.key.set(None);
        Ok(value)
    }
}

/// A list.
struct Items<'p, V> {
    visitor: V,
    place: &'p Place,
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Items<'_, V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.visitor.expecting(f)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<V::Value, A::Error> {
        self.visitor.visit_seq(Elements {
            seq,
            number: 0,
            place: self.place,
        })
    }
}

/// The elements of a list.
struct Elements<'p, A> {
    seq: A,
    /// Of the next one.
    number: usize,
    place: &'p Place,
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Elements<'_, A> {
    type Error = A::Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, A::Error> {
        let place = self.place;
        let element = self.seq.next_element_seed(Strict { inner: seed, place });
        if element.is_err() {
            place.0.borrow_mut().push(Step::Item(self.number));
        }
        self.number += 1;
        element
    }
}
