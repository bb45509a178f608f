//! Lets hosts move a connection over bad links, and sends them nonsense.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: tcpmig::fuzz::Story<'_>| {
    tcpmig::fuzz::handover(&input, tcpmig_fuzz::peak);
});
