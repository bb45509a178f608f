//! Changes the bytes of arbitrary images and decodes them.
#![no_main]

libfuzzer_sys::fuzz_target!(
    |input: tcpmig_format::fuzz::Mutation| tcpmig_format::fuzz::mutate(&input, tcpmig_fuzz::peak)
);
