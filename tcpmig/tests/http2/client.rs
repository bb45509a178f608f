//! The client of the crate `h2`.

use std::net::SocketAddr;
use std::time::Duration;

use axum::http::header::CONTENT_LENGTH;
use axum::http::{HeaderMap, Method, Request, StatusCode};
use bytes::Bytes;
use h2::client::{Builder, ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use tokio::net::TcpStream;

use crate::host::in_time;

/// One connection.
#[derive(Clone)]
pub(crate) struct Client(SendRequest<Bytes>);

impl Client {
    pub(crate) async fn new(address: SocketAddr) -> Self {
        Self::with(address, &Builder::new()).await
    }

    pub(crate) async fn with(address: SocketAddr, builder: &Builder) -> Self {
        let tcp = TcpStream::connect(address).await.unwrap();
        tcp.set_nodelay(true).unwrap();
        let (client, connection) = builder.handshake::<_, Bytes>(tcp).await.unwrap();
        tokio::spawn(async move {
            // Its end is what the streams are told.
            let _ = connection.await;
        });
        Self(client)
    }

    async fn send(&self, request: Request<()>, ends: bool) -> (ResponseFuture, SendStream<Bytes>) {
        let mut client = in_time(self.0.clone().ready()).await.unwrap();
        client.send_request(request, ends).unwrap()
    }

    /// Begins to ask for something.
    pub(crate) async fn get(&self, target: &str) -> Answer {
        let request = Request::get(format!("http://x.example{target}"))
            .body(())
            .unwrap();
        Answer(self.send(request, true).await.0)
    }

    /// The same with a body, which is sent in pieces.
    pub(crate) async fn post(&self, target: &str) -> (Answer, SendStream<Bytes>) {
        let request = Request::builder().method(Method::POST);
        let request = request
            .uri(format!("http://x.example{target}"))
            .body(())
            .unwrap();
        let (answer, body) = self.send(request, false).await;
        (Answer(answer), body)
    }

    /// The same with a header that says how long the body is.
    pub(crate) async fn post_sized(
        &self,
        target: &str,
        length: usize,
    ) -> (Answer, SendStream<Bytes>) {
        let request = Request::post(format!("http://x.example{target}"));
        let request = request.header(CONTENT_LENGTH, length).body(()).unwrap();
        let (answer, body) = self.send(request, false).await;
        (Answer(answer), body)
    }

    pub(crate) async fn text(&self, target: &str) -> String {
        let (body, _) = self.get(target).await.body().await.whole().await;
        String::from_utf8(body).unwrap()
    }
}

/// An answer to come.
pub(crate) struct Answer(ResponseFuture);

impl Answer {
    pub(crate) async fn body(self) -> Reading {
        let answer = in_time(self.0).await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::OK);
        Reading {
            body: answer.into_body(),
            pause: Duration::ZERO,
        }
    }
}

/// The body of an answer.
pub(crate) struct Reading {
    body: RecvStream,
    /// Before room is made for more.
    pub(crate) pause: Duration,
}

impl Reading {
    pub(crate) async fn next(&mut self) -> Option<Bytes> {
        let data = in_time(self.body.data()).await?.expect("the body goes on");
        if self.pause > Duration::ZERO {
            tokio::time::sleep(self.pause).await;
        }
        self.body
            .flow_control()
            .release_capacity(data.len())
            .unwrap();
        Some(data)
    }

    /// The rest, and the trailers.
    pub(crate) async fn whole(mut self) -> (Vec<u8>, Option<HeaderMap>) {
        let mut whole = Vec::new();
        while let Some(data) = self.next().await {
            whole.extend_from_slice(&data);
        }
        (whole, self.body.trailers().await.unwrap())
    }
}
