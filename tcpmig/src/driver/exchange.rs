//! One exchange with a source: hands what it says to [`Host`], and sends the answers.

use std::sync::Arc;

use tcpmig_transport::{Exchange, TransportError};
use tokio::sync::OwnedSemaphorePermit;
use tracing::{Instrument, Span, debug, info, warn};

use super::outbox::Outbox;
use super::spans;
use super::target::{Action, Host};
use crate::handover::{Frame, HandoverId, Heard, Link, LinkError, Message};

/// Serves the messages of one exchange, which has its place until then.
pub(super) fn serve_exchange(
    exchange: Exchange,
    place: OwnedSemaphorePermit,
    host: Arc<Host>,
    from: Arc<str>,
) -> impl Future<Output = ()> {
    let span = spans::target(&from);
    // Apart from the future, which would have a copy of it for each function that it goes through: tasks of several kilobytes
    // take long to make.
    let serving = Box::new(Serving {
        exchange,
        host,
        from,
        outbox: Outbox::default(),
        _place: place,
    });
    serving.messages().instrument(span)
}

/// One exchange with a source.
struct Serving {
    exchange: Exchange,
    host: Arc<Host>,
    from: Arc<str>,
    outbox: Outbox,
    _place: OwnedSemaphorePermit,
}

impl Serving {
    /// Until it ends.
    async fn messages(mut self: Box<Self>) {
        let ended = self.until_end().await;
        debug!(ended, "an exchange ended");
    }

    /// Until it ends; why it did.
    async fn until_end(&mut self) -> String {
        let mut link = Link::default();
        let mut said: Option<HandoverId> = None;
        loop {
            let frame = match self.exchange.recv().await {
                Ok(Some(frame)) => frame,
                Ok(None) => {
                    // So that it knows that all of it was read: an exchange that is only dropped counts as given up.
                    let _ = self.exchange.finish().await;
                    return "the source finished".to_owned();
                }
                Err(error) => return error.to_string(),
            };
            let message = match link.frame(frame) {
                Ok(Frame::Part) => continue,
                Ok(Frame::Greeting) => {
                    // A source greets before its connection stands still.
                    self.host.freshen();
                    continue;
                }
                Ok(Frame::Message(message)) => message,
                Err(error) => {
                    if let LinkError::Version(_) = error
                        && self.send(Message::hello()).await.is_ok()
                    {
                        let _ = self.exchange.finish().await;
                    }
                    return error.to_string();
                }
            };
            let about = message.id();
            if about.is_some() && about != said {
                said = about;
                Span::current().record("id", about.map(tracing::field::display));
            }
            let name = message.name();
            let wants_answer = matches!(
                message,
                Message::Offer { .. } | Message::Commit { .. } | Message::Image { waits: true, .. }
            );
            let answered = match self.host.hear(&self.from, &self.outbox, message) {
                Heard::Poll(id) => self.work(id, wants_answer).await,
                Heard::Answer(answer) => self.send(answer).await,
                Heard::Foreign(answer) => {
                    // Somebody knows the name of a handover that is not its own.
                    let from = &*self.from;
                    warn!(
                        from,
                        "{name} of a host that did not offer the connection was ignored"
                    );
                    match answer {
                        Some(answer) => self.send(answer).await,
                        None => Ok(()),
                    }
                }
                Heard::Ignored => Ok(()),
                Heard::Unexpected(name) => return format!("{name} was not expected"),
            };
            if let Err(error) = answered {
                return error.to_string();
            }
        }
    }

    /// Does what there is to do for a handover, and waits for the answer if another task does it.
    async fn work(&mut self, id: HandoverId, wants_answer: bool) -> Result<(), TransportError> {
        let (host, outbox) = (self.host.clone(), self.outbox.clone());
        let mut answered = None;
        let mut next = host.with(|sessions| sessions.poll(id));
        while let Some(action) = next {
            next = match action {
                Action::Send { link, message } if link == outbox => {
                    answered = Some(self.send(message).await);
                    host.with(|sessions| sessions.poll(id))
                }
                other => host.perform(id, other).await,
            };
        }
        match answered {
            Some(answered) => answered,
            None if !wants_answer => Ok(()),
            None => {
                let answer = outbox.next().await;
                self.send(answer).await
            }
        }
    }

    async fn send(&mut self, message: Message) -> Result<(), TransportError> {
        if let Message::Refused { id, reason, .. } = &message {
            info!(%id, from = &*self.from, reason, "a connection was refused");
        }
        let (frame, _) = message.encode();
        self.exchange.send(frame).await
    }
}
