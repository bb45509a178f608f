//! Decodes images of every version so far.
#![no_main]

libfuzzer_sys::fuzz_target!(
    |input: tcpmig_format::fuzz::Old<'_>| tcpmig_format::fuzz::upgrade(&input, tcpmig_fuzz::peak)
);
