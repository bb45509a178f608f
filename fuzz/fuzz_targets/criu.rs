//! Imports connections from any files of CRIU.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: tcpmig::fuzz::Dump<'_>| {
    tcpmig::fuzz::criu(&input, tcpmig_fuzz::peak);
});
