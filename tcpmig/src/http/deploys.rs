//! Deploys that do not cut streams: what a server of long responses has to do, and what a gateway to language models needs from
//! its model server.
//!
//! A rolling deploy ends processes whose connections are in the middle of something: tokens of a language model, events,
//! a download, a WebSocket. Grace periods wait for their ends, for minutes, and cut what is left. Here the
//! connections leave instead, within a second, and the process ends. Whoever is at the other end of
//! them sees one response without a gap, on one connection.
//!
//! # What a server does
//!
//! 1. [`serve`](fn@super::serve) with a [`Site`](super::Site) takes the place of `axum::serve`: `with_drain(signal, host)` moves everything
//!    to another host when the signal comes, and ends what stayed.
//! 2. Each handler whose response takes long gets a [`Resume`](super::Resume) and says with each piece where the response goes on.
//!
//! ```no_run
//! # use std::convert::Infallible;
//! # use axum::response::{IntoResponse, sse::{Event, Sse}};
//! # use tcpmig::http::{IntoMovable, Resume};
//! # async fn event(number: u64) -> Event { Event::default().data(number.to_string()) }
//! async fn events(resume: Resume<u64>) -> impl IntoResponse {
//!     let events = resume.unfold(0, async |number| {
//!         let event = event(number).await;
//!         Some((Ok::<_, Infallible>(event), number + 1))
//!     });
//!     Sse::new(events).movable(resume)
//! }
//! ```
//!
//! The order of a deploy: start the new server; then tell the old one to drain. Each connection is offered to the new server, whose
//! service is asked for the rest of the response before anything leaves the old one. If it refuses (the route is gone, the
//! cursor is of another kind), the connection goes on where it is, [`Stayed`](super::Stayed) says why, and it is offered again
//! until the [deadline](super::Draining::within). Then it ends as with graceful shutdown.
//!
//! | What | What its server changes |
//! |---|---|
//! | events, tokens | [`Resume`](super::Resume) with the number of the last event |
//! | files, and proxies to servers of files | [`RangeLayer`](super::RangeLayer) |
//! | WebSockets | `upgrade.on_upgrade(handler).movable(resume)`: [`websocket`](super::websocket) |
//! | short answers, uploads | nothing: a drain waits for their ends |
//!
//! # Streams of language models
//!
//! The client's side of a stream is events, as above. The question is where the new gateway gets the tokens from that the client does
//! not have yet. There are three answers, which differ in what they ask of the model server; the example `gateway` has all of them, and
//! each is tested with a hundred moves in one stream or under a drain.
//!
//! | | What the model server has to do | What the old gateway has to do | What else is needed |
//! |---|---|---|---|
//! | **It is asked again** | give the rest of a stream behind an event, with the same tokens: by `Last-Event-ID`, or the number of the next event (`OpenAI`'s Responses with `background` and `starting_after`) | nothing, it can end at once | the event's number as cursor |
//! | **The old gateway keeps the stream** | nothing | go on reading, give the new one what it asks for, and live until its last stream has ended | a way between the gateways; a cursor that says who keeps which stream |
//! | **The connection to the model server moves too** | nothing; its connection comes from an address that all gateways have | give it away, and end | `CAP_NET_ADMIN` as for clients; a client of HTTP whose state is known between two events |
//!
//! To ask the model for the same completion again is none of these: the tokens are others, even at temperature 0 with batches of another
//! size, and are paid for twice. The handler must know from its cursor that it goes on, and must set one before the
//! first token, or a stream that moves before it begins is begun twice.
//!
//! ## The model server replays
//!
//! The least work, and nothing of it is the gateway's: the cursor is the number of the last event, and the handler asks for what follows
//! it. The model server has to keep what it has generated for as long as streams may take, and few do: `OpenAI`'s does for background
//! responses.
//!
//! ## The old gateway keeps the stream
//!
//! A task reads the stream into a bounded buffer, whoever is connected. The body of the response asks for the events behind those that the
//! client has, and that is also the word that they are not needed any longer. If the buffer is full, the model waits. After a move
//! the body asks the old gateway for the same, over the private network, and from wherever it moves to later. Rules that the example keeps:
//!
//! - Asking is by number and harmless to repeat: a move drops the request that waits, and the target makes it again.
//! - The keeper serves its buffers on an address of their own, which is not drained, and ends when they are empty.
//! - A stream that nobody asks for is dropped after a minute: its client is gone.
//! - If the keeper dies, the stream ends with an event that says so. Nothing is made up.
//!
//! ## The connection to the model server moves
//!
//! The old gateway ends although streams go on. Between two events it gives its connection to the model server away as
//! [`Parts`](crate::session::Parts) with one layer: the buffer, and the bytes that are not a whole event yet. The other gateway gets
//! it by [`Serve::with_others`](super::Serve::with_others) and reads on. The model server sees one client that reads.
//!
//! It comes after the clients' connections, not before: until it is there, the new gateway asks the old one, and if it cannot
//! move the old one keeps the stream, as above. Two things make the connection movable: it is bound to an address
//! that the other gateway has as well (with the default [`Policy`](crate::driver::policy::Policy) a target takes connections of its own
//! addresses only), and its state is known: the example asks by HTTP/1.0, so that the body is the stream's bytes and nothing else.
//! With TLS to the model server this way is not there: only sessions of servers move.
//!
//! # What clients see
//!
//! Nothing. The bytes are those of one response; `id:` fields go on; no client has to reconnect, and `EventSource`, curl, httpx and
//! `OpenAI`'s own package do not know that there were two servers. While a connection moves it stands still for milliseconds.
