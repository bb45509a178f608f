//! The library that is tested with is the judge.

use std::io::{self, Read, Write};

use proptest::collection::vec;
use proptest::prelude::*;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Control, Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::frame::{Frame, FrameSocket};
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocket};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::{Incoming, Outgoing};

/// What a peer sends: bytes, as far as they may be read now, and what comes back.
struct Peer<'a> {
    bytes: &'a [u8],
    /// How many at a time.
    at_a_time: usize,
    incoming: &'a mut Incoming,
    outgoing: Outgoing,
    /// It takes no bytes.
    is_full: bool,
}

impl Read for Peer<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = self.bytes.len().min(buffer.len()).min(self.at_a_time);
        if most == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let count = self.incoming.read(&self.bytes[..most]);
        assert!(count > 0);
        buffer[..count].copy_from_slice(&self.bytes[..count]);
        self.bytes = &self.bytes[count..];
        Ok(count)
    }
}

impl Write for Peer<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.is_full {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if self.outgoing.written(bytes) {
            self.incoming.answered();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads all messages that can be read; bytes that the library has not read are an error.
fn messages(bytes: &[u8], at_a_time: usize, is_full: bool) -> (Vec<Message>, Vec<u8>) {
    let mut incoming = Incoming::default();
    let peer = Peer {
        bytes,
        at_a_time,
        incoming: &mut incoming,
        outgoing: Outgoing::default(),
        is_full,
    };
    let mut library = WebSocket::from_raw_socket(peer, Role::Server, None);
    let mut messages = Vec::new();
    loop {
        match library.read() {
            Ok(message) => messages.push(message),
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        }
    }
    let peer = library.get_ref();
    assert!(peer.bytes.is_empty());
    assert!(peer.outgoing.is_between_frames());
    drop(library);
    (messages, incoming.read_again())
}

/// A frame as the peer sends it.
fn encoded(payload: &[u8], opcode: OpCode, is_final: bool, masked: bool) -> Vec<u8> {
    let mut frame = Frame::message(payload.to_vec(), OpCode::Data(Data::Binary), is_final);
    frame.header_mut().opcode = opcode;
    if masked {
        frame.header_mut().mask = Some([1, 2, 3, 4]);
    }
    let mut socket = FrameSocket::new(Vec::new());
    socket.send(frame).unwrap();
    socket.into_inner().0
}

/// A message: its fragments, each with a control frame behind it or none.
fn message() -> impl Strategy<Value = Vec<u8>> {
    let payload = prop_oneof![
        4 => vec(any::<u8>(), 0..20),
        1 => vec(any::<u8>(), 125..128),
        1 => vec(any::<u8>(), 300),
    ];
    let control = prop_oneof![
        Just(None),
        Just(Some(Control::Ping)),
        Just(Some(Control::Pong))
    ];
    vec((payload, control, vec(any::<u8>(), 0..8)), 1..4).prop_map(|fragments| {
        let mut bytes = Vec::new();
        let count = fragments.len();
        for (number, (payload, control, more)) in fragments.into_iter().enumerate() {
            let kind = if number == 0 {
                Data::Binary
            } else {
                Data::Continue
            };
            bytes.extend(encoded(
                &payload,
                OpCode::Data(kind),
                number + 1 == count,
                true,
            ));
            if let Some(control) = control {
                bytes.extend(encoded(&more, OpCode::Control(control), true, true));
            }
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn another_library_goes_on_at_any_byte(
        whole in vec(message(), 1..4).prop_map(|messages| messages.concat()),
        at_a_time in prop_oneof![1_usize..5, Just(usize::MAX)],
    ) {
        let (all, left) = messages(&whole, usize::MAX, false);
        prop_assert!(left.is_empty());
        for cut in 0..=whole.len() {
            let (mut got, again) = messages(&whole[..cut], at_a_time, false);
            let rest = [&again, &whole[cut..]].concat();
            let (after, left) = messages(&rest, at_a_time, false);
            got.extend(after);
            prop_assert_eq!(&got, &all, "cut at {}", cut);
            prop_assert!(left.is_empty());
        }
    }

    #[test]
    fn the_last_ping_without_an_answer_is_read_again(
        whole in vec(message(), 1..4).prop_map(|messages| messages.concat()),
    ) {
        for cut in 0..=whole.len() {
            let (got, again) = messages(&whole[..cut], 7, true);
            let ping = got.into_iter().rfind(Message::is_ping);
            let (first, _) = messages(&again, usize::MAX, false);
            prop_assert_eq!(ping, first.first().cloned());
        }
    }

    #[test]
    fn frames_of_the_server_are_followed_wherever_they_are_cut(
        payloads in vec(vec(any::<u8>(), 0..200), 1..5),
        at_a_time in 1_usize..20,
    ) {
        let frames: Vec<_> = payloads
            .iter()
            .map(|payload| encoded(payload, OpCode::Data(Data::Binary), true, false))
            .collect();
        let mut ends = std::collections::HashSet::new();
        let whole = frames.concat();
        let mut end = 0;
        for frame in &frames {
            end += frame.len();
            ends.insert(end);
        }
        let mut outgoing = Outgoing::default();
        let mut written = 0;
        for bytes in whole.chunks(at_a_time) {
            prop_assert!(!outgoing.written(bytes));
            written += bytes.len();
            prop_assert_eq!(outgoing.is_between_frames(), ends.contains(&written));
        }
    }
}

#[test]
fn lengths_of_two_and_eight_bytes_are_followed() {
    for len in [126, 127, 65535, 65536, 200_000] {
        for masked in [true, false] {
            let bytes = encoded(&vec![7; len], OpCode::Data(Data::Text), true, masked);
            let mut incoming = Incoming::default();
            // Behind the first byte of the next frame it does not read.
            let more = [&bytes[..], &bytes[..1]].concat();
            let mut read = 0;
            for cut in [0, 1, 2, 3, 4, 9, 10, 13, 14, 15, len, bytes.len()] {
                let cut = cut.max(read);
                while read < cut {
                    read += incoming.read(&more[read..cut]);
                }
                let again = if read < bytes.len() {
                    &more[..read]
                } else {
                    &[]
                };
                assert_eq!(incoming.read_again(), again);
            }
            assert_eq!(incoming.read(&more[read..]), 1);
            assert_eq!(incoming.read_again(), &bytes[..1]);
        }
    }
}

#[test]
fn a_close_of_either_side_is_seen() {
    let close = |masked| {
        encoded(
            b"\x03\xe8bye",
            OpCode::Control(Control::Close),
            true,
            masked,
        )
    };
    let mut incoming = Incoming::default();
    for byte in close(true) {
        assert!(!incoming.is_closed());
        assert_eq!(incoming.read(&[byte]), 1);
    }
    assert!(incoming.is_closed());
    assert!(incoming.read_again().is_empty());
    let mut outgoing = Outgoing::default();
    for byte in close(false) {
        assert!(!outgoing.is_closed());
        outgoing.written(&[byte]);
    }
    assert!(outgoing.is_closed());
}

#[test]
fn a_close_is_skipped_wherever_it_is_cut() {
    // A text, a CLOSE with a reason and another text, as a server writes them.
    let frames: [&[u8]; 3] = [b"\x81\x03one", b"\x88\x05\x03\xe8bye", b"\x81\x03two"];
    let whole = frames.concat();
    for cut in 0..=whole.len() {
        let mut outgoing = Outgoing::default();
        let mut sent = Vec::new();
        for mut bytes in [&whole[..cut], &whole[cut..]] {
            while !bytes.is_empty() {
                let skipped = outgoing.skip_close(bytes);
                bytes = &bytes[skipped..];
                if skipped == 0 {
                    let len = outgoing.rest_of_frame(bytes);
                    outgoing.written(&bytes[..len]);
                    sent.extend_from_slice(&bytes[..len]);
                    bytes = &bytes[len..];
                }
            }
        }
        assert_eq!(sent, [frames[0], frames[2]].concat(), "cut at {cut}");
        assert!(!outgoing.is_closed() && outgoing.is_between_frames());
    }
}
