//! Answers on their way to the exchange that they are for.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;

use super::mutex::lock;
use crate::handover::Message;

/// Answers for an exchange, from whichever task works on the handover.
///
/// Nearly all answers are sent by the exchange itself, so that this has to be small and not fast.
#[derive(Clone, Default)]
pub(super) struct Outbox(Arc<Answers>);

#[derive(Default)]
struct Answers {
    waiting: Mutex<VecDeque<Message>>,
    passed: Notify,
}

impl Outbox {
    pub(super) fn pass(&self, answer: Message) {
        // Its exchange may have ended.
        lock(&self.0.waiting).push_back(answer);
        self.0.passed.notify_one();
    }

    /// The next answer that another task puts there. Only the exchange asks.
    pub(super) async fn next(&self) -> Message {
        loop {
            let answer = lock(&self.0.waiting).pop_front();
            if let Some(answer) = answer {
                return answer;
            }
            self.0.passed.notified().await;
        }
    }
}

impl PartialEq for Outbox {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}
