//! What a handover cost.

use std::time::Instant;

use serde::{Deserialize, Serialize};

/// The phases of one handover as the source saw them, in microseconds, and what it carried.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Before it stood still: waiting until the peer had fetched most of the send queue.
    pub settle_us: u64,
    /// Locking the packets.
    pub lock_us: u64,
    /// Switching repair on, reading the connection and encoding the image.
    pub read_us: u64,
    /// The image's way to the target and the way of the answer back.
    pub transfer_us: u64,
    /// Locking and rebuilding on the target, as the target measured it.
    pub rebuild_us: u64,
    /// Reading the numbers again and steering the packets to the target.
    pub steer_us: u64,
    /// From sending COMMIT until ACTIVE arrived.
    pub commit_us: u64,
    /// Part of `commit_us`: unlocking and ending repair, as the target measured it.
    pub activate_us: u64,
    /// How long the connection stood still: from the call that locked its packets until ACTIVE
    /// arrived, which is later than its activation by the way of that message.
    pub blackout_us: u64,
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

/// Microseconds since then.
pub(super) fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}
