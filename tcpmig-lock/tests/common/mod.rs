//! Private networks for the tests.
#![allow(unused_imports)] // Each test binary uses its own part.

pub(crate) use tcpmig_lock::conformance::isolate::isolated;
pub(crate) use tcpmig_lock::conformance::lab::{eventually, slowed};
pub(crate) use tcpmig_lock::conformance::{isolate, lab as net, wire as capture};
