//! Merges captured packets into images.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: tcpmig::fuzz::Capture<'_>| {
    tcpmig::fuzz::segments(&input, tcpmig_fuzz::peak);
});
