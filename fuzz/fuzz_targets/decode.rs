//! Decodes arbitrary bytes, as they are and behind a good envelope.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    tcpmig_format::fuzz::decode(bytes, tcpmig_fuzz::peak);
});
