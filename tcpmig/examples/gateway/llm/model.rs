//! Streams of events from a model server.

use axum::body::Body;
use axum::http::{Method, Request, StatusCode, header};
use bytes::{Buf, BytesMut};
use http_body_util::BodyExt;
use hyper_util::client::legacy::{Client, connect::HttpConnector};

pub(crate) type Http = Client<HttpConnector, Body>;

/// Why there is no event.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the server cannot be reached: {0}")]
    Client(#[from] hyper_util::client::legacy::Error),
    #[error("the server answers {0}")]
    Status(StatusCode),
    #[error("the answer breaks off: {0}")]
    Body(#[from] hyper::Error),
    #[error("the answer is not JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// A completion that comes event by event.
pub(crate) struct Events {
    body: hyper::body::Incoming,
    read: BytesMut,
}

impl Events {
    /// Asks the model server at this address (`HOST:PORT`) for a completion, or for its rest behind an event.
    pub(crate) async fn begin(
        client: &Http,
        model: &str,
        request: &serde_json::Value,
        after: Option<u64>,
    ) -> Result<Self, Error> {
        let mut asked = Request::builder()
            .method(Method::POST)
            .uri(format!("http://{model}/v1/chat/completions"))
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(after) = after {
            asked = asked.header("last-event-id", after);
        }
        let body = Body::from(serde_json::to_vec(request)?);
        // INVARIANT: the parts are those of a request, but for an address that is not one.
        let asked = asked.body(body).expect("the model's address is HOST:PORT");
        let answer = client.request(asked).await?;
        if answer.status() != StatusCode::OK {
            return Err(Error::Status(answer.status()));
        }
        Ok(Self {
            body: answer.into_body(),
            read: BytesMut::new(),
        })
    }

    /// The data of the next event; `None` at the end. Nothing is lost if the future is dropped.
    pub(crate) async fn next(&mut self) -> Result<Option<String>, Error> {
        loop {
            if let Some(data) = self.take() {
                return Ok(Some(data));
            }
            let Some(frame) = self.body.frame().await else {
                return Ok(None);
            };
            if let Ok(bytes) = frame?.into_data() {
                self.read.extend_from_slice(&bytes);
            }
        }
    }

    /// An event that has come whole and has data; events end with an empty line.
    fn take(&mut self) -> Option<String> {
        loop {
            let end = self.read.windows(2).position(|pair| pair == b"\n\n")?;
            let event = String::from_utf8_lossy(&self.read[..end]).into_owned();
            self.read.advance(end + 2);
            let data: Vec<_> = event
                .lines()
                .filter_map(|line| line.strip_prefix("data:"))
                .map(|data| data.strip_prefix(' ').unwrap_or(data))
                .collect();
            if !data.is_empty() {
                return Some(data.join("\n"));
            }
        }
    }
}
