//! Ordered frames in both directions.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, timeout_at};

use crate::budget::{Budget, Share};
use crate::error::TransportError;
use crate::frame::{self, Decoder, Event};
use crate::stream::{RecvHalf, SendHalf};

/// Ordered frames in both directions between two hosts, over QUIC or [in memory](crate::memory).
///
/// - [`send`](Self::send) and [`recv`](Self::recv) move frames, [`finish`](Self::finish) ends the
///   direction away from here, [`split`](Self::split) lets two tasks work on the two directions.
/// - A frame that was sent is not a frame that arrived: only an answer from the other side proves
///   that. The connection must stay open until it came.
/// - Dropped without [`finish`](Self::finish), the frames sent are still delivered, and then the
///   other side gets [`TransportError::Abandoned`], so that a task that died is never taken for
///   one that was done.
#[derive(Debug)]
pub struct Exchange {
    sender: ExchangeSender,
    receiver: ExchangeReceiver,
}

/// What went over an exchange so far. Half an exchange counts its own direction only.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExchangeStats {
    /// Frames handed to [`send`](Exchange::send) that were taken.
    pub frames_sent: u64,
    /// Frames returned by [`recv`](Exchange::recv).
    pub frames_received: u64,
    /// Bytes in the frames sent, without length prefixes.
    pub bytes_sent: u64,
    /// Bytes in the frames received, without length prefixes.
    pub bytes_received: u64,
}

/// What an exchange takes from the other side.
#[derive(Debug, Clone)]
pub(crate) struct ReceiveLimits {
    pub(crate) max_frame: usize,
    /// How long a frame may take from its first byte to its last.
    pub(crate) frame: Option<Duration>,
    pub(crate) budget: Arc<Budget>,
}

impl ReceiveLimits {
    /// As much as the other side has, in frames of this length.
    pub(crate) fn unlimited(max_frame: usize) -> Self {
        Self {
            max_frame,
            frame: None,
            budget: Budget::new(usize::MAX),
        }
    }
}

impl Exchange {
    pub(crate) fn new(outlet: SendHalf, inlet: RecvHalf, limits: ReceiveLimits) -> Self {
        let ReceiveLimits {
            max_frame,
            frame,
            budget,
        } = limits;
        Self {
            sender: ExchangeSender {
                outlet,
                unsent: Vec::new(),
                is_behind: false,
                ended: false,
                max_frame,
                frames: 0,
                bytes: 0,
            },
            receiver: ExchangeReceiver {
                inlet,
                piece: Bytes::new(),
                decoder: Decoder::new(max_frame),
                share: Share::of(budget),
                within: frame,
                until: None,
                state: Receiving::Frames,
                frames: 0,
                bytes: 0,
            },
        }
    }

    /// Sends one frame; see [`ExchangeSender::send`].
    ///
    /// # Errors
    /// Those of [`ExchangeSender::send`].
    pub async fn send(&mut self, frame: Bytes) -> Result<(), TransportError> {
        self.sender.send(frame).await
    }

    /// Has one frame sent along with the next one; see [`ExchangeSender::queue`].
    ///
    /// # Errors
    /// Those of [`ExchangeSender::queue`].
    pub fn queue(&mut self, frame: Bytes) -> Result<(), TransportError> {
        self.sender.queue(frame)
    }

    /// Receives the next frame; see [`ExchangeReceiver::recv`]. Cancel-safe.
    ///
    /// # Errors
    /// Those of [`ExchangeReceiver::recv`].
    pub async fn recv(&mut self) -> Result<Option<Bytes>, TransportError> {
        self.receiver.recv().await
    }

    /// Ends the direction away from here; see [`ExchangeSender::finish`].
    ///
    /// # Errors
    /// Those of [`ExchangeSender::finish`].
    pub async fn finish(&mut self) -> Result<(), TransportError> {
        self.sender.finish().await
    }

    /// The two directions, for two tasks.
    #[must_use]
    pub fn split(self) -> (ExchangeSender, ExchangeReceiver) {
        (self.sender, self.receiver)
    }

    /// What went over this exchange so far.
    #[must_use]
    pub fn stats(&self) -> ExchangeStats {
        ExchangeStats {
            frames_sent: self.sender.frames,
            bytes_sent: self.sender.bytes,
            ..self.receiver.stats()
        }
    }
}

/// The direction of an [`Exchange`] away from here.
#[derive(Debug)]
pub struct ExchangeSender {
    outlet: SendHalf,
    /// Length prefixes and frames that were not written yet: queued ones, and what is left of a `send` that was dropped half-way.
    unsent: Vec<Bytes>,
    /// A `send` was dropped half-way.
    is_behind: bool,
    ended: bool,
    max_frame: usize,
    frames: u64,
    bytes: u64,
}

impl ExchangeSender {
    /// Sends one frame, without copying it. Returns when the frame is queued, which waits while
    /// the other side is slower than this one.
    ///
    /// Dropping the returned future early leaves the stream in step: either the frame was not
    /// taken, or the next `send` or [`finish`](Self::finish) sends its rest first.
    ///
    /// # Errors
    /// [`TransportError::FrameTooLong`] before anything is sent; [`TransportError::Stopped`] if the
    /// other side reads no more; [`TransportError::Ended`] after [`finish`](Self::finish); the end
    /// of the connection.
    pub async fn send(&mut self, frame: Bytes) -> Result<(), TransportError> {
        if self.is_behind {
            // So that those that are dropped half-way do not pile up.
            self.check(&frame)?;
            self.flush().await?;
        }
        self.queue(frame)?;
        self.flush().await
    }

    /// Has one frame sent along with the next one that [`send`](Self::send) sends, or before the end. Frames that travel together cost
    /// both sides little more than one.
    ///
    /// # Errors
    /// [`TransportError::FrameTooLong`] and [`TransportError::Ended`] as [`send`](Self::send): the frame is not taken.
    pub fn queue(&mut self, frame: Bytes) -> Result<(), TransportError> {
        let prefix = self.check(&frame)?;
        self.frames += 1;
        self.bytes += frame.len() as u64;
        self.unsent.extend([prefix, frame]);
        Ok(())
    }

    /// Tells the other side that no more frames come from here, so that its `recv` returns `None`.
    /// A second call does nothing.
    ///
    /// # Errors
    /// Like [`send`](Self::send), apart from the length.
    pub async fn finish(&mut self) -> Result<(), TransportError> {
        if !self.ended {
            self.ended = true;
            self.unsent.push(frame::end());
        }
        self.flush().await?;
        self.outlet.finish();
        Ok(())
    }

    /// What went over this direction so far.
    #[must_use]
    pub fn stats(&self) -> ExchangeStats {
        ExchangeStats {
            frames_sent: self.frames,
            bytes_sent: self.bytes,
            ..ExchangeStats::default()
        }
    }

    /// The prefix of a frame that may be sent.
    fn check(&self, frame: &Bytes) -> Result<Bytes, TransportError> {
        if self.ended {
            return Err(TransportError::Ended);
        }
        frame::prefix(frame.len(), self.max_frame)
    }

    async fn flush(&mut self) -> Result<(), TransportError> {
        self.is_behind = true;
        while self.unsent.iter().any(|piece| !piece.is_empty()) {
            self.outlet.write(&mut self.unsent).await?;
        }
        self.unsent.clear();
        self.is_behind = false;
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Receiving {
    Frames,
    Finished,
    Failed,
}

/// The direction of an [`Exchange`] towards here. Dropping it tells the other side to stop sending.
#[derive(Debug)]
pub struct ExchangeReceiver {
    inlet: RecvHalf,
    /// What came with the last frame but belongs to the next ones.
    piece: Bytes,
    decoder: Decoder,
    share: Share,
    /// How long a frame may take, and until when the one at hand may.
    within: Option<Duration>,
    until: Option<Instant>,
    state: Receiving,
    frames: u64,
    bytes: u64,
}

impl ExchangeReceiver {
    /// The next frame, or `None` once the other side has finished.
    ///
    /// Cancel-safe: the returned future can be dropped at any time, as `tokio::select!` does,
    /// without losing or repeating a frame, because a frame under way is kept in `self`.
    ///
    /// # Errors
    /// [`TransportError::FrameTooLong`] for an announced length over the limit, before anything is
    /// allocated for it; [`TransportError::FrameTimeout`] for a frame that was begun and did not end in time, also if
    /// nobody waited for it meanwhile; [`TransportError::TooMuch`]; [`TransportError::Truncated`] and [`TransportError::Abandoned`] for a
    /// stream that ended without being finished; [`TransportError::Ended`] after another error;
    /// the end of the connection.
    pub async fn recv(&mut self) -> Result<Option<Bytes>, TransportError> {
        match self.state {
            Receiving::Frames => {}
            Receiving::Finished => return Ok(None),
            Receiving::Failed => return Err(TransportError::Ended),
        }
        let event = self.next_event().await;
        match event {
            Ok(Event::Frame(frame)) => {
                self.frames += 1;
                self.bytes += frame.len() as u64;
                Ok(Some(frame))
            }
            Ok(Event::End) => {
                self.state = Receiving::Finished;
                Ok(None)
            }
            Err(error) => {
                self.state = Receiving::Failed;
                Err(error)
            }
        }
    }

    /// What went over this direction so far.
    #[must_use]
    pub fn stats(&self) -> ExchangeStats {
        ExchangeStats {
            frames_received: self.frames,
            bytes_received: self.bytes,
            ..ExchangeStats::default()
        }
    }

    async fn next_event(&mut self) -> Result<Event, TransportError> {
        let event = self.event().await;
        if let Err(error) = &event {
            self.inlet.refuse(error);
        }
        event
    }

    async fn event(&mut self) -> Result<Event, TransportError> {
        loop {
            let event = self.decoder.feed(&mut self.piece)?;
            self.share.hold(self.decoder.unfinished())?;
            if let Some(event) = event {
                self.until = None;
                return Ok(event);
            }
            if let Some(within) = self.within
                && self.until.is_none()
                && self.decoder.is_inside()
            {
                self.until = Some(Instant::now() + within);
            }
            let read = match (self.until, self.within) {
                (Some(until), Some(limit)) => {
                    let got = self.decoder.unfinished();
                    timeout_at(until, self.inlet.read())
                        .await
                        .unwrap_or(Err(TransportError::FrameTimeout { got, limit }))
                }
                _ => self.inlet.read().await,
            };
            match read? {
                Some(piece) => self.piece = piece,
                None => return Err(self.decoder.end_of_stream()),
            }
        }
    }
}
