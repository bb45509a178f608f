//! Carries connection images between hosts over QUIC with mutual TLS
#![forbid(unsafe_code)]
