//! How long things may take, and what the target insists on.

use std::time::Duration;

use crate::handover::{SourceConfig, TargetConfig};
use crate::options::Unsupported;

/// Time limits of a handover, and the target's conditions.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// How long a lock holds if nobody renews it (a process that died locks nobody out
    /// for longer); default 30 s. It is renewed for as long as a connection stands still, also
    /// while it is in doubt. A target that gave a connection up keeps the lock until the
    /// source says ABORT or the handover is forgotten ([`Options::remember`]), because the source
    /// may send the packets there still.
    pub lease: Duration,
    /// How long a redirect holds after the last packet of its connection, or up to a quarter longer;
    /// default 24 h. While the connection stands still it is renewed; afterwards packets prolong it by
    /// themselves, so a connection keeps it as long as it lives, if its peer is never silent for that
    /// long; one that is idle for longer is cut off from a peer that still sends to the source.
    pub redirect_lease: Duration,
    /// Source: how long a connection may go on, once its application has stopped writing, until
    /// little waits in its send queue; default 100 ms. What the peer fetches by itself meanwhile
    /// need not be carried while the connection stands still.
    pub settle: Duration,
    /// Source: how many bytes in the send queue are little; default 64 KiB.
    pub settled_below: u32,
    /// Source: how long to wait for the target's word that it takes the connection, which lives meanwhile, and then for PREPARED,
    /// while it stands still; default 3 s each. Then it is kept.
    pub prepared_within: Duration,
    /// Source: for how large an image, in bytes, COMMIT does not wait for PREPARED; default 64 KiB. It is there in a moment, and the
    /// connection stands still for one way to the target less. A larger one takes its time first, in which the connection is
    /// the source's still.
    pub commit_at_once: usize,
    /// Source: how long to wait for an answer to COMMIT before asking again; default 500 ms.
    pub answer_within: Duration,
    /// Source: how long to ask before the handover is reported as in doubt; default 20 s.
    pub ask_for: Duration,
    /// Source: how many connections of one [`Mover::move_all`](super::Mover::move_all) are under way at a time, and stand still at most;
    /// default 64. About half of them live still, while the target gets ready for them. Each waits for those before it: more move
    /// faster over a long way, and stand still for longer.
    pub in_flight: usize,
    /// Source: how many bytes they may have in their queues together; default 64 MiB. A connection with more than
    /// that goes alone.
    pub bytes_in_flight: usize,
    /// Target: how long a built connection waits for COMMIT before it is discarded;
    /// default 10 s.
    pub commit_within: Duration,
    /// Target: how many connections may wait for COMMIT at a time, from all sources; default 4096. Further ones are
    /// refused, and their sources keep them.
    pub prepared_at_once: usize,
    /// Target: how many bytes their images may have together; default 256 MiB. Refused as well.
    pub bytes_prepared: usize,
    /// Target: how many of those connections may be of one host; default 1024. So one cannot take all
    /// the places, whatever it offers. One that was given up has its place until its source says
    /// ABORT, because its packets stay locked.
    pub prepared_by_each: usize,
    /// Target: how many bytes the images of one host may have together while they wait for COMMIT;
    /// default 128 MiB.
    pub bytes_by_each: usize,
    /// Target: how many exchanges may be open at a time, from all sources; default 16384. Further
    /// ones are ended, and their sources keep the connections.
    pub exchanges_at_once: usize,
    /// Target: how many descriptors stay free for the application; default 256, or a quarter of
    /// what the process may have (`RLIMIT_NOFILE`) if that is less. A connection that would need one
    /// of them is refused.
    pub reserved_descriptors: u64,
    /// Target: whether the process's soft limit of descriptors is raised to its hard one when there are no more free than
    /// those; default `true`. Programs that it starts from then on inherit the limit, which matters to
    /// those that use `select`.
    pub raise_descriptors: bool,
    /// Target: how many ended handovers of one host are remembered; default 100000. Of more the
    /// oldest are forgotten before their time; those that were refused are not remembered at all.
    pub remembered_by_each: usize,
    /// Target: how long an ended handover is remembered, so that a COMMIT that comes again is
    /// answered; default 10 min.
    pub remember: Duration,
    /// Target: what to do with a connection that has an option which this host cannot honour; default
    /// [`Unsupported::Refuse`]. The source then keeps it, with the option's name in the reason.
    pub unsupported: Unsupported,
}

impl Options {
    /// Those of the protocol, at a source.
    pub(super) fn source(&self) -> SourceConfig {
        SourceConfig {
            prepared_within: self.prepared_within,
            commit_at_once: self.commit_at_once,
            answer_within: self.answer_within,
            ask_for: self.ask_for,
            ..SourceConfig::default()
        }
    }

    /// Those of the protocol, at a target.
    pub(super) fn target(&self) -> TargetConfig {
        TargetConfig {
            commit_within: self.commit_within,
            prepared_at_once: self.prepared_at_once,
            bytes_prepared: self.bytes_prepared,
            prepared_by_each: self.prepared_by_each,
            bytes_by_each: self.bytes_by_each,
            remembered_by_each: self.remembered_by_each,
            remember: self.remember,
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        let TargetConfig {
            commit_within,
            prepared_at_once,
            bytes_prepared,
            prepared_by_each,
            bytes_by_each,
            remembered_by_each,
            remember,
        } = TargetConfig::default();
        let SourceConfig {
            prepared_within,
            commit_at_once,
            answer_within,
            ask_for,
            ..
        } = SourceConfig::default();
        Self {
            lease: Duration::from_secs(30),
            redirect_lease: Duration::from_secs(24 * 3600),
            settle: Duration::from_millis(100),
            settled_below: 64 << 10,
            prepared_within,
            commit_at_once,
            answer_within,
            ask_for,
            in_flight: 64,
            bytes_in_flight: 64 << 20,
            commit_within,
            prepared_at_once,
            bytes_prepared,
            prepared_by_each,
            bytes_by_each,
            exchanges_at_once: 16 << 10,
            reserved_descriptors: 256,
            raise_descriptors: true,
            remembered_by_each,
            remember,
            unsupported: Unsupported::Refuse,
        }
    }
}
