//! Frames of both sides in any order and cut anywhere, and images of any bytes.

use arbitrary::Arbitrary;
use bytes::BytesMut;

use super::frame::{self, HEAD};
use super::{Connection, Image, MAX_HELD, MAX_QUEUED, PREFACE};
use crate::fuzz::Peak;

/// What happens on a connection.
#[derive(Arbitrary, Debug)]
pub struct Frames<'a> {
    /// The image that it begins with, if that is one.
    image: Option<&'a [u8]>,
    /// 0: the client's preface does not come by itself.
    begins: u8,
    steps: Vec<Step<'a>>,
}

#[derive(Arbitrary, Debug)]
enum Step<'a> {
    Preface,
    Bytes(&'a [u8]),
    FromPeer(Frame<'a>),
    FromServer(Frame<'a>),
    /// Of the server, as far as it passes.
    Part(&'a [u8]),
    Read,
    Take,
    Drain(bool),
    HoldBody(u8),
    Flood,
    Move,
}

#[derive(Arbitrary, Debug)]
struct Frame<'a> {
    kind: u8,
    flags: u8,
    id: u8,
    payload: &'a [u8],
}

impl Frame<'_> {
    fn bytes(&self) -> BytesMut {
        let mut bytes = BytesMut::new();
        // Odd ids are a client's.
        let id = u32::from(self.id % 16);
        frame::put(&mut bytes, self.kind % 12, self.flags, id, self.payload);
        bytes
    }
}

fn decode(bytes: &[u8]) -> Option<Connection> {
    let image: Image = rmp_serde::from_slice(bytes).ok()?;
    Connection::resume(&image, |_| Some(vec![0x82])).ok()
}

/// Runs it; what is kept has its limits.
pub fn http2(frames: &Frames<'_>, peak: Peak) {
    let mut len = frames.image.map_or(0, <[u8]>::len);
    let most = peak(&mut || {
        let mut connection = frames
            .image
            .and_then(decode)
            .unwrap_or_else(Connection::new);
        if frames.begins > 0 {
            connection.receive(PREFACE);
            connection.read().clear();
        }
        for step in &frames.steps {
            connection = run(connection, step);
        }
    });
    for step in &frames.steps {
        len += match step {
            Step::Bytes(bytes) | Step::Part(bytes) => bytes.len(),
            Step::FromPeer(frame) | Step::FromServer(frame) => frame.payload.len() + HEAD,
            _ => 0,
        };
    }
    let most_kept = (1 << 20) + 64 * len as u64;
    assert!(most <= most_kept, "{most} bytes for {len}");
}

fn run(mut connection: Connection, step: &Step<'_>) -> Connection {
    match step {
        Step::Preface => connection.receive(PREFACE),
        Step::Bytes(bytes) => connection.receive(bytes),
        Step::FromPeer(frame) => connection.receive(&frame.bytes()),
        Step::FromServer(frame) => say(&mut connection, &frame.bytes()),
        Step::Part(bytes) => say(&mut connection, bytes),
        Step::Read => connection.read().clear(),
        Step::Take => drop(connection.take_request()),
        Step::Drain(drains) => connection.drain(*drains),
        Step::HoldBody(id) => connection.hold_body((id % 16).into()),
        Step::Flood => connection.flood(),
        Step::Move => {
            if connection.obstacle().is_none() {
                return moved(connection);
            }
        }
    }
    connection
}

fn say(connection: &mut Connection, bytes: &[u8]) {
    if connection.is_between_frames() {
        connection.unsent().clear();
    }
    let passes = connection.passes(bytes.len());
    connection.sent(&bytes[..passes]);
    if passes < bytes.len() && connection.is_between_frames() {
        connection.write(&bytes[passes..]);
    }
}

fn moved(connection: Connection) -> Connection {
    let Ok(image) = connection.into_image(&[]) else {
        return Connection::new();
    };
    let (held, queued) = image.carried();
    assert!(held <= 2 * MAX_HELD && queued <= MAX_QUEUED);
    let encoded = rmp_serde::to_vec_named(&image).expect("numbers and bytes");
    let decoded: Image = rmp_serde::from_slice(&encoded).expect("it was encoded");
    assert_eq!(decoded, image);
    // Frames of peers that break the rules can leave what no server goes on with.
    Connection::resume(&decoded, |_| Some(vec![0x82])).unwrap_or_else(|_| Connection::new())
}
