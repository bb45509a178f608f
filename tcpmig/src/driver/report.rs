//! What a handover cost.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// The phases of one handover as the source saw them, and what it carried. Written out, times are whole microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Report {
    /// Before it stood still: waiting until the peer had fetched most of the send queue.
    #[serde(rename = "settle_us", with = "microseconds")]
    pub settle: Duration,
    /// Before it stood still as well: from OFFER until the target had agreed to take it.
    #[serde(rename = "accept_us", with = "microseconds")]
    pub accept: Duration,
    /// Locking the packets.
    #[serde(rename = "lock_us", with = "microseconds")]
    pub lock: Duration,
    /// Switching repair on, reading the connection and encoding the image.
    #[serde(rename = "read_us", with = "microseconds")]
    pub read: Duration,
    /// The image's way to the target and the way of the answer back, if there was one before COMMIT: for a small image COMMIT follows
    /// at once, and this is zero.
    #[serde(rename = "transfer_us", with = "microseconds")]
    pub transfer: Duration,
    /// Locking, if the target had not, and rebuilding on the target, as the target measured it.
    #[serde(rename = "rebuild_us", with = "microseconds")]
    pub rebuild: Duration,
    /// Reading the numbers again and steering the packets to the target.
    #[serde(rename = "steer_us", with = "microseconds")]
    pub steer: Duration,
    /// From sending COMMIT until ACTIVE arrived.
    #[serde(rename = "commit_us", with = "microseconds")]
    pub commit: Duration,
    /// Part of `commit`: unlocking and ending repair, as the target measured it.
    #[serde(rename = "activate_us", with = "microseconds")]
    pub activate: Duration,
    /// How long the connection stood still for its peer: from the call that locked its packets until it lived on the target. That is
    /// when ACTIVE arrived, less the way of that message, for which half of the time counts that the target does not account
    /// for. Of one that was kept: until it went on here.
    #[serde(rename = "blackout_us", with = "microseconds")]
    pub blackout: Duration,
    /// Bytes of the image.
    pub image_bytes: u64,
    /// Bytes of it that wait for the peer to read them.
    pub send_queue_bytes: u64,
    /// Bytes of it that wait for the application to read them.
    pub receive_queue_bytes: u64,
    /// Packets that arrived at the source while the connection stood still.
    pub captured_packets: u64,
    /// Frames sent to the target.
    pub frames_sent: u64,
    /// Frames received from it.
    pub frames_received: u64,
}

/// How long it is since then, if it was at all.
pub(super) fn since(then: Option<Instant>) -> Duration {
    then.map_or(Duration::ZERO, |then| then.elapsed())
}

/// A time as a whole number of microseconds.
mod microseconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_micros)
    }
}
