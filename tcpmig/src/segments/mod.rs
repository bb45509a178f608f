//! Packets that arrived while a connection was locked, and what they add to its image.
//!
//! [`Segment::parse`] makes a TCP segment of a captured packet, or says why it is none that counts; [`merge()`] does
//! to an image what the segments would have done to the connection. Both are pure: they do no I/O, know no clock and
//! take no byte on trust, because anybody who can reach this host may have sent it.
//!
//! ```
//! use tcpmig::segments::{self, Segment};
//! # use tcpmig_format::*;
//! # use tcpmig_lock::Packet;
//! # fn f(mut parts: TcpParts, packets: Vec<Packet>) -> Result<(), InvalidTcp> {
//! let segments: Vec<Segment<'_>> = packets
//!     .iter()
//!     .filter_map(|packet| Segment::parse(&packet.bytes, &packet.flow).ok())
//!     .collect();
//! let merged = segments::merge(&mut parts, &segments);
//! let image = TcpImage::new(parts)?;
//! # Ok(())
//! # }
//! ```

use tcpmig_format::{FourTuple, TcpParts, TcpState};

#[cfg(any(test, feature = "arbitrary"))]
mod build;
#[cfg(feature = "arbitrary")]
pub(crate) mod fuzz;
mod merge;
mod parse;
#[cfg(test)]
mod tests;

pub use merge::{Merged, merge};
#[cfg(any(feature = "arbitrary", feature = "connection"))]
pub(crate) use parse::whole;
pub use parse::{Flags, PeerTimestamps, Segment, SegmentError};

/// What packets did to an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// Nothing.
    Nothing,
    /// The image changed.
    Changed,
    /// The peer reset the connection: there is nothing left to move.
    Reset,
}

/// Parses packets of a connection, from their IP headers on, and merges those that count into its image, in order of
/// arrival. A connection that the peer has closed is in CLOSE-WAIT then.
pub fn take_in<'a>(
    parts: &mut TcpParts,
    flow: &FourTuple,
    packets: impl IntoIterator<Item = &'a [u8]>,
) -> Taken {
    let parse = |bytes| Segment::parse(bytes, flow).ok();
    let segments: Vec<_> = packets.into_iter().filter_map(parse).collect();
    let before = (parts.window, parts.state);
    let merged = merge(parts, &segments);
    if merged.reset {
        return Taken::Reset;
    }
    if merged.fin {
        parts.state = TcpState::CloseWait;
    }
    let moved = merged.payload_bytes > 0 || merged.acknowledged_bytes > 0;
    if moved || before != (parts.window, parts.state) {
        Taken::Changed
    } else {
        Taken::Nothing
    }
}
