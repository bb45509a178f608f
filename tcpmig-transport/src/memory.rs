//! Exchanges without a network, for tests: the same type, the same rules.
//!
//! ```
//! # let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
//! # runtime.block_on(async {
//! use bytes::Bytes;
//! use tcpmig_transport::{TransportLimits, memory};
//!
//! let (mut here, mut there) = memory::pair(TransportLimits::default());
//! here.send(Bytes::from_static(b"image")).await?;
//! here.finish().await?;
//! assert_eq!(there.recv().await?.as_deref(), Some(&b"image"[..]));
//! assert_eq!(there.recv().await?, None);
//! # Ok::<(), tcpmig_transport::TransportError>(())
//! # }).unwrap();
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc};

use crate::error::TransportError;
use crate::exchange::{Exchange, ReceiveLimits};
use crate::limits::{STREAM_WINDOW, TransportLimits};
use crate::stream;

/// Longest piece that passes at once; longer writes are cut, so that pieces are not frames.
const PIECE: usize = 64 << 10;

/// Two ends of one exchange. Like an exchange over QUIC it holds 16 MiB in each direction before
/// [`send`](Exchange::send) waits for the other end to read.
#[must_use]
#[expect(
    clippy::needless_pass_by_value,
    reason = "the limits are given away as to `Endpoint::bind`"
)]
pub fn pair(limits: TransportLimits) -> (Exchange, Exchange) {
    let (to_right, from_left) = pipe();
    let (to_left, from_right) = pipe();
    let end = |outlet, inlet| {
        Exchange::new(
            stream::SendHalf::Memory(outlet),
            stream::RecvHalf::Memory(inlet),
            ReceiveLimits::unlimited(limits.max_frame),
        )
    };
    (end(to_right, from_right), end(to_left, from_left))
}

/// One direction.
pub(crate) fn pipe() -> (SendHalf, RecvHalf) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let window = Arc::new(Semaphore::new(STREAM_WINDOW as usize));
    let refused = Arc::new(AtomicBool::new(false));
    (
        SendHalf {
            sender: Some(sender),
            window: Arc::clone(&window),
            refused: Arc::clone(&refused),
        },
        RecvHalf {
            receiver,
            window,
            refused,
        },
    )
}

/// The writing end of a pipe.
#[derive(Debug)]
pub(crate) struct SendHalf {
    sender: Option<mpsc::UnboundedSender<Bytes>>,
    /// One permit for each byte that may still be written.
    window: Arc<Semaphore>,
    refused: Arc<AtomicBool>,
}

impl SendHalf {
    pub(crate) async fn write(&mut self, pieces: &mut [Bytes]) -> Result<(), TransportError> {
        let sender = self.sender.as_ref().ok_or(TransportError::Ended)?;
        for piece in pieces {
            while !piece.is_empty() {
                let len = piece.len().min(PIECE);
                let room = self.window.acquire_many(len as u32).await;
                let Ok(room) = room else {
                    return Err(TransportError::Stopped {
                        reason: if self.refused.load(Ordering::Acquire) {
                            "the frame is longer than it allows"
                        } else {
                            "it has no use for more"
                        },
                    });
                };
                room.forget();
                // The reader closes the window before it goes: what is sent in between is lost
                // with it, as it would be on a network.
                let _ = sender.send(piece.split_to(len));
            }
        }
        Ok(())
    }

    pub(crate) fn finish(&mut self) {
        self.sender = None;
    }
}

/// The reading end of a pipe.
#[derive(Debug)]
pub(crate) struct RecvHalf {
    receiver: mpsc::UnboundedReceiver<Bytes>,
    window: Arc<Semaphore>,
    refused: Arc<AtomicBool>,
}

impl RecvHalf {
    pub(crate) async fn read(&mut self) -> Option<Bytes> {
        let piece = self.receiver.recv().await?;
        self.window.add_permits(piece.len());
        Some(piece)
    }

    pub(crate) fn refuse(&mut self, too_long: bool) {
        self.refused.store(too_long, Ordering::Release);
        self.window.close();
    }
}

impl Drop for RecvHalf {
    fn drop(&mut self) {
        self.window.close();
    }
}
