//! The versioned image of a live TCP connection.
#![forbid(unsafe_code)]

mod flow;

pub use flow::{FlowError, FourTuple};
