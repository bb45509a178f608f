//! Cuts streams of frames into pieces.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: tcpmig_transport::fuzz::Stream<'_>| {
    tcpmig_transport::fuzz::frames(&input, tcpmig_fuzz::peak);
});
