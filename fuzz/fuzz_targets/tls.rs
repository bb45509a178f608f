//! Lets sessions of TLS go on from any layers.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: tcpmig::fuzz::Import<'_>| {
    let (server, client) = tcpmig_fuzz::configs();
    tcpmig::fuzz::tls(&input, server, client, tcpmig_fuzz::peak);
});
