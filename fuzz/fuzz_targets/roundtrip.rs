//! Encodes arbitrary images and decodes them again.
#![no_main]

libfuzzer_sys::fuzz_target!(|image: tcpmig_format::Image| {
    tcpmig_format::fuzz::roundtrip(&image);
});
