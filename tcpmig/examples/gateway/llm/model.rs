//! Streams of events from a model server.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use bytes::{Buf, BytesMut};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

/// Why there is no event.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the model server cannot be used: {0}")]
    Io(#[from] io::Error),
    #[error("the model server answers {0:?}")]
    Status(String),
    #[error("the model server broke the stream off")]
    Broken,
    #[error("the gateway that keeps the stream cannot be reached: {0}")]
    Client(#[from] hyper_util::client::legacy::Error),
    #[error("the gateway that keeps the stream broke off: {0}")]
    Body(#[from] hyper::Error),
    #[error("the gateway that keeps the stream answers {0}")]
    Answer(axum::http::StatusCode),
    #[error("this is not JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// The data of the event with which streams end.
pub(crate) const DONE: &str = "[DONE]";

/// A completion that comes event by event.
///
/// It is asked for by HTTP/1.0: then the body is the bytes of the stream and nothing else, and the connection can be given to
/// another gateway between any two of them.
pub(crate) struct Events {
    stream: TcpStream,
    read: BytesMut,
}

impl Events {
    /// Asks the model server for a completion, or for its rest behind an event, from an address of this host.
    pub(crate) async fn begin(
        model: SocketAddr,
        from: Option<IpAddr>,
        request: &Value,
        after: Option<u64>,
    ) -> Result<Self, Error> {
        let socket = match model {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        if let Some(from) = from {
            socket.bind((from, 0).into())?;
        }
        let mut stream = socket.connect(model).await?;
        let body = request.to_string();
        let after = after.map_or(String::new(), |after| format!("last-event-id: {after}\r\n"));
        let head = format!(
            "POST /v1/chat/completions HTTP/1.0\r\nhost: {model}\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n{after}\r\n",
            body.len()
        );
        stream.write_all((head + &body).as_bytes()).await?;
        let read = BytesMut::new();
        let mut events = Self { stream, read };
        let head = events.until(b"\r\n\r\n").await?.ok_or(Error::Broken)?;
        let status = head.lines().next().unwrap_or_default();
        if status.split(' ').nth(1) != Some("200") {
            return Err(Error::Status(status.to_owned()));
        }
        Ok(events)
    }

    /// The data of the next event. Nothing is lost if the future is dropped.
    pub(crate) async fn next(&mut self) -> Result<String, Error> {
        loop {
            let event = self.until(b"\n\n").await?.ok_or(Error::Broken)?;
            let lines = event.lines().filter_map(|line| line.strip_prefix("data:"));
            let lines: Vec<_> = lines
                .map(|line| line.strip_prefix(' ').unwrap_or(line))
                .collect();
            // A comment has none.
            if !lines.is_empty() {
                return Ok(lines.join("\n"));
            }
        }
    }

    /// What comes before these bytes; `None` if they do not come.
    async fn until(&mut self, end: &[u8]) -> io::Result<Option<String>> {
        loop {
            let found = self
                .read
                .windows(end.len())
                .position(|window| window == end);
            if let Some(len) = found {
                let text = String::from_utf8_lossy(&self.read[..len]).into_owned();
                self.read.advance(len + end.len());
                return Ok(Some(text));
            }
            if self.stream.read_buf(&mut self.read).await? == 0 {
                return Ok(None);
            }
        }
    }

    /// The connection, and what was read from it.
    pub(crate) fn into_parts(self) -> io::Result<(OwnedFd, Vec<u8>)> {
        Ok((self.stream.into_std()?.into(), self.read.to_vec()))
    }

    pub(crate) fn from_parts(socket: OwnedFd, read: &[u8]) -> io::Result<Self> {
        let stream = std::net::TcpStream::from(socket);
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream: TcpStream::from_std(stream)?,
            read: read.into(),
        })
    }
}
