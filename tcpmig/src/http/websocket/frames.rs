//! Where the frames of a WebSocket end.

/// RFC 6455, section 11.8.
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xa;
/// The longest header: two bytes, a length of eight, a mask.
const MAX_HEADER: usize = 14;

/// Follows the frames of one direction, whose bytes may be cut anywhere.
///
/// What is not a frame of the protocol is followed by its length like any other: the library above
/// says what is wrong with it.
#[derive(Debug, Clone, Default)]
struct Frames {
    header: [u8; MAX_HEADER],
    /// Bytes of the header that have come; 0 between frames.
    come: usize,
    /// Bytes of the payload that have not; known when the header is whole.
    left: u64,
}

/// The last frame of which all bytes have come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Whole {
    opcode: u8,
    is_final: bool,
}

impl Whole {
    fn is_control(self) -> bool {
        self.opcode >= CLOSE
    }
}

impl Frames {
    fn is_between(&self) -> bool {
        self.come == 0
    }

    /// As far as it is known.
    fn header_len(&self) -> usize {
        if self.come < 2 {
            return 2;
        }
        let length = match self.header[1] & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let mask = if self.header[1] & 0x80 == 0 { 0 } else { 4 };
        2 + length + mask
    }

    fn payload_len(&self) -> u64 {
        let big_endian = |bytes: &[u8]| bytes.iter().fold(0, |all, &o| all << 8 | u64::from(o));
        match self.header[1] & 0x7f {
            126 => big_endian(&self.header[2..4]),
            127 => big_endian(&self.header[2..10]),
            short => short.into(),
        }
    }

    /// Goes on behind the next bytes, but not beyond the end of a frame: how many that
    /// are, and the frame if it ends there.
    fn follow(&mut self, bytes: &[u8]) -> (usize, Option<Whole>) {
        let mut followed = 0;
        while self.come < self.header_len() {
            let Some(&byte) = bytes.get(followed) else {
                return (followed, None);
            };
            self.header[self.come] = byte;
            self.come += 1;
            followed += 1;
            if self.come == self.header_len() {
                self.left = self.payload_len();
            }
        }
        let payload = (bytes.len() - followed) as u64;
        let payload = payload.min(self.left);
        self.left -= payload;
        // No more than there are bytes.
        followed += payload as usize;
        if self.left > 0 {
            return (followed, None);
        }
        self.come = 0;
        let whole = Whole {
            opcode: self.header[0] & 0xf,
            is_final: self.header[0] & 0x80 != 0,
        };
        (followed, Some(whole))
    }
}

/// What the peer sends, as far as the library above has read it.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    frames: Frames,
    /// What that library has read since the last whole message, without whole control frames.
    since_message: Vec<u8>,
    /// Where the last frame begins in it.
    frame_begins: usize,
    /// The last PING, whole.
    ping: Vec<u8>,
    closed: bool,
    /// The library has read a whole message.
    any: bool,
}

impl Incoming {
    /// The library reads some of these bytes: not beyond the end of a frame. How many.
    pub(super) fn read(&mut self, bytes: &[u8]) -> usize {
        let (count, whole) = self.frames.follow(bytes);
        self.since_message.extend_from_slice(&bytes[..count]);
        match whole {
            Some(control) if control.is_control() => {
                let bytes = self.since_message.split_off(self.frame_begins);
                match control.opcode {
                    CLOSE => self.closed = true,
                    PING => self.ping = bytes,
                    _ => {}
                }
            }
            Some(data) if data.is_final => {
                self.any = true;
                self.since_message.clear();
                self.frame_begins = 0;
            }
            Some(_) => self.frame_begins = self.since_message.len(),
            None => {}
        }
        count
    }

    /// The library has answered what it was asked.
    pub(super) fn answered(&mut self) {
        self.ping.clear();
    }

    /// It has read a CLOSE.
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// It has read a message.
    pub(super) fn has_message(&self) -> bool {
        self.any
    }

    /// What another library has to read, to be where this one is. A PING that was not answered
    /// is among it; RFC 6455 (section 5.5.3) wants an answer to the last one only.
    pub(super) fn read_again(&self) -> Vec<u8> {
        [&self.ping[..], &self.since_message].concat()
    }
}

/// What the library above sends.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    frames: Frames,
    closed: bool,
    /// It has sent a message.
    any: bool,
    /// A CLOSE of which the library has written a part, and which nobody is sent.
    skipped: Option<Frames>,
}

impl Outgoing {
    /// The library has written these bytes. Whether there was a PONG among them.
    pub(super) fn written(&mut self, mut bytes: &[u8]) -> bool {
        let mut answered = false;
        while !bytes.is_empty() {
            let (count, whole) = self.frames.follow(bytes);
            bytes = &bytes[count..];
            match whole.map(|whole| whole.opcode) {
                Some(CLOSE) => self.closed = true,
                Some(PONG) => answered = true,
                Some(opcode) => self.any |= opcode < CLOSE,
                None => {}
            }
        }
        answered
    }

    /// How many of these bytes are of a CLOSE, which is not sent.
    pub(super) fn skip_close(&mut self, bytes: &[u8]) -> usize {
        let begins = self.frames.is_between() && bytes.first().is_some_and(|b| b & 0xf == CLOSE);
        if self.skipped.is_none() && begins {
            self.skipped = Some(Frames::default());
        }
        let Some(skipped) = &mut self.skipped else {
            return 0;
        };
        let (count, whole) = skipped.follow(bytes);
        if whole.is_some() {
            self.skipped = None;
        }
        count
    }

    /// How many of these bytes are of the frame that begins with them or has begun before.
    pub(super) fn rest_of_frame(&self, bytes: &[u8]) -> usize {
        self.frames.clone().follow(bytes).0
    }

    /// It has sent a message.
    pub(super) fn has_message(&self) -> bool {
        self.any
    }

    /// No frame is partly written.
    pub(super) fn is_between_frames(&self) -> bool {
        self.frames.is_between()
    }

    /// A CLOSE was written.
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }
}

#[cfg(test)]
#[path = "frames_tests.rs"]
mod tests;
