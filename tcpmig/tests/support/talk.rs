//! The protocol spoken by hand.

use bytes::Bytes;
use tcpmig::handover::{Decoder, HandoverId, Message};
use tcpmig_transport::{Endpoint, Exchange, Peer};
use tokio::time::timeout;

use super::PATIENCE;
use super::site::Here;

/// One exchange.
pub(crate) struct Talk {
    exchange: Exchange,
    decoder: Decoder,
}

impl Talk {
    fn new(exchange: Exchange) -> Self {
        Self {
            exchange,
            decoder: Decoder::default(),
        }
    }

    /// A source's exchange with the other host.
    pub(crate) async fn with_other(here: &Here) -> Self {
        let to = here.other();
        let peer = here.endpoint.connect(to.address, &to.name).await.unwrap();
        Self::over(&peer).await
    }

    /// A source's exchange over this link.
    pub(crate) async fn over(peer: &Peer) -> Self {
        let mut talk = Self::new(peer.open().await.unwrap());
        talk.say(Message::hello()).await;
        talk
    }

    pub(crate) async fn say(&mut self, message: Message) {
        let (first, second) = message.encode();
        for frame in [Some(first), second].into_iter().flatten() {
            self.say_bytes(frame).await;
        }
    }

    pub(crate) async fn say_bytes(&mut self, frame: Bytes) {
        self.exchange.send(frame).await.unwrap();
    }

    /// The next message after HELLO; `None` if the exchange ends, in whatever way.
    pub(crate) async fn hear(&mut self) -> Option<Message> {
        loop {
            let frame = timeout(PATIENCE, self.exchange.recv()).await;
            let frame = frame.expect("the other side says something").ok()??;
            match self.decoder.frame(frame).unwrap() {
                None | Some(Message::Hello { .. }) => {}
                Some(message) => return Some(message),
            }
        }
    }

    /// The message that is expected to come, and is not the exchange's end.
    pub(crate) async fn answer(&mut self) -> Message {
        self.hear().await.expect("an answer")
    }

    pub(crate) async fn ask(&mut self, message: Message) -> Message {
        self.say(message).await;
        self.answer().await
    }

    /// Offers a connection, and gives its image if it is taken: PREPARED, or what else is answered. Of both the target takes what
    /// counts there, so that both are the whole image.
    pub(crate) async fn give(&mut self, id: HandoverId, image: Bytes) -> Message {
        let (queued, draft) = (0, image.clone());
        let answer = self.ask(Message::Offer { id, queued, draft }).await;
        if !matches!(answer, Message::Accepted { .. }) {
            return answer;
        }
        let waits = true;
        self.ask(Message::Image { id, waits, image }).await
    }

    /// Takes what is offered until its image has come, whose source then waits for PREPARED.
    pub(crate) async fn take(&mut self) -> HandoverId {
        match self.hear().await {
            Some(Message::Offer { id, .. }) => self.take_image(id).await,
            other => panic!("{other:?} instead of OFFER"),
        }
    }

    /// Takes what is offered, and the image that COMMIT follows at once.
    pub(crate) async fn take_at_once(&mut self) -> HandoverId {
        let id = match self.answer().await {
            Message::Offer { id, .. } => id,
            other => panic!("{other:?} instead of OFFER"),
        };
        let locked_ms = 60_000;
        match self.ask(Message::Accepted { id, locked_ms }).await {
            Message::Image { waits: false, .. } => {}
            other => panic!("{other:?} instead of IMAGE that nobody waits for"),
        }
        self.commit(id).await;
        id
    }

    /// The same once OFFER has come.
    pub(crate) async fn take_image(&mut self, id: HandoverId) -> HandoverId {
        let locked_ms = 0;
        match self.ask(Message::Accepted { id, locked_ms }).await {
            Message::Image { id: named, .. } => assert_eq!(named, id),
            other => panic!("{other:?} instead of IMAGE"),
        }
        id
    }

    pub(crate) async fn commit(&mut self, id: HandoverId) {
        match self.answer().await {
            Message::Commit { id: named, .. } => assert_eq!(named, id),
            other => panic!("{other:?} instead of COMMIT"),
        }
    }

    /// Waits for the end of the exchange, whatever is said before it.
    pub(crate) async fn end(mut self) {
        while self.hear().await.is_some() {}
    }
}

/// A target that does not do what targets do.
pub(crate) struct Fake {
    endpoint: Endpoint,
    peer: Option<Peer>,
}

impl Fake {
    pub(crate) fn new(here: &Here) -> Self {
        Self {
            endpoint: here.endpoint.clone(),
            peer: None,
        }
    }

    /// The next exchange, over the link that is there or a new one.
    pub(crate) async fn exchange(&mut self) -> Talk {
        loop {
            match &self.peer {
                Some(peer) => match timeout(PATIENCE, peer.accept()).await.expect("an exchange") {
                    Some(Ok(exchange)) => return Talk::new(exchange),
                    Some(Err(_)) | None => self.peer = None,
                },
                None => {
                    let peer = timeout(PATIENCE, self.endpoint.accept()).await;
                    // A host that gave up waiting before is an error here.
                    self.peer = peer.expect("a link").unwrap().ok();
                }
            }
        }
    }

    /// The next exchange in which the source sends COMMIT. One that it has given up before it was looked at has none.
    pub(crate) async fn committed(&mut self, id: HandoverId) -> Talk {
        loop {
            let mut talk = self.exchange().await;
            match talk.hear().await {
                Some(Message::Commit { id: named, .. }) => {
                    assert_eq!(named, id);
                    return talk;
                }
                None => {}
                other => panic!("{other:?} instead of COMMIT"),
            }
        }
    }

    /// Breaks the link: exchanges over it end.
    pub(crate) fn hang_up(&mut self) {
        if let Some(peer) = self.peer.take() {
            peer.close("hung up");
        }
    }
}
