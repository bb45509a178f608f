//! What is on the wire, apart from the types that users see.
//!
//! There is one module for each version of the format, not changed once that version is released. A module has the
//! structures that its version changed, takes the others from the version before, and upgrades that version's image
//! to its own (`From`). Between the newest version and the types that users see, `decode` and `encode` convert.

mod critical;
mod decode;
mod encode;
mod layers;
mod strict;
mod v1;
mod v2;
mod v3;
mod visit;
mod writer;

use v3 as newest;

pub(crate) use decode::{Source, read};
pub(crate) use encode::write;
#[cfg(any(test, feature = "arbitrary"))]
pub(crate) use encode::write_as;
pub(crate) use writer::Writer;

#[cfg(test)]
mod tests;
