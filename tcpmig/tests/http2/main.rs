//! HTTP/2 connections that go on in another server under clients that know nothing of it.
//!
//! Both servers are in this process, and a connection goes from one to the other by its parts, as it does between hosts.
#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

mod any;
mod app;
mod client;
mod floods;
mod grpc;
mod host;
mod moves;
mod programs;
mod stays;
mod uploads;
