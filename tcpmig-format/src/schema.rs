//! What is on the wire, apart from the types that users see: one module per
//! format version, not changed once that version is released.

mod strict;
pub(crate) mod v1;
mod visit;
