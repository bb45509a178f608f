//! Lets connections of HTTP/2 follow any frames, and go on from any images.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: tcpmig::fuzz::Frames<'_>| {
    tcpmig::fuzz::http2(&input, tcpmig_fuzz::peak);
});
