//! One exchange with a source, as far as it is not about a handover.

use bytes::Bytes;

use super::super::{Decoder, Message, MessageError, OLDEST_VERSION, VERSION};

/// What a source sends over one exchange: HELLO, and then messages.
#[derive(Debug, Default)]
pub struct Link {
    decoder: Decoder,
    has_greeted: bool,
}

/// What a frame was.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame {
    /// The first part of a message; the next frame is the rest.
    Part,
    /// The source's HELLO. An OFFER comes next.
    Greeting,
    /// A message, for [`TargetSessions::handle_message`](super::TargetSessions::handle_message).
    Message(Message),
}

/// Why an exchange ends.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// The source speaks a version that this target does not. It has to be told: send [`Message::hello`] before the
    /// exchange ends.
    #[error("the source speaks version {0} of the protocol")]
    Version(u16),
    /// The first message was another one.
    #[error("{0} came before HELLO")]
    NotGreeted(&'static str),
    /// The frame was not a message.
    #[error(transparent)]
    Message(#[from] MessageError),
}

impl Link {
    /// Takes the next frame.
    ///
    /// # Errors
    ///
    /// [`LinkError`]: nothing that comes after it over this exchange counts.
    pub fn frame(&mut self, frame: Bytes) -> Result<Frame, LinkError> {
        let Some(message) = self.decoder.frame(frame)? else {
            return Ok(Frame::Part);
        };
        match message {
            Message::Hello { newest, .. } if !self.has_greeted => {
                if !(OLDEST_VERSION..=VERSION).contains(&newest) {
                    return Err(LinkError::Version(newest));
                }
                self.has_greeted = true;
                Ok(Frame::Greeting)
            }
            other if !self.has_greeted => Err(LinkError::NotGreeted(other.name())),
            message => Ok(Frame::Message(message)),
        }
    }
}
