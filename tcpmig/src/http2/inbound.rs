//! What the peer sends.

use bytes::{Buf, BytesMut};

use super::frame::{
    self, ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, GOAWAY, HEAD,
    HEADERS, Head, MAX_PAYLOAD, PREFACE, PRIORITY, PUSH_PROMISE, RST_STREAM, SETTINGS,
    STREAM_CLOSED, WINDOW_UPDATE,
};
use super::hpack::MAX_BLOCK;
use super::settings::{HEADER_TABLE_SIZE, INITIAL_WINDOW_SIZE, Settings};
use super::{Connection, MAX_CONTINUATIONS, MAX_HELD, MAX_RESETS, MAX_UNSENT, Stream, Window};

/// How much the server is given at a time.
const FEED: usize = 1 << 15;
/// How much is looked through before the server is given any of it.
const AHEAD: usize = 1 << 15;
/// A block that no decoder takes, whatever is in its table.
const BAD_BLOCK: &[u8] = &[0x80];

/// A frame, or the frames of a header block.
struct Unit {
    head: Head,
    /// All of it.
    bytes: BytesMut,
}

impl Unit {
    fn payload(&self) -> &[u8] {
        &self.bytes[HEAD..self.head.whole()]
    }

    /// The header block of its frames, and whether the stream ends; `None` if it is malformed.
    fn block(&self) -> Option<(Vec<u8>, bool)> {
        let first = frame::fragment(self.head, self.payload())?;
        let mut block = first.to_vec();
        let mut rest = &self.bytes[self.head.whole()..];
        while let Some(head) = Head::first(rest) {
            block.extend_from_slice(&rest[HEAD..head.whole()]);
            rest = &rest[head.whole()..];
        }
        Some((block, self.head.has(END_STREAM)))
    }
}

impl Connection {
    /// The peer has sent this.
    pub(crate) fn receive(&mut self, bytes: &[u8]) {
        self.look_ahead(bytes);
        self.arrived.extend_from_slice(bytes);
    }

    /// What is reset before the server was given it is not given to it.
    pub(super) fn look_ahead(&mut self, bytes: &[u8]) {
        if self.is_astray || self.is_ended {
            return;
        }
        self.ahead
            .look(bytes, self.last.max(self.boundary).max(self.skipped));
        if self.ahead.count() > MAX_RESETS {
            self.end(ENHANCE_YOUR_CALM, b"too_many_resets");
        }
    }

    /// Whether more should be received: the server has read what came before, and nothing waits that cannot be passed on.
    pub(crate) fn wants_more(&self) -> bool {
        self.feed.is_empty() && self.arrived.len() < 2 * MAX_BLOCK && self.can_go_on()
    }

    /// Whether more should be received if there is more, before anything is read: servers look at all that has come
    /// before they begin with a request.
    pub(crate) fn looks_ahead(&self) -> bool {
        self.arrived.len() < AHEAD && self.can_go_on()
    }

    fn can_go_on(&self) -> bool {
        self.awaited.is_none() && self.unsent.len() < MAX_UNSENT && !self.is_ended
    }

    /// Whether the peer was told, or is when it is [sent](Self::unsent), that the connection ends.
    pub(crate) fn is_ended(&self) -> bool {
        self.is_ended
    }

    /// Ends the connection with this code.
    fn end(&mut self, code: u32, why: &[u8]) {
        self.go_astray();
        self.is_ended = true;
        let last = self.last.max(self.boundary);
        frame::put_goaway(&mut self.unsent, last, code, why);
        for bytes in [&mut self.arrived, &mut self.replay, &mut self.feed] {
            bytes.clear();
        }
        self.held.clear();
        self.held_len = 0;
    }

    /// What the server is to read next.
    pub(crate) fn read(&mut self) -> &mut BytesMut {
        if self.feed.is_empty() {
            self.advance();
        }
        &mut self.feed
    }

    /// The stream whose request the service has been given.
    pub(crate) fn take_request(&mut self) -> Option<u32> {
        self.awaited.take()
    }

    /// Brings frames from what arrived to the server.
    fn advance(&mut self) {
        while self.awaited.is_none() && self.feed.len() < FEED && self.step() {}
        if self.arrived.is_empty() && self.arrived.capacity() > MAX_PAYLOAD {
            // What a large request left behind is not kept for the connection's life.
            self.arrived = BytesMut::new();
        }
    }

    fn step(&mut self) -> bool {
        if self.is_ended {
            self.arrived.clear();
            return false;
        }
        if self.unsent.len() >= MAX_UNSENT {
            // What the peer does not read it is not answered.
            return false;
        }
        if self.is_beginning {
            // The server is to read the script first, and say what it makes of it.
            return false;
        }
        if self.is_astray {
            self.feed.unsplit(self.arrived.split());
            return false;
        }
        if !self.has_preface {
            return self.preface();
        }
        if !self.replay.is_empty() {
            // INVARIANT: whole frames.
            let Some(unit) = take_unit(&mut self.replay).ok().flatten() else {
                self.replay.clear();
                return false;
            };
            self.process(unit, true);
            return true;
        }
        if self.held_len > MAX_HELD / 2 {
            return false;
        }
        match take_unit(&mut self.arrived) {
            Ok(Some(unit)) => self.process(unit, false),
            Ok(None) => return false,
            Err(Wrong::Frames) => self.go_astray(),
            Err(Wrong::Flood) => self.end(ENHANCE_YOUR_CALM, b"too_many_continuations"),
        }
        true
    }

    fn preface(&mut self) -> bool {
        let count = self.arrived.len().min(PREFACE.len());
        if self.arrived[..count] != PREFACE[..count] {
            self.go_astray();
            return true;
        }
        if count < PREFACE.len() {
            return false;
        }
        self.feed.extend_from_slice(PREFACE);
        self.arrived.advance(PREFACE.len());
        self.has_preface = true;
        true
    }

    /// The server says what is wrong with it.
    fn go_astray(&mut self) {
        self.is_astray = true;
        self.awaited = None;
    }

    /// `is_replayed`: its header block says the same to any decoder.
    fn process(&mut self, unit: Unit, is_replayed: bool) {
        let head = unit.head;
        match head.kind {
            HEADERS => self.headers(unit, is_replayed),
            // A block without a beginning, one that clients do not send.
            CONTINUATION | PUSH_PROMISE => {
                self.feed.unsplit(unit.bytes);
                self.go_astray();
            }
            SETTINGS => self.settings(unit),
            GOAWAY => {
                let mut payload = &unit.payload()[4..];
                self.goaway = Some(payload.get_u32());
                self.feed.unsplit(unit.bytes);
            }
            WINDOW_UPDATE if head.id == 0 => self.connection_window(unit),
            _ if head.id == 0 => self.feed.unsplit(unit.bytes),
            _ => self.of_stream(unit),
        }
    }

    /// Whether a stream is of those that the server has not been given.
    fn is_new(&self, id: u32) -> bool {
        id > self.last.max(self.boundary)
    }

    /// Whether the peer has reset a stream that the server has not been given.
    fn is_skipped(&self, id: u32) -> bool {
        self.is_new(id) && id <= self.skipped && !self.held.contains_key(&id)
    }

    fn headers(&mut self, unit: Unit, is_replayed: bool) {
        let id = unit.head.id;
        let Some((block, ends)) = unit.block() else {
            self.feed.unsplit(unit.bytes);
            return self.go_astray();
        };
        let reopens = is_replayed && self.streams.get(&id).is_some_and(|stream| stream.reopens);
        let is_new = self.is_new(id);
        let is_reset = self.ahead.is_reset(id);
        if is_new && !is_replayed && !is_reset && self.is_skipped(id) {
            return self.end(STREAM_CLOSED, b"");
        }
        let is_held = self.held.contains_key(&id);
        if is_held || is_reset || is_new && self.is_draining {
            // The server is not told: it could not hand it back, or nobody wants it.
            let held = match is_replayed {
                true => Ok(block),
                false => self.bridge.hold(&block),
            };
            let Ok(block) = held else {
                return self.bad_block(id);
            };
            if is_reset {
                self.skipped = self.skipped.max(id);
                return;
            }
            let frames = self.held.entry(id).or_default();
            let before = frames.len();
            frame::put_block(frames, id, ends, &block);
            self.held_len += frames.len() - before;
            return;
        }
        let told = match is_replayed {
            true => Ok(None),
            false => self.bridge.pass(&block),
        };
        let Ok(told) = told else {
            return self.bad_block(id);
        };
        if !is_new && !reopens && !self.is_known(id) && id <= self.boundary {
            // Trailers of a stream that was reset before the move.
            return;
        }
        match told {
            None => self.feed.unsplit(unit.bytes),
            Some(block) => frame::put_block(&mut self.feed, id, ends, &block),
        }
        if is_new || reopens {
            self.open_stream(id, ends);
        } else if let Some(stream) = self.streams.get_mut(&id) {
            stream.has_request |= ends;
            self.settle(id);
        }
    }

    fn open_stream(&mut self, id: u32, ends: bool) {
        // Behind its GOAWAY the server says nothing of requests that it does not serve.
        self.awaited = (!self.is_going_away).then_some(id);
        self.last = self.last.max(id);
        let initial = self.peer.initial_window();
        let recv = self.own.initial_window();
        let stream = self.streams.entry(id).or_insert_with(|| Stream {
            window: Window::new(initial),
            recv,
            ..Stream::default()
        });
        stream.has_request = ends;
        stream.reopens = false;
        if self.has_given_windows {
            // The server believes in 0.
            let window = &mut stream.window;
            let has = window.left - window.queued;
            window.owed = (-has).max(0);
            frame::put_window_update(&mut self.feed, id, has);
        }
    }

    /// The server knows the stream.
    pub(super) fn is_known(&self, id: u32) -> bool {
        self.streams.get(&id).is_some_and(|stream| !stream.is_rest)
    }

    /// What the block said is lost, and with it the decoder's table: the server is to end the connection.
    fn bad_block(&mut self, id: u32) {
        frame::put_block(&mut self.feed, id, true, BAD_BLOCK);
        self.go_astray();
    }

    fn settings(&mut self, unit: Unit) {
        let head = unit.head;
        if head.has(ACK) {
            if self.unacknowledged.pop_front() != Some(false) {
                self.feed.unsplit(unit.bytes);
            }
            return;
        }
        let Some(settings) = Settings::read(unit.payload()) else {
            self.feed.unsplit(unit.bytes);
            return self.go_astray();
        };
        self.to_acknowledge.push_back(true);
        let before = self.peer.initial_window();
        self.peer.update(&settings);
        let grown = self.peer.initial_window() - before;
        let mut told = settings;
        if self.has_given_windows && settings.get(INITIAL_WINDOW_SIZE).is_some() {
            told.set(INITIAL_WINDOW_SIZE, 0);
        }
        if settings.get(HEADER_TABLE_SIZE).is_some() {
            self.table = self.wanted_table();
            told.set(HEADER_TABLE_SIZE, self.table);
        }
        match told == settings {
            true => self.feed.unsplit(unit.bytes),
            false => frame::put(&mut self.feed, SETTINGS, 0, 0, &told.payload()),
        }
        self.resize_windows(grown);
    }

    /// The peer has given every stream so much more, of which the server does not know.
    fn resize_windows(&mut self, grown: i64) {
        if grown == 0 {
            return;
        }
        for (&id, stream) in &mut self.streams {
            if stream.reopens || stream.is_rest || !self.has_given_windows {
                // The server is told with the stream, is not told, or has seen it.
                stream.window.left += grown;
            } else if grown >= 0 {
                let told = stream.window.grow(grown);
                frame::put_window_update(&mut self.feed, id, told);
            } else {
                // It cannot be told that it has less.
                stream.window.left += grown;
                stream.window.owed -= grown;
                self.passing.stop();
            }
        }
        self.tell_table();
        self.release();
    }

    fn connection_window(&mut self, unit: Unit) {
        let Some(increment) = frame::increment(unit.payload()) else {
            return self.feed.unsplit(unit.bytes);
        };
        let told = self.send.grow(increment);
        if told == increment {
            // One of 0 is an error, which the server is to see.
            self.feed.unsplit(unit.bytes);
        } else {
            frame::put_window_update(&mut self.feed, 0, told);
        }
        self.release();
        self.tell_table();
    }

    fn of_stream(&mut self, unit: Unit) {
        let head = unit.head;
        let is_ahead = self.is_new(head.id) || self.ahead.is_reset(head.id);
        let is_done = match is_ahead {
            true => self.of_stream_ahead(&unit),
            false => self.of_held_body(&unit),
        };
        if is_done {
            return;
        }
        if head.id <= self.boundary && !self.is_known(head.id) {
            return self.of_stream_elsewhere(&unit);
        }
        match head.kind {
            DATA => {
                let len = head.len as i64;
                self.recv.believed -= len;
                self.recv.given -= len;
                if let Some(stream) = self.streams.get_mut(&head.id) {
                    stream.recv -= len;
                    stream.received += frame::unpadded(head, unit.payload()) as u64;
                    stream.has_request |= head.has(END_STREAM);
                    self.settle(head.id);
                }
            }
            RST_STREAM => self.close(head.id),
            WINDOW_UPDATE => return self.stream_window(unit),
            _ => {}
        }
        self.feed.unsplit(unit.bytes);
    }

    /// Whether a frame is of a stream that the server has not been given, and is done with.
    fn of_stream_ahead(&mut self, unit: &Unit) -> bool {
        let head = unit.head;
        let is_skipped = self.is_skipped(head.id);
        let is_reset = head.kind == RST_STREAM;
        match self.held.get_mut(&head.id) {
            Some(frames) if !is_reset => {
                self.held_len += unit.bytes.len();
                frames.extend_from_slice(&unit.bytes);
                return true;
            }
            Some(_) => {
                let frames = self.held.remove(&head.id).unwrap_or_default();
                self.held_len -= frames.len();
                self.give_back(data_len(&frames));
                self.skipped = self.skipped.max(head.id);
            }
            None if self.ahead.is_reset(head.id) => {
                if head.kind == DATA {
                    self.give_back(head.len as i64);
                }
            }
            None if !is_skipped => return false,
            None if head.kind == PRIORITY => {}
            None => self.end(STREAM_CLOSED, b""),
        }
        if is_reset {
            self.ahead.forget(head.id);
        }
        true
    }

    /// Whether a frame is of the body of a stream that the server has and that stands still, and is done with.
    fn of_held_body(&mut self, unit: &Unit) -> bool {
        let id = unit.head.id;
        if unit.head.kind == RST_STREAM
            && let Some(frames) = self.held.remove(&id)
        {
            self.held_len -= frames.len();
            self.give_back(data_len(&frames));
            return false;
        }
        match self.held.get_mut(&id) {
            Some(frames) if unit.head.kind == DATA => {
                self.held_len += unit.bytes.len();
                frames.extend_from_slice(&unit.bytes);
                true
            }
            _ => false,
        }
    }

    /// The peer gets back what it has spent on DATA for nobody.
    fn give_back(&mut self, len: i64) {
        frame::put_window_update(&mut self.unsent, 0, len);
    }

    fn stream_window(&mut self, unit: Unit) {
        let id = unit.head.id;
        let increment = frame::increment(unit.payload());
        let stream = self.streams.get_mut(&id);
        let (Some(increment), Some(stream)) = (increment, stream) else {
            return self.feed.unsplit(unit.bytes);
        };
        let told = stream.window.grow(increment);
        if told == increment {
            self.feed.unsplit(unit.bytes);
        } else {
            frame::put_window_update(&mut self.feed, id, told);
        }
        self.release_stream(id);
        self.tell_table();
    }

    /// A frame of a stream that the server knows nothing of.
    fn of_stream_elsewhere(&mut self, unit: &Unit) {
        let head = unit.head;
        match head.kind {
            DATA => self.give_back(head.len as i64),
            RST_STREAM => self.close(head.id),
            WINDOW_UPDATE => {
                let increment = frame::increment(unit.payload()).unwrap_or(0);
                if let Some(stream) = self.streams.get_mut(&head.id) {
                    stream.window.left += increment;
                }
                self.release_stream(head.id);
                self.tell_table();
            }
            PRIORITY => {}
            _ => {}
        }
    }
}

/// How many bytes of DATA there are in these frames.
fn data_len(mut frames: &[u8]) -> i64 {
    let mut len = 0;
    while let Some(head) = Head::first(frames) {
        if head.kind == DATA {
            len += head.len as i64;
        }
        frames = frames.get(head.whole()..).unwrap_or_default();
    }
    len
}

/// What is wrong with what comes next.
enum Wrong {
    /// A frame is malformed or larger than the server would take, or there is another one in the middle of a block.
    Frames,
    /// A block has more frames than the server would take.
    Flood,
}

/// The next frame or header block, if it is whole.
fn take_unit(from: &mut BytesMut) -> Result<Option<Unit>, Wrong> {
    let Some(head) = Head::first(from) else {
        return Ok(None);
    };
    if head.is_malformed() {
        return Err(Wrong::Frames);
    }
    let mut len = head.whole();
    let mut last = head;
    let mut count = 0;
    loop {
        if last.len > MAX_PAYLOAD || len > MAX_BLOCK {
            return Err(Wrong::Frames);
        }
        if !head.begins_block() || last.has(END_HEADERS) {
            break;
        }
        if count > MAX_CONTINUATIONS {
            return Err(Wrong::Flood);
        }
        count += 1;
        let Some(next) = from.get(len..).and_then(Head::first) else {
            return Ok(None);
        };
        if next.kind != CONTINUATION || next.id != head.id {
            return Err(Wrong::Frames);
        }
        len += next.whole();
        last = next;
    }
    if from.len() < len {
        return Ok(None);
    }
    Ok(Some(Unit {
        head,
        bytes: from.split_to(len),
    }))
}
