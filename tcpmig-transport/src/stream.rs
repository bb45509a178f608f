//! The two halves of an ordered stream of bytes, over QUIC or in memory.

use std::sync::Arc;

use bytes::Bytes;
use quinn::{ReadError, VarInt, WriteError};

use crate::cause::connection_error;
use crate::error::TransportError;
use crate::link::Link;
use crate::memory;

/// Longest piece taken off a QUIC stream at once; pieces are not copied.
const PIECE: usize = 1 << 20;

/// Tells the sender that its frame is longer than the receiver allows.
const TOO_LONG: VarInt = VarInt::from_u32(1);
/// Tells the sender that its frame did not come in time.
const TOO_SLOW: VarInt = VarInt::from_u32(2);
/// Tells the sender that the receiver has enough unfinished frames.
const TOO_MUCH: VarInt = VarInt::from_u32(3);

/// Where bytes are written.
#[derive(Debug)]
pub(crate) enum SendHalf {
    Quic(quinn::SendStream, Arc<Link>),
    Memory(memory::SendHalf),
}

impl SendHalf {
    /// Writes as much as there is room for, waiting for room for at least one byte, and takes it
    /// off the front of `pieces`. Cancel-safe.
    pub(crate) async fn write(&mut self, pieces: &mut [Bytes]) -> Result<(), TransportError> {
        match self {
            Self::Quic(stream, link) => match stream.write_chunks(pieces).await {
                Ok(_) => Ok(()),
                Err(WriteError::Stopped(code)) => Err(TransportError::Stopped {
                    reason: match code {
                        TOO_LONG => "the frame is longer than it allows",
                        TOO_SLOW => "the frame took longer than it allows",
                        TOO_MUCH => "it has as many unfinished frames as it allows",
                        _ => "it has no use for more",
                    },
                }),
                Err(WriteError::ConnectionLost(error)) => {
                    Err(connection_error(error, link.address))
                }
                Err(WriteError::ClosedStream | WriteError::ZeroRttRejected) => {
                    Err(TransportError::Ended)
                }
            },
            Self::Memory(outlet) => outlet.write(pieces).await,
        }
    }

    /// No bytes will follow. Those written are delivered all the same.
    pub(crate) fn finish(&mut self) {
        match self {
            // An error says that the stream has ended already.
            Self::Quic(stream, _) => drop(stream.finish()),
            Self::Memory(outlet) => outlet.finish(),
        }
    }
}

/// Where bytes are read.
#[derive(Debug)]
pub(crate) enum RecvHalf {
    Quic(quinn::RecvStream, Arc<Link>),
    Memory(memory::RecvHalf),
}

impl RecvHalf {
    /// The next bytes, or `None` at the end of the stream. Cancel-safe.
    pub(crate) async fn read(&mut self) -> Result<Option<Bytes>, TransportError> {
        match self {
            Self::Quic(stream, link) => match stream.read_chunk(PIECE, true).await {
                Ok(chunk) => Ok(chunk.map(|chunk| chunk.bytes)),
                Err(ReadError::Reset(_)) => Err(TransportError::Abandoned),
                Err(ReadError::ConnectionLost(error)) => Err(connection_error(error, link.address)),
                Err(
                    ReadError::ClosedStream
                    | ReadError::IllegalOrderedRead
                    | ReadError::ZeroRttRejected,
                ) => Err(TransportError::Ended),
            },
            Self::Memory(inlet) => Ok(inlet.read().await),
        }
    }

    /// Nothing more will be read, for this reason.
    pub(crate) fn refuse(&mut self, reason: &TransportError) {
        let code = match reason {
            TransportError::FrameTooLong { .. } => TOO_LONG,
            TransportError::FrameTimeout { .. } => TOO_SLOW,
            TransportError::TooMuch { .. } => TOO_MUCH,
            _ => return,
        };
        match self {
            // An error says that the stream has ended already.
            Self::Quic(stream, _) => drop(stream.stop(code)),
            Self::Memory(inlet) => inlet.refuse(code == TOO_LONG),
        }
    }
}
