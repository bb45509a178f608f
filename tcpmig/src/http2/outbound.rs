//! What the server says.

use bytes::{Buf, Bytes, BytesMut};

use super::frame::{
    self, ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEAD, HEADERS, Head,
    MAX_PAYLOAD, RST_STREAM, SETTINGS, WINDOW_UPDATE,
};
use super::settings::{HEADER_TABLE_SIZE, Settings};
use super::{Connection, Queued, hpack, is_data, is_window_update, unit_len};

/// How much may wait for the peer's windows before the server has to wait.
const QUEUE: usize = 1 << 20;
/// The longest payload that has to be looked at: SETTINGS with all that is known, and more.
const LOOKED_AT: usize = 128;

/// Follows frames that pass as they are.
#[derive(Default)]
pub(super) struct Passing {
    /// From the next frame on they do not.
    is_stopped: bool,
    /// Of a head that is not whole.
    begun: Vec<u8>,
    head: Option<Head>,
    /// What of the payload has not passed.
    left: usize,
    /// The payload, if it is looked at.
    payload: Vec<u8>,
    /// In the middle of a header block.
    in_block: bool,
}

/// What becomes of a header block.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Sent,
    Queued,
    Swallowed,
}

impl Passing {
    pub(super) fn stop(&mut self) {
        self.is_stopped = true;
    }

    /// In the middle of a frame, or of a header block.
    pub(super) fn is_inside(&self) -> bool {
        self.head.is_some() || !self.begun.is_empty() || self.in_block
    }

    /// How much of this frame, or of the next one that belongs to it, is certainly to come.
    fn rest(&self) -> usize {
        match self.head {
            Some(_) => self.left,
            None if !self.is_inside() => 0,
            None => HEAD - self.begun.len(),
        }
    }
}

impl Connection {
    /// How many of so many bytes, which the server says next, go to the peer as they are. Those that do have to be
    /// [followed](Self::sent).
    pub(crate) fn passes(&self, len: usize) -> usize {
        if self.passing.is_stopped || !self.unsent.is_empty() {
            len.min(self.passing.rest())
        } else {
            len
        }
    }

    /// Whether what is [unsent](Self::unsent) can be sent: it must not come in the middle of a frame.
    pub(crate) fn is_between_frames(&self) -> bool {
        !self.passing.is_inside()
    }

    /// So much waits for the peer's windows that the server has to wait too.
    pub(crate) fn is_full(&self) -> bool {
        self.queued > QUEUE + self.carried && !self.is_draining
    }

    /// These bytes of the server's were sent as they are.
    pub(crate) fn sent(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let Some(head) = self.passing.head else {
                let begun = &mut self.passing.begun;
                let some = (HEAD - begun.len()).min(bytes.len());
                begun.extend_from_slice(&bytes[..some]);
                bytes.advance(some);
                let Some(head) = Head::first(begun) else {
                    return;
                };
                begun.clear();
                self.passing.left = head.len;
                self.passing.head = Some(head);
                self.passed_head(head);
                self.end_passed();
                continue;
            };
            let some = self.passing.left.min(bytes.len());
            if head.len <= LOOKED_AT && !is_data(head) {
                self.passing.payload.extend_from_slice(&bytes[..some]);
            }
            bytes.advance(some);
            self.passing.left -= some;
            self.end_passed();
        }
    }

    fn end_passed(&mut self) {
        if self.passing.left > 0 {
            return;
        }
        let Some(head) = self.passing.head.take() else {
            return;
        };
        let payload = std::mem::take(&mut self.passing.payload);
        match head.kind {
            SETTINGS => drop(self.said_settings(head, &payload)),
            WINDOW_UPDATE if head.id == 0 && is_window_update(head) => {
                let increment = frame::increment(&payload).unwrap_or(0);
                self.recv.believed += increment;
                self.recv.given += increment;
            }
            WINDOW_UPDATE if is_window_update(head) => self.gave_room(head.id, &payload),
            _ => {}
        }
        self.passing.payload = payload;
        self.passing.payload.clear();
    }

    /// The server has let the peer send more of a request's body.
    fn gave_room(&mut self, id: u32, payload: &[u8]) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.recv += frame::increment(payload).unwrap_or(0);
        }
    }

    /// The server has answered a request itself, or ends the connection.
    fn note_refusal(&mut self, head: Head) {
        let is_answer = matches!(head.kind, HEADERS | RST_STREAM) && self.awaited == Some(head.id);
        if is_answer || head.kind == GOAWAY {
            self.awaited = None;
        }
    }

    fn passed_head(&mut self, head: Head) {
        self.note_refusal(head);
        if matches!(head.kind, HEADERS | CONTINUATION) {
            self.passing.in_block = !head.has(END_HEADERS);
        }
        let ends = head.has(END_STREAM);
        match head.kind {
            DATA => {
                self.send.left -= head.len as i64;
                if let Some(stream) = self.streams.get_mut(&head.id) {
                    stream.window.left -= head.len as i64;
                    stream.sent += head.len as u64;
                    stream.has_response |= ends;
                }
            }
            HEADERS => {
                if let Some(stream) = self.streams.get_mut(&head.id) {
                    stream.has_head = true;
                    stream.has_response |= ends;
                }
            }
            RST_STREAM => return self.close(head.id),
            GOAWAY => self.is_going_away = true,
            _ => return,
        }
        if ends {
            self.settle(head.id);
        }
    }

    /// A stream that has nothing to come from either end is over.
    pub(super) fn settle(&mut self, id: u32) {
        let is_over = self.streams.get(&id).is_some_and(|stream| {
            stream.has_request && stream.has_response && stream.queue.is_empty()
        });
        if is_over {
            self.close(id);
        }
    }

    /// Whether the peer is to see it.
    fn said_settings(&mut self, head: Head, payload: &[u8]) -> bool {
        if head.has(ACK) {
            return self.to_acknowledge.pop_front().unwrap_or(true);
        }
        if let Some(settings) = Settings::read(payload) {
            self.own.update(&settings);
        }
        self.unacknowledged.push_back(true);
        true
    }

    /// The server says this, of which nothing passes as it is.
    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.collected.extend_from_slice(bytes);
        // A header block is one whole: nothing may come between its frames.
        while let Some(head) = Head::first(&self.collected)
            && let Some(len) = unit_len(&self.collected)
        {
            let rest = self.collected.split_to(len).split_off(HEAD);
            self.say(head, rest.freeze());
        }
        self.tell_table();
        if self.is_in_step() {
            self.passing.is_stopped = false;
            self.collected = BytesMut::new();
        }
    }

    /// The server is where the peer is: what both say can pass.
    fn is_in_step(&self) -> bool {
        self.passing.is_stopped
            && !self.is_flooded
            && !self.is_beginning
            && !self.empties_table
            && self.last >= self.boundary
            && self.table == self.peer.header_table()
            && self.collected.is_empty()
            && self.recv.believed == self.recv.given
            && self.to_acknowledge.iter().all(|&is_peers| is_peers)
            && !self.owes()
    }

    /// The windows that the server believes in are not those of the peer, or the peer knows more than it.
    fn owes(&self) -> bool {
        let mut streams = self.streams.values();
        self.send.owed > 0
            || !self.waiting.is_empty()
            || streams.any(|stream| stream.window.owed > 0 || stream.swallows_head)
    }

    /// The size of the table that the server's encoder may use: as long as blocks can be swallowed, or sent in another order, none.
    pub(super) fn wanted_table(&self) -> u32 {
        let is_apart = self.passing.is_stopped && (self.is_flooded || self.owes());
        if is_apart {
            0
        } else {
            self.peer.header_table()
        }
    }

    pub(super) fn tell_table(&mut self) {
        if !self.passing.is_stopped {
            return;
        }
        let wanted = self.wanted_table();
        if wanted != self.table {
            self.table = wanted;
            let mut settings = Settings::default();
            settings.set(HEADER_TABLE_SIZE, wanted);
            frame::put(&mut self.feed, SETTINGS, 0, 0, &settings.payload());
            self.to_acknowledge.push_back(false);
        }
    }

    fn say(&mut self, head: Head, payload: Bytes) {
        self.note_refusal(head);
        match head.kind {
            DATA => self.say_data(head, payload),
            HEADERS => self.say_headers(head, payload),
            SETTINGS if self.is_beginning && !head.has(ACK) => {
                self.say_first_settings(head, &payload);
            }
            SETTINGS => {
                if self.said_settings(head, &payload) {
                    self.send_frame(head, &payload);
                }
                self.begin_if_known();
            }
            WINDOW_UPDATE if head.id == 0 && is_window_update(head) => {
                self.recv.believed += frame::increment(&payload).unwrap_or(0);
                let more = self.recv.believed - self.recv.given;
                if more > 0 {
                    self.recv.given += more;
                    frame::put_window_update(&mut self.unsent, 0, more);
                }
                self.begin_if_known();
            }
            WINDOW_UPDATE if is_window_update(head) => {
                self.gave_room(head.id, &payload);
                self.send_frame(head, &payload);
            }
            RST_STREAM => {
                self.close(head.id);
                self.send_frame(head, &payload);
            }
            GOAWAY => self.say_goaway(head, &payload),
            _ => self.send_frame(head, &payload),
        }
    }

    fn send_frame(&mut self, head: Head, payload: &[u8]) {
        frame::put(&mut self.unsent, head.kind, head.flags, head.id, payload);
    }

    fn send_raw(&mut self, head: Head, rest: &[u8]) {
        frame::put_raw(&mut self.unsent, head, rest);
    }

    /// What a new server begins with. The peer learns of it if it is something new.
    fn say_first_settings(&mut self, head: Head, payload: &[u8]) {
        let said = Settings::read(payload);
        if said.is_some_and(|said| said != self.own) {
            self.send_frame(head, payload);
            self.own = said.unwrap_or(self.own);
            // The script has acknowledged it.
            self.unacknowledged.push_back(false);
        }
    }

    /// The new server has read the script, and has given as much room as the peer was given before.
    fn begin_if_known(&mut self) {
        let has_read = self.to_acknowledge.is_empty();
        if self.is_beginning && has_read && self.recv.believed >= self.recv.given {
            self.is_beginning = false;
        }
    }

    /// Streams that the server knows nothing of were not refused.
    fn say_goaway(&mut self, head: Head, payload: &[u8]) {
        self.is_going_away = true;
        let Some((last, rest)) = payload.split_first_chunk::<4>() else {
            return self.send_frame(head, payload);
        };
        let last = (u32::from_be_bytes(*last) & 0x7fff_ffff).max(self.boundary);
        let payload = [&last.to_be_bytes()[..], rest].concat();
        self.send_frame(head, &payload);
    }

    /// `rest` has the frames of the block behind the first, too.
    fn say_headers(&mut self, head: Head, rest: Bytes) {
        let id = head.id;
        let ends = head.has(END_STREAM);
        let fate = match self.streams.get_mut(&id) {
            Some(stream) if stream.swallows_head => {
                stream.swallows_head = false;
                stream.has_head = true;
                Fate::Swallowed
            }
            Some(stream) => {
                stream.has_head = true;
                stream.has_response |= ends;
                match stream.queue.is_empty() {
                    true => Fate::Sent,
                    false => Fate::Queued,
                }
            }
            None => Fate::Sent,
        };
        match fate {
            Fate::Queued => self.enqueue(head, rest),
            Fate::Sent => {
                self.send_headers(head, &rest);
                if ends {
                    self.settle(id);
                }
            }
            Fate::Swallowed if ends => {
                // The peer has the head, and lacks the end.
                let end = Head {
                    len: 0,
                    kind: DATA,
                    flags: END_STREAM,
                    id,
                };
                self.say_data(end, Bytes::new());
            }
            Fate::Swallowed => {}
        }
    }

    /// Sends a header block, and empties the peer's table before it if that has not been done.
    fn send_headers(&mut self, head: Head, rest: &[u8]) {
        let empties = std::mem::take(&mut self.empties_table);
        if !empties || head.len > 0 && rest.first() == Some(&hpack::EMPTIES) {
            return self.send_raw(head, rest);
        }
        if head.len < MAX_PAYLOAD {
            let head = Head {
                len: head.len + 1,
                ..head
            };
            return self.send_raw(head, &[&[hpack::EMPTIES], rest].concat());
        }
        let first = Head {
            flags: head.flags & !END_HEADERS,
            ..head
        };
        self.send_frame(first, &[hpack::EMPTIES]);
        let next = Head {
            kind: CONTINUATION,
            flags: head.flags & END_HEADERS,
            ..head
        };
        self.send_raw(next, rest);
    }

    fn say_data(&mut self, head: Head, payload: Bytes) {
        let len = head.len as i64;
        let Some(stream) = self.streams.get_mut(&head.id) else {
            // Of a stream that was reset meanwhile: the server is yet to learn of it.
            return;
        };
        stream.sent += head.len as u64;
        stream.has_response |= head.has(END_STREAM);
        let has_room = len == 0 || len <= stream.window.left.min(self.send.left);
        if !stream.queue.is_empty() || !has_room {
            return self.enqueue(head, payload);
        }
        stream.window.left -= len;
        self.send.left -= len;
        self.send_frame(head, &payload);
        if head.has(END_STREAM) {
            self.settle(head.id);
        }
    }

    /// Lets a frame, or a header block, wait.
    pub(super) fn enqueue(&mut self, head: Head, rest: Bytes) {
        let len = if is_data(head) { head.len as i64 } else { 0 };
        if let Some(stream) = self.streams.get_mut(&head.id) {
            stream.window.queued += len;
            self.send.queued += len;
            self.queued += HEAD + rest.len();
            stream.queue.push_back(Queued { head, rest });
            self.waiting.insert(head.id);
        }
    }

    /// What waits of a stream is for nobody.
    pub(super) fn drop_queued(&mut self, id: u32) {
        if !self.waiting.remove(&id) {
            return;
        }
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        let queue = std::mem::take(&mut stream.queue);
        let gone: usize = queue.iter().map(|frame| HEAD + frame.rest.len()).sum();
        let dropped = std::mem::take(&mut stream.window.queued);
        self.queued -= gone;
        // What was not sent was not spent.
        self.send.queued -= dropped;
        let paid = self.send.owed.min(dropped);
        self.send.owed -= paid;
        frame::put_window_update(&mut self.feed, 0, dropped - paid);
    }

    /// Sends what the peer has got room for: a frame of each stream in turn.
    pub(super) fn release(&mut self) {
        let mut blocked = 0;
        while self.send.left > 0 && blocked < self.waiting.len() {
            let next = self.waiting.range(self.turn..).next();
            let Some(&id) = next.or_else(|| self.waiting.first()) else {
                return;
            };
            self.turn = id + 1;
            blocked = if self.release_frame(id) {
                0
            } else {
                blocked + 1
            };
        }
    }

    /// The same of one stream.
    pub(super) fn release_stream(&mut self, id: u32) {
        while self.release_frame(id) {}
    }

    /// Sends the first frame that waits of a stream, or as much of it as there is room for, and says whether there was any.
    fn release_frame(&mut self, id: u32) -> bool {
        if !self.release_front(id) {
            return false;
        }
        // What needs no room does not wait for it.
        while self.front(id).is_some_and(needs_no_room) && self.release_front(id) {}
        true
    }

    fn front(&self, id: u32) -> Option<Head> {
        let stream = self.streams.get(&id)?;
        stream.queue.front().map(|frame| frame.head)
    }

    fn release_front(&mut self, id: u32) -> bool {
        let Some(stream) = self.streams.get_mut(&id) else {
            return false;
        };
        let Some(frame) = stream.queue.front_mut() else {
            return false;
        };
        let head = frame.head;
        if needs_no_room(head) {
            let rest = std::mem::take(&mut frame.rest);
            stream.queue.pop_front();
            self.queued -= HEAD + rest.len();
            match head.kind {
                HEADERS => self.send_headers(head, &rest),
                _ => self.send_raw(head, &rest),
            }
        } else {
            let room = stream.window.left.min(self.send.left).max(0);
            // INVARIANT: not more than the payload.
            let some = room.min(head.len as i64) as usize;
            if some == 0 {
                return false;
            }
            let piece = frame.rest.split_to(some);
            frame.head.len -= some;
            let is_whole = frame.head.len == 0;
            if is_whole {
                stream.queue.pop_front();
                self.queued -= HEAD;
            }
            self.queued -= some;
            stream.window.left -= some as i64;
            stream.window.queued -= some as i64;
            self.send.left -= some as i64;
            self.send.queued -= some as i64;
            let flags = match is_whole {
                true => head.flags,
                false => head.flags & !END_STREAM,
            };
            self.send_frame(Head { flags, ..head }, &piece);
        }
        if self.front(id).is_none() {
            self.waiting.remove(&id);
            self.settle(id);
        }
        true
    }
}

/// A frame that the peer takes whatever its windows are.
fn needs_no_room(head: Head) -> bool {
    !is_data(head) || head.len == 0
}
