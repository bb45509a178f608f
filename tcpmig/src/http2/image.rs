//! What an HTTP/2 connection is beside its socket, and how that is written.

use serde::{Deserialize, Serialize};

use super::frame::{HEAD, Head, MAX_WINDOW};
use super::hpack::TableImage;
use super::settings::Settings;
use super::{MAX_HELD, MAX_QUEUED, MAX_STREAMS};

/// A connection at a safe point, without what its service does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Image {
    /// What the peer has told.
    pub(super) peer: Settings,
    /// What the peer was told.
    pub(super) own: Settings,
    /// How many frames of SETTINGS the peer has not acknowledged.
    pub(super) unacknowledged: u8,
    /// The last stream that the server has seen.
    pub(super) last: u32,
    /// How many bytes of DATA the peer takes on all streams. Behind SETTINGS it can be less than nothing for a stream.
    pub(super) send: i64,
    /// How many bytes the peer may send on all streams, those of `held` and `unread` included.
    pub(super) recv: i64,
    pub(super) table: TableImage,
    /// Those whose response has not been sent to its end.
    pub(super) streams: Vec<StreamImage>,
    /// Whole frames that wait for the windows.
    #[serde(with = "serde_bytes")]
    pub(super) queued: Vec<u8>,
    /// Whole frames of streams that the server has not seen. Their header blocks say the same to any decoder.
    #[serde(with = "serde_bytes")]
    pub(super) held: Vec<u8>,
    /// What came behind them; it can end in the middle of a frame or a header block.
    #[serde(with = "serde_bytes")]
    pub(super) unread: Vec<u8>,
    /// The code of the peer's GOAWAY.
    pub(super) goaway: Option<u32>,
}

/// One stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StreamImage {
    pub(super) id: u32,
    /// How many bytes of DATA the peer takes.
    pub(super) window: i64,
    /// The service goes on with its response; else what waits for the windows is the rest of it.
    pub(super) goes_on: bool,
    /// The body of its request has not come to its end: how many bytes of it the peer may send, those of `held` and `unread` included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) recv: Option<i64>,
    /// The peer has not got the head of the response.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) lacks_head: bool,
}

/// Why an image is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the connection's HTTP/2 is not as it could be: {0}")]
pub(crate) struct Malformed(pub(super) &'static str);

impl Image {
    /// The streams whose responses the service goes on with, in ascending order.
    pub(crate) fn streams(&self) -> impl Iterator<Item = u32> {
        let streams = self.streams.iter().filter(|stream| stream.goes_on);
        streams.map(|stream| stream.id)
    }

    /// How many bytes of requests that the server has not seen it carries, and of responses that the peer has not room for.
    pub(crate) fn carried(&self) -> (usize, usize) {
        (self.held.len() + self.unread.len(), self.queued.len())
    }

    /// The last stream that the server has not seen, or 0.
    pub(super) fn last_held(&self) -> u32 {
        let mut frames = &self.held[..];
        let mut last = 0;
        while let Some(head) = Head::first(frames) {
            last = last.max(head.id);
            frames = frames.get(head.whole()..).unwrap_or_default();
        }
        last
    }

    /// Whether it could be of a connection that this module has followed.
    pub(super) fn check(&self) -> Result<(), Malformed> {
        let window = -MAX_WINDOW..=MAX_WINDOW;
        let is_client = |id: u32| id % 2 == 1 && id < 1 << 31;
        if self.last != 0 && !is_client(self.last) {
            return Err(Malformed("the last stream is not a client's"));
        }
        if !window.contains(&self.send) || !window.contains(&self.recv) {
            return Err(Malformed("the connection's windows"));
        }
        if self.peer.initial_window() > MAX_WINDOW || self.own.initial_window() > MAX_WINDOW {
            return Err(Malformed("the settings"));
        }
        let mut before = 0;
        for stream in &self.streams {
            let follows = before < stream.id && stream.id <= self.last && is_client(stream.id);
            if !follows || !window.contains(&stream.window) {
                return Err(Malformed("its streams"));
            }
            before = stream.id;
            let recv = stream.recv.unwrap_or(0);
            let is_early = stream.recv.is_some() || stream.lacks_head;
            if is_early && !stream.goes_on || recv > self.own.initial_window() || recv < -MAX_WINDOW
            {
                return Err(Malformed("the body of a request"));
            }
        }
        if self.streams.len() > MAX_STREAMS {
            return Err(Malformed("too many streams"));
        }
        if self.held.len() > MAX_HELD || self.unread.len() > MAX_HELD {
            return Err(Malformed("too much that the server has not seen"));
        }
        if self.queued.len() > MAX_QUEUED {
            return Err(Malformed("too much that waits for the peer"));
        }
        for frames in [&self.queued, &self.held] {
            whole(frames).ok_or(Malformed("a frame is cut off"))?;
        }
        Ok(())
    }
}

/// Whether these are frames, and nothing behind them.
fn whole(mut frames: &[u8]) -> Option<()> {
    while !frames.is_empty() {
        let head = Head::first(frames)?;
        frames = frames.get(HEAD + head.len..)?;
    }
    Some(())
}
