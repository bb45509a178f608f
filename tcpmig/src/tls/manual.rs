//! For authors of servers: what moves, what a stolen image means, which providers and versions work. Documentation only.
//!
//! # A server in three steps
//!
//! 1. Make the `ServerConfig` that you would give to tokio-rustls, and give it to [`Tls::new`](super::Tls::new). Name `http/1.1`
//!    alone in `alpn_protocols`, or nothing, unless the server speaks HTTP/2 (`Movable::with_http2`).
//! 2. [`Movable::over`](crate::http::Movable::over) it. The accept loop, the handlers and the ways by which connections leave stay as they
//!    are over plain TCP.
//! 3. Give each host its own certificate if you like: a session that moved does not ask for it again. For clients that come back
//!    with a ticket all hosts need one ticketer with the same keys ([`ServerConfig::ticketer`](rustls::ServerConfig::ticketer)); without it they make a
//!    whole handshake, and nothing fails.
//!
//! A proxy's connections to its backends are those of a [`TlsClient`](super::TlsClient), which are taken apart and put together in the same manner.
//!
//! # What is refused, and when
//!
//! All of it before the connection is touched: it goes on where it is, and the caller is told why.
//!
//! | What | Who says so |
//! |---|---|
//! | a handshake that is not over | nobody: a server's move waits for its end, for as long as [`Tls::handshake_within`](super::Tls::handshake_within). [`Carrier::check`](crate::session::Carrier::check) says it of a carrier of your own |
//! | early data | it is not accepted at all, whatever the `ServerConfig` says: it can come twice |
//! | a session that rustls has given up | `Carrier::check`, at the source |
//! | a provider that does not give the keys of the suite out | `Carrier::check` at the source, [`Carriers::check`](crate::session::Carriers::check) at the target, by the suite's name |
//! | a suite, or version of TLS, that the target's provider does not have | `Carriers::check`, by its number |
//! | a layer of another version than [`VERSION`](super::VERSION), or that is not exactly as this version writes it | `Carriers::check` |
//! | a version of rustls which does not come to its keys as is relied on here | `Carriers::check`, which tries each suite once |
//! | kernel TLS under it | the capture of the connection, by the name of the socket's upper layer (`tls`) |
//!
//! # One owner
//!
//! Two that write with the same key and the same record numbers use nonces twice, which gives away what they protect and lets
//! others forge. So nothing here ever has two: taking a session apart ends it, in the same call; the layer goes to one place;
//! what the target has before COMMIT is bytes that nobody goes on with; a move that is cancelled, refused or settled in the
//! source's favour gives the layer back to the source alone; one that is in doubt leaves it with nobody until somebody answers
//! for it; and journals know which connection moved where and nothing of its layers, so that a process that is started again
//! has no session to go on with. The tests in `tests/http/tls_owner.rs` count owners on each of these paths.
//!
//! A [`Layer`](tcpmig_format::Layer) can be cloned, because layers of other kinds may: do not go on with two.
//!
//! # What a stolen image means
//!
//! An image is as secret as the connection. Who has it, or the layer, can
//!
//! - read and forge everything that either side sends from then on until the session ends: a key update derives the next key from
//!   the one that was stolen;
//! - read what was sent before in this session, if it was recorded: with TLS 1.3 back to the last key update of each direction, with TLS 1.2
//!   back to the handshake;
//! - derive what the session exports (`export_keying_material`, TLS 1.3), and read what had been received or was waiting to
//!   be sent when the session was taken apart.
//!
//! It cannot impersonate the server to anybody else, read any other session, or resume this one: neither the certificate's key
//! nor the keys of tickets nor the resumption secret is in the image. **Forward secrecy** remains as it was between sessions, and
//! within one as far as key updates go; a move does not weaken it, but puts the secrets into the memory of a second host.
//!
//! What is done about it:
//!
//! - between hosts an image travels over mutually authenticated QUIC and nothing else; on one host over a Unix socket that
//!   only the same user opens;
//! - the memory of secrets, plaintext and images is zeroed when it is given back. What rustls and its provider hold is
//!   theirs to zero: after a session had gone on in rustls 0.23.46, copies of its traffic secret (TLS 1.3) or key block (TLS 1.2) were found in
//!   memory that had been given back. A swapped page or a core dump has what memory has;
//! - no type that has a secret shows it (`Debug`), and no error, log or journal has one;
//! - the command takes no TLS session from a file and writes none: `tcpmig dump` reads the socket of a process that
//!   has its session for itself, and `tcpmig restore` refuses an image with a layer of a TLS session. The descriptor store of
//!   [`upgrade`](crate::upgrade), if that feature is on, refuses it as well. They do not seal: a key beside the file would be worth the file. A program
//!   that writes an [`Image`](tcpmig_format::Image) to a file itself has to seal it.
//!
//! Trust between hosts is therefore trust with sessions: a host that may take connections in
//! ([`Policy`](crate::driver::policy), with the feature `driver`) gets their contents.
//!
//! # Providers
//!
//! | Provider | |
//! |---|---|
//! | ring, aws-lc-rs | all of their suites, in either direction, also from one to the other: tested |
//! | aws-lc-rs in FIPS mode | not tested. Keys leave the module, which a policy may forbid, and [`fips`](rustls::ServerConnection::fips) is false for a session that moved |
//! | others | those that implement `extract_keys` for their suites; the others are refused by name |
//!
//! Suites are compared by number: AES-GCM and ChaCha20-Poly1305 are what [`ConnectionTrafficSecrets`](rustls::ConnectionTrafficSecrets) knows.
//!
//! # Versions of rustls
//!
//! The layer has secrets, numbers and bytes of records, as the RFCs define them, and nothing of rustls. So hosts may have different
//! versions of rustls: each takes what the others wrote, as long as [`VERSION`](super::VERSION) is the same.
//!
//! How a session goes on depends on how rustls makes connections (`graft.rs`): that it asks the provider for the secrets by their labels of RFC
//! 8446 and for the key block of RFC 5246, derives the keys by the suite's own algorithm, and begins to count at 0; and how it is taken
//! apart on the names in its key log and on what `dangerous_extract_secrets` counts. None of it is promised for the next version. Therefore
//! the dependency is on one minor version (`~0.23`) with the oldest patch that was tried, and an update takes these steps:
//!
//! 1. `cargo test -p tcpmig --lib --all-features tls::`. `rustls_does_what_is_relied_on` names what has changed; `this_version_of_rustls_was_read` fails
//!    for every new version.
//! 2. Read the changes of rustls to `KeyLog`, `conn.rs`, `common_state.rs`, `record_layer.rs`, the two `tls13/key_schedule.rs` and `tls12`, and to what
//!    buffers records: does the connection hold anything new that is not carried?
//! 3. Add the version to the list in `tls/tests/relied_on.rs`. If the layer has to say more, raise [`VERSION`](super::VERSION), and read the earlier one.
//!
//! Where somebody links a version that was not tried, [`Carriers::check`](crate::session::Carriers::check) finds out with sessions that are made up, and refuses.
