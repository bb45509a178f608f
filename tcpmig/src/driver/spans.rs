//! What the log says of each line of a handover.
//!
//! Spans are of the level ERROR, so that they are there for whatever is logged.

use tracing::field::Empty;
use tracing::{Span, error_span};

use crate::handover::HandoverId;

/// Around all that the source does for a handover.
pub(super) fn source(id: HandoverId, target: &str) -> Span {
    error_span!("handover", %id, role = "source", flow = Empty, target)
}

/// Around an exchange of the target, which tells later what handover it is for.
pub(super) fn target(from: &str) -> Span {
    error_span!("handover", id = Empty, role = "target", flow = Empty, from)
}

/// Around what the target does apart from an exchange.
pub(super) fn target_of(id: HandoverId) -> Span {
    error_span!("handover", %id, role = "target")
}
