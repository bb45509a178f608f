//! Packets that arrived while a connection was locked, and what they add to its image.
//!
//! [`Segment::parse`] makes a TCP segment of a captured packet, or says why it is none that counts; [`merge()`] does
//! to an image what the segments would have done to the connection. Both are pure: they do no I/O, know no clock and
//! take no octet on trust, because anybody who can reach this host may have sent it.
//!
//! ```
//! use tcpmig::segments::{self, Segment};
//! # use tcpmig_format::*;
//! # use tcpmig_lock::Packet;
//! # fn f(mut parts: TcpParts, packets: Vec<Packet>) -> Result<(), InvalidTcp> {
//! let segments: Vec<Segment<'_>> = packets
//!     .iter()
//!     .filter_map(|packet| Segment::parse(&packet.octets, &packet.flow).ok())
//!     .collect();
//! let merged = segments::merge(&mut parts, &segments);
//! let image = TcpImage::new(parts)?;
//! # Ok(())
//! # }
//! ```

mod merge;
mod parse;
#[cfg(test)]
mod tests;

pub use merge::{Merged, merge};
pub use parse::{Flags, PeerTimestamps, Segment, SegmentError};
