//! HTTP/2 connections that move, without input and output (RFC 9113).
//!
//! A [`Connection`] stands between the peer and a server's own implementation of HTTP/2, which it calls the server, and neither of the two knows it.
//! On a connection that begins it only follows the frames of both, which pass as they are. At a safe point it becomes an
//! [`Image`]; of that another one is made, which plays the beginning of a connection to a new server, brings it to where
//! the old one was, and keeps from the peer what that server says meanwhile. When the two agree, frames pass again as they are.
//!
//! What the peer sees: nothing but what a server may do at any time. Its decoder of header blocks is emptied by a size of 0 at the beginning of one block,
//! and some responses behind a move are not compressed.
//!
//! # Methods
//!
//! - *From the peer*: [`Connection::receive`] takes bytes, cut anywhere, and [`Connection::read`] gives the server what it is to
//!   read. A request is given alone, and the next one when the service [took](Connection::take_request) it or
//!   the server has answered it: so it is known whose request the service has.
//! - *From the server*: [`Connection::sent`] follows what passes as it is, as far as [`Connection::passes`] says; all
//!   else goes through [`Connection::write`].
//! - *To the peer*: [`Connection::unsent`] is what it is to be sent before anything passes.
//! - *A drain*: [`Connection::drain`] holds requests back, [`Connection::flood`] brings out what the server holds, and
//!   [`Connection::into_image`] ends it.
//!
//! # Windows
//!
//! A new server begins with windows that are not those of the peer. For streams it is told that they begin with nothing, and gets each
//! stream's window by `WINDOW_UPDATE`. For the connection that cannot be said: what it believes to have and has not, it *owes*.
//! DATA beyond the peer's windows is queued here, and the peer's next updates pay the debt before the server learns of them.

mod ahead;
mod frame;
#[cfg(feature = "arbitrary")]
pub(crate) mod fuzz;
mod hpack;
mod image;
mod inbound;
mod outbound;
mod settings;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::{Bytes, BytesMut};

use ahead::Ahead;
pub(crate) use frame::PREFACE;
use frame::{ACK, DATA, END_HEADERS, END_STREAM, HEAD, Head, MAX_WINDOW, SETTINGS, WINDOW_UPDATE};
use hpack::Bridge;
pub(crate) use hpack::put_header;
use image::StreamImage;
pub(crate) use image::{Image, Malformed};
use outbound::Passing;
use settings::{HEADER_TABLE_SIZE, INITIAL_WINDOW_SIZE, Settings};

/// How much of what the peer sends is kept while it is held back.
const MAX_HELD: usize = 1 << 22;
/// How much of what the server has said is kept while it waits for the peer's windows: more than servers keep themselves for
/// the streams that they allow.
const MAX_QUEUED: usize = 1 << 26;
/// How many streams can be open.
const MAX_STREAMS: usize = 1 << 12;
/// How much may wait to be sent before nothing more is read, of what is said here to the peer.
const MAX_UNSENT: usize = 1 << 16;
/// How many requests may wait that the peer has reset: as many as hyper lets wait.
const MAX_RESETS: usize = 20;
/// How many frames a header block may have between its first and its last: as many as hyper takes of the size of a list of headers that it takes.
const MAX_CONTINUATIONS: usize = 5;

/// An HTTP/2 connection between a peer and a server.
pub(crate) struct Connection {
    /// From the peer, not processed.
    arrived: BytesMut,
    ahead: Ahead,
    /// Frames from before, for the server, in front of what arrived. Their header blocks say the same to any decoder.
    replay: BytesMut,
    /// For the server.
    feed: BytesMut,
    /// For the peer.
    unsent: BytesMut,
    has_preface: bool,
    /// What arrives cannot be followed: it passes as it is, and the server says what is wrong with it.
    is_astray: bool,
    /// The peer was told that the connection ends: nothing that it sends is for anybody.
    is_ended: bool,
    /// The request that the server was given, and the service not yet.
    awaited: Option<u32>,
    /// Requests are held back.
    is_draining: bool,
    /// The server was given more than the peer's windows, to bring out what it holds.
    is_flooded: bool,
    /// Frames of streams that are held back, by stream.
    held: BTreeMap<u32, BytesMut>,
    /// How many bytes that is.
    held_len: usize,
    bridge: Bridge,
    streams: BTreeMap<u32, Stream>,
    /// The last stream that the server was given.
    last: u32,
    /// The last stream that the peer has reset before the server was given it.
    skipped: u32,
    /// Streams up to here that are not open are closed, and this server knows nothing of them.
    boundary: u32,
    peer: Settings,
    own: Settings,
    /// The server does not know the peer's initial window: it believes in 0.
    has_given_windows: bool,
    send: Window,
    /// How many bytes the server believes that the peer may send, and how many the peer does.
    recv: Recv,
    /// For each SETTINGS that the server has to acknowledge, whether it is the peer's.
    to_acknowledge: VecDeque<bool>,
    /// For each SETTINGS that the peer has to acknowledge, whether the server waits for that.
    unacknowledged: VecDeque<bool>,
    /// The size of the table in the peer's decoder that the server was told.
    table: u32,
    /// The peer's decoder has entries that the server's encoder does not know of.
    empties_table: bool,
    /// The server is being brought to where another was.
    is_beginning: bool,
    goaway: Option<u32>,
    /// The server has said GOAWAY.
    is_going_away: bool,
    /// The streams of which something waits for the peer's windows.
    waiting: BTreeSet<u32>,
    /// Whose turn it is, of those: the first from here on.
    turn: u32,
    /// How many bytes that is.
    queued: usize,
    /// How much waited when it came.
    carried: usize,
    passing: Passing,
    /// From the server, not a whole frame.
    collected: BytesMut,
}

/// How many bytes of DATA may be sent.
#[derive(Debug, Clone, Copy, Default)]
struct Window {
    /// As the peer has it.
    left: i64,
    /// What waits here will use so much of it.
    queued: i64,
    /// The server believes in so much more.
    owed: i64,
}

#[derive(Debug, Clone, Copy)]
struct Recv {
    believed: i64,
    given: i64,
}

/// A stream that is open.
#[derive(Debug, Clone, Default)]
struct Stream {
    window: Window,
    /// How many bytes of DATA the peer may send.
    recv: i64,
    /// Bytes of its request's body that this server has been given.
    received: u64,
    /// Bytes of DATA that this server has sent.
    sent: u64,
    /// This server has sent a response's head.
    has_head: bool,
    /// The peer has said `END_STREAM`.
    has_request: bool,
    /// The server has said `END_STREAM`.
    has_response: bool,
    /// The peer has the head of the response: what the server says is not for it.
    swallows_head: bool,
    /// The server has yet to be given it again.
    reopens: bool,
    /// The server does not know it: what is left of it waits here.
    is_rest: bool,
    /// What waits for the peer's windows, or behind what does.
    queue: VecDeque<Queued>,
}

/// A frame, or the frames of a header block.
#[derive(Debug, Clone)]
struct Queued {
    head: Head,
    /// All that is behind the head.
    rest: Bytes,
}

impl Window {
    fn new(left: i64) -> Self {
        Self {
            left,
            ..Self::default()
        }
    }

    /// What the server believes.
    fn believed(&self) -> i64 {
        self.left - self.queued + self.owed
    }

    /// The peer has room for more; what of it the server is to be told.
    fn grow(&mut self, by: i64) -> i64 {
        self.left += by;
        let paid = self.owed.min(by);
        self.owed -= paid;
        by - paid
    }
}

impl Connection {
    /// One that begins: its preface is still to come.
    pub(crate) fn new() -> Self {
        Self {
            arrived: BytesMut::new(),
            ahead: Ahead::new(),
            replay: BytesMut::new(),
            feed: BytesMut::new(),
            unsent: BytesMut::new(),
            has_preface: false,
            is_astray: false,
            is_ended: false,
            awaited: None,
            is_draining: false,
            is_flooded: false,
            held: BTreeMap::new(),
            held_len: 0,
            bridge: Bridge::new(),
            streams: BTreeMap::new(),
            last: 0,
            skipped: 0,
            boundary: 0,
            peer: Settings::default(),
            own: Settings::default(),
            has_given_windows: false,
            send: Window::new(65_535),
            recv: Recv {
                believed: 65_535,
                given: 65_535,
            },
            to_acknowledge: VecDeque::new(),
            unacknowledged: VecDeque::new(),
            table: Settings::default().header_table(),
            empties_table: false,
            is_beginning: false,
            goaway: None,
            is_going_away: false,
            waiting: BTreeSet::new(),
            turn: 0,
            queued: 0,
            carried: 0,
            passing: Passing::default(),
            collected: BytesMut::new(),
        }
    }

    /// One that goes on with a new server, which gets these header blocks for the [streams](Image::streams) that it goes on with.
    ///
    /// # Errors
    ///
    /// [`Malformed`].
    pub(crate) fn resume(
        image: &Image,
        mut request: impl FnMut(u32) -> Option<Vec<u8>>,
    ) -> Result<Self, Malformed> {
        image.check()?;
        let bridge = Bridge::resume(&image.table).map_err(|_| Malformed("the header table"))?;
        let mut this = Self {
            arrived: BytesMut::from(&image.unread[..]),
            has_preface: true,
            bridge,
            boundary: image.last,
            peer: image.peer,
            own: image.own,
            has_given_windows: true,
            recv: Recv {
                believed: 65_535,
                given: image.recv,
            },
            unacknowledged: (0..image.unacknowledged).map(|_| false).collect(),
            table: 0,
            empties_table: true,
            is_beginning: true,
            ..Self::new()
        };
        this.passing.stop();
        for stream in &image.streams {
            let opened = Stream {
                window: Window::new(stream.window),
                // The peer gets what it has not been given.
                recv: image.own.initial_window(),
                has_request: stream.recv.is_none(),
                swallows_head: stream.goes_on && !stream.lacks_head,
                reopens: stream.goes_on,
                is_rest: !stream.goes_on,
                ..Stream::default()
            };
            this.streams.insert(stream.id, opened);
            if let Some(recv) = stream.recv {
                // What is carried of the body, and what was consumed.
                let more = image.own.initial_window() - recv;
                frame::put_window_update(&mut this.unsent, stream.id, more);
            }
        }
        for id in image.streams() {
            let block = request(id).ok_or(Malformed("a stream without a request"))?;
            let ends = this.streams.get(&id).is_none_or(|s| s.has_request);
            frame::put_block(&mut this.replay, id, ends, &block);
        }
        this.replay.extend_from_slice(&image.held);
        this.ahead = Ahead::behind(image.last_held().max(image.last));
        this.look_ahead(&image.unread);
        this.requeue(image)?;
        this.carried = this.queued;
        this.script(image);
        Ok(this)
    }

    /// What waited for the windows goes on waiting.
    fn requeue(&mut self, image: &Image) -> Result<(), Malformed> {
        let mut all = Bytes::copy_from_slice(&image.queued);
        while let Some(head) = Head::first(&all) {
            let len = unit_len(&all).ok_or(Malformed("a header block is cut off"))?;
            let rest = all.split_to(len).split_off(HEAD);
            let stream = self.streams.get_mut(&head.id);
            let stream = stream.filter(|stream| !stream.has_response);
            let stream = stream.ok_or(Malformed("what waits is of no stream"))?;
            // Whoever goes on says the end itself.
            stream.has_response = stream.is_rest && head.has(END_STREAM);
            if stream.reopens && head.has(END_STREAM) {
                return Err(Malformed("a stream goes on behind its end"));
            }
            self.enqueue(head, rest);
        }
        if self.streams.values().any(|s| s.is_rest && !s.has_response) {
            return Err(Malformed("a stream has no end"));
        }
        Ok(())
    }

    /// The beginning of a connection, for the new server.
    fn script(&mut self, image: &Image) {
        self.feed.extend_from_slice(PREFACE);
        let mut settings = image.peer;
        settings.set(HEADER_TABLE_SIZE, 0);
        settings.set(INITIAL_WINDOW_SIZE, 0);
        frame::put(&mut self.feed, SETTINGS, 0, 0, &settings.payload());
        self.to_acknowledge.push_back(false);
        // Its own settings are acknowledged: the peer has them.
        frame::put(&mut self.feed, SETTINGS, ACK, 0, &[]);
        let has = image.send - self.send.queued;
        self.send.left = image.send;
        // It begins with this much, and less cannot be said.
        self.send.owed = (65_535 - has).max(0);
        frame::put_window_update(&mut self.feed, 0, has - 65_535);
        if let Some(code) = image.goaway {
            let payload = [&[0; 4][..], &code.to_be_bytes()].concat();
            frame::put(&mut self.feed, frame::GOAWAY, 0, 0, &payload);
            self.goaway = Some(code);
        }
    }

    /// Whether a server that takes so much on the connection, and on each stream, takes what the peer may send.
    pub(crate) fn suits(&self, window: i64) -> bool {
        self.recv.given <= window && self.own.initial_window() <= window
    }

    /// What is to be sent to the peer before anything else.
    pub(crate) fn unsent(&mut self) -> &mut BytesMut {
        &mut self.unsent
    }

    /// Streams whose response has not been sent to its end, with the bytes of DATA that the server has sent on each here, and whether it has sent its head.
    pub(crate) fn open(&self) -> impl Iterator<Item = (u32, Sent)> {
        let open = self
            .streams
            .iter()
            .filter(|(_, stream)| !stream.has_response);
        open.map(|(&id, stream)| {
            let sent = Sent {
                bytes: stream.sent,
                has_head: stream.has_head,
                has_request: stream.has_request,
                received: stream.received,
                is_resumed: stream.swallows_head,
            };
            (id, sent)
        })
    }

    #[cfg(test)]
    fn is_open(&self, id: u32) -> bool {
        self.streams.contains_key(&id)
    }

    /// From now on requests are held back, or no longer.
    pub(crate) fn drain(&mut self, drains: bool) {
        self.is_draining = drains;
        if !drains && !self.held.is_empty() {
            let later = std::mem::take(&mut self.replay);
            for frames in std::mem::take(&mut self.held).into_values() {
                self.replay.extend_from_slice(&frames);
            }
            self.held_len = 0;
            self.replay.extend_from_slice(&later);
        }
    }

    /// Lets the server bring out all that it holds, whether or not the peer has room for it, and in header blocks that need no table. It must have no
    /// more to come than that.
    pub(crate) fn flood(&mut self) {
        self.is_flooded = true;
        self.passing.stop();
        self.tell_table();
        let mut more = |id, window: &mut Window| {
            let increment = MAX_WINDOW - window.believed();
            window.owed += increment;
            frame::put_window_update(&mut self.feed, id, increment);
        };
        more(0, &mut self.send);
        for (&id, stream) in &mut self.streams {
            if !stream.has_response && !stream.reopens {
                more(id, &mut stream.window);
            }
        }
    }

    /// Whether the body of a request is still to come whose response is over.
    pub(crate) fn awaits_bodies(&self) -> bool {
        let mut streams = self.streams.values();
        streams.any(|stream| !stream.has_request && stream.has_response)
    }

    /// During a drain, what comes of the body of this stream's request is held back.
    pub(crate) fn hold_body(&mut self, id: u32) {
        if self.is_draining && self.is_known(id) {
            self.held.entry(id).or_default();
        }
    }

    /// Why it has no image now, if it has none.
    pub(crate) fn obstacle(&self) -> Option<Unsettled> {
        if self.is_going_away {
            return Some(Unsettled::GoingAway);
        }
        if self.is_astray || !self.has_preface {
            return Some(Unsettled::Astray);
        }
        let is_open = self.streams.values().any(|stream| stream.reopens);
        let is_settled = !is_open
            && self.queued <= MAX_QUEUED
            && !self.awaits_bodies()
            && !self.is_beginning
            && self.awaited.is_none()
            && self.feed.is_empty()
            && self.replay.is_empty()
            && self.collected.is_empty()
            && self.to_acknowledge.is_empty()
            && !self.passing.is_inside();
        (!is_settled).then_some(Unsettled::Busy)
    }

    /// What it is between hosts; these bytes came and were not [received](Self::receive). What is [unsent](Self::unsent) is not in it.
    ///
    /// # Errors
    ///
    /// There is an [obstacle](Self::obstacle).
    pub(crate) fn into_image(mut self, ahead: &[u8]) -> Result<Image, Unsettled> {
        if let Some(unsettled) = self.obstacle() {
            return Err(unsettled);
        }
        self.arrived.extend_from_slice(ahead);
        let streams = self.streams.iter().map(|(&id, stream)| StreamImage {
            id,
            window: stream.window.left,
            goes_on: !stream.has_response,
            recv: (!stream.has_request).then_some(stream.recv),
            lacks_head: !stream.has_response && !stream.has_head && !stream.swallows_head,
        });
        let mut queued = BytesMut::new();
        for stream in self.streams.values() {
            for frame in &stream.queue {
                frame::put_raw(&mut queued, frame.head, &frame.rest);
            }
        }
        let mut held = BytesMut::with_capacity(self.held_len);
        self.held
            .values()
            .for_each(|frames| held.extend_from_slice(frames));
        let image = Image {
            peer: self.peer,
            own: self.own,
            unacknowledged: u8::try_from(self.unacknowledged.len()).unwrap_or(u8::MAX),
            last: self.last.max(self.boundary),
            send: self.send.left,
            recv: self.recv.given,
            table: self.bridge.image(),
            streams: streams.collect(),
            queued: queued.into(),
            held: held.into(),
            unread: self.arrived.into(),
            goaway: self.goaway,
        };
        // What is too large is not for others either.
        image.check().map_err(|_| Unsettled::Busy)?;
        Ok(image)
    }

    fn close(&mut self, id: u32) {
        self.drop_queued(id);
        self.streams.remove(&id);
    }
}

/// How far the server has come with a response.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sent {
    pub(crate) bytes: u64,
    pub(crate) has_head: bool,
    pub(crate) has_request: bool,
    /// How many bytes of the request's body it has been given.
    pub(crate) received: u64,
    /// The head of its response is not for the peer, which has it.
    pub(crate) is_resumed: bool,
}

/// Why a connection has no image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unsettled {
    /// Something is on its way through it.
    Busy,
    /// It could not be followed.
    Astray,
    /// The server ends it.
    GoingAway,
}

/// The length of the first frame, or of the frames of the header block that it begins; `None` if they are not all there.
fn unit_len(bytes: &[u8]) -> Option<usize> {
    let head = Head::first(bytes)?;
    let mut len = head.whole();
    let mut last = head;
    while head.begins_block() && !last.has(END_HEADERS) {
        last = Head::first(bytes.get(len..)?)?;
        len += last.whole();
    }
    (len <= bytes.len()).then_some(len)
}

/// A frame of DATA or one that ends a stream: what windows are for.
fn is_data(head: Head) -> bool {
    head.kind == DATA
}

/// What an update of a window says.
fn is_window_update(head: Head) -> bool {
    head.kind == WINDOW_UPDATE && head.len == 4
}
