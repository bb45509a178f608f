//! Calls of gRPC that tonic serves: of each kind one, and each moves in its middle.

use std::pin::Pin;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use axum::routing::post;
use bytes::{Buf, BufMut, Bytes};
use futures_util::Stream;
use h2::SendStream;
use tcpmig::http::{Resume, SessionError, Upload};
use tokio::sync::Mutex;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder, Streaming};
use tonic::server::{
    ClientStreamingService, Grpc, ServerStreamingService, StreamingService, UnaryService,
};
use tonic::{Response, Status};

use crate::client::{Client, Reading};
use crate::host::{Hosts, moment};

/// Messages are texts.
#[derive(Clone)]
struct Texts;

impl Codec for Texts {
    type Encode = String;
    type Decode = String;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Texts {
    type Item = String;
    type Error = Status;

    fn encode(&mut self, item: String, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put_slice(item.as_bytes());
        Ok(())
    }
}

impl Decoder for Texts {
    type Item = String;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<String>, Status> {
        let bytes = from.copy_to_bytes(from.remaining());
        let text = String::from_utf8(bytes.into());
        text.map(Some).map_err(|_| Status::data_loss("not a text"))
    }
}

type Answer<T> = Pin<Box<dyn Future<Output = Result<Response<T>, Status>> + Send>>;
type Texted = Pin<Box<dyn Stream<Item = Result<String, Status>> + Send>>;

fn unknown(error: &SessionError) -> Status {
    Status::failed_precondition(error.to_string())
}

fn number(text: &str) -> u64 {
    text.parse().unwrap()
}

/// The methods of the service.
struct Double;
struct Count;
struct Sum;
struct Sums;

impl UnaryService<String> for Double {
    type Response = String;
    type Future = Answer<String>;

    fn call(&mut self, request: tonic::Request<String>) -> Answer<String> {
        let doubled = 2 * number(request.get_ref());
        Box::pin(async move { Ok(Response::new(doubled.to_string())) })
    }
}

/// Says the numbers up to the one that it is told.
impl ServerStreamingService<String> for Count {
    type Response = String;
    type ResponseStream = Texted;
    type Future = Answer<Texted>;

    fn call(&mut self, request: tonic::Request<String>) -> Answer<Texted> {
        Box::pin(async move {
            let resume = Resume::of(request.extensions()).map_err(|error| unknown(&error))?;
            let last = number(request.get_ref());
            let numbers = resume.unfold(1_u64, move |next| async move {
                if next > last {
                    return None;
                }
                if next % 1000 == 0 {
                    tokio::task::yield_now().await;
                }
                Some((Ok(next.to_string()), next + 1))
            });
            let mut response = Response::new(Box::pin(numbers) as Texted);
            resume.mark_extensions(response.extensions_mut());
            Ok(response)
        })
    }
}

/// Sums up what it is told.
impl ClientStreamingService<String> for Sum {
    type Response = String;
    type Future = Answer<String>;

    fn call(&mut self, request: tonic::Request<Streaming<String>>) -> Answer<String> {
        Box::pin(async move {
            let upload = Upload::of(request.extensions()).map_err(|error| unknown(&error))?;
            let mut sum = upload.cursor().unwrap_or(0);
            let mut texts = request.into_inner();
            while let Some(text) = texts.message().await? {
                sum += number(&text);
                // tonic has read more of the body than this message.
                upload.set_behind_messages(&sum, 1);
            }
            Ok(Response::new(sum.to_string()))
        })
    }
}

/// Says the sum so far whenever it is told a number.
impl StreamingService<String> for Sums {
    type Response = String;
    type ResponseStream = Texted;
    type Future = Answer<Texted>;

    fn call(&mut self, request: tonic::Request<Streaming<String>>) -> Answer<Texted> {
        Box::pin(async move {
            let resume = Resume::of(request.extensions()).map_err(|error| unknown(&error))?;
            let upload =
                Upload::<u64>::of(request.extensions()).map_err(|error| unknown(&error))?;
            let texts = Arc::new(Mutex::new(request.into_inner()));
            let sums = resume.unfold(0_u64, move |sum| {
                let (texts, upload) = (texts.clone(), upload.clone());
                async move {
                    let text = texts.lock().await.message().await.transpose()?;
                    let sum = match text {
                        Ok(text) => sum + number(&text),
                        Err(status) => return Some((Err(status), sum)),
                    };
                    upload.set_behind_messages(&sum, 1);
                    Some((Ok(sum.to_string()), sum))
                }
            });
            let mut response = Response::new(Box::pin(sums) as Texted);
            resume.mark_extensions(response.extensions_mut());
            Ok(response)
        })
    }
}

pub(crate) fn routes() -> Router {
    let grpc = || Grpc::new(Texts);
    Router::new()
        .route(
            "/texts.Texts/Double",
            post(async move |request: Request<Body>| grpc().unary(Double, request).await),
        )
        .route(
            "/texts.Texts/Count",
            post(async move |request: Request<Body>| grpc().server_streaming(Count, request).await),
        )
        .route(
            "/texts.Texts/Sum",
            post(async move |request: Request<Body>| grpc().client_streaming(Sum, request).await),
        )
        .route(
            "/texts.Texts/Sums",
            post(async move |request: Request<Body>| grpc().streaming(Sums, request).await),
        )
}

/// A message as it is framed.
fn message(number: u64) -> Vec<u8> {
    let text = number.to_string();
    let length = u32::try_from(text.len()).unwrap().to_be_bytes();
    [&[0], &length[..], text.as_bytes()].concat()
}

/// The next of the messages, of which this has come.
async fn next(reading: &mut Reading, come: &mut Vec<u8>) -> Option<u64> {
    loop {
        if let Some([_, length @ ..]) = come.first_chunk::<5>() {
            let end = 5 + u32::from_be_bytes(*length) as usize;
            if come.len() >= end {
                let message: Vec<_> = come.drain(..end).collect();
                return Some(number(std::str::from_utf8(&message[5..]).unwrap()));
            }
        }
        come.extend_from_slice(&reading.next().await?);
    }
}

async fn ends_well(reading: Reading, come: &[u8]) {
    assert!(come.is_empty());
    let (rest, trailers) = reading.whole().await;
    assert!(rest.is_empty());
    assert_eq!(trailers.unwrap()["grpc-status"], "0");
}

async fn call(client: &Client, method: &str) -> (crate::client::Answer, SendStream<Bytes>) {
    client.post(&format!("/texts.Texts/{method}")).await
}

#[tokio::test]
async fn unary_calls_go_on_behind_moves() {
    let hosts = Hosts::new().await;
    let client = Client::new(hosts.address).await;
    for round in 0..10 {
        let (answer, mut body) = call(&client, "Double").await;
        body.send_data(message(round).into(), true).unwrap();
        let mut reading = answer.body().await;
        let mut come = Vec::new();
        assert_eq!(next(&mut reading, &mut come).await, Some(2 * round));
        ends_well(reading, &come).await;
        hosts.hop().await;
    }
}

#[tokio::test]
async fn a_call_that_streams_from_its_server_moves() {
    const LAST: u64 = 100_000;
    let hosts = Hosts::new().await;
    let client = Client::new(hosts.address).await;
    let (answer, mut body) = call(&client, "Count").await;
    body.send_data(message(LAST).into(), true).unwrap();
    let mut reading = answer.body().await;
    let mut come = Vec::new();
    for expected in 1..=LAST {
        assert_eq!(next(&mut reading, &mut come).await, Some(expected));
        if expected % (LAST / 20) == 0 && expected < LAST {
            hosts.hop().await;
        }
    }
    ends_well(reading, &come).await;
}

#[tokio::test]
async fn a_call_that_streams_to_its_server_moves() {
    let hosts = Hosts::new().await;
    let client = Client::new(hosts.address).await;
    let (answer, mut body) = call(&client, "Sum").await;
    let all: Vec<u8> = (1..=20_000).flat_map(message).collect();
    // Messages are cut anywhere.
    for (round, part) in all.chunks(all.len() / 20 + 1).enumerate() {
        for piece in part.chunks(997) {
            body.send_data(Bytes::copy_from_slice(piece), false)
                .unwrap();
        }
        if round % 2 == 0 {
            moment().await;
        }
        hosts.hop().await;
    }
    body.send_data(Bytes::new(), true).unwrap();
    let mut reading = answer.body().await;
    let mut come = Vec::new();
    assert_eq!(next(&mut reading, &mut come).await, Some(200_010_000));
    ends_well(reading, &come).await;
}

#[tokio::test]
async fn a_call_that_streams_both_ways_moves() {
    let hosts = Hosts::new().await;
    let client = Client::new(hosts.address).await;
    let (answer, mut body) = call(&client, "Sums").await;
    body.send_data(message(0).into(), false).unwrap();
    let mut reading = answer.body().await;
    let mut come = Vec::new();
    assert_eq!(next(&mut reading, &mut come).await, Some(0));
    let mut sum = 0;
    for round in 0..20 {
        let numbers = round * 100..(round + 1) * 100;
        let sent: Vec<u8> = numbers.clone().flat_map(message).collect();
        body.send_data(sent.into(), false).unwrap();
        let reads = async {
            for number in numbers {
                sum += number;
                assert_eq!(next(&mut reading, &mut come).await, Some(sum));
            }
        };
        tokio::join!(reads, hosts.hop());
    }
    body.send_data(Bytes::new(), true).unwrap();
    ends_well(reading, &come).await;
}
