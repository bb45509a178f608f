//! The gateway: completions are passed on event by event, and go on at another gateway in the middle of one.

mod kept;
mod model;
mod moved;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{Request, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::{StreamExt, stream};
use http_body_util::BodyExt;
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tcpmig::driver::{Destination, Mover};
use tcpmig::http::{Cursor, IntoMovable, MakeServices, Resume, Serve};

use kept::{Batch, Id, Kept, Missing};
use model::{DONE, Error, Events};

/// What the model server can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Model {
    /// It gives the rest of a stream again, behind the event of `Last-Event-ID`.
    Replays,
    /// It gives each stream once. The gateway that reads it keeps it for the others, until it ends.
    GivesOnce,
    /// It gives each stream once, and the connection to it moves too. That comes from this address, which all gateways have.
    Moves(IpAddr),
}

/// A gateway.
pub(crate) struct Gateway {
    client: Client<HttpConnector, Body>,
    model: Model,
    /// Where the model server is.
    at: SocketAddr,
    /// Where other gateways find what this one keeps: `HOST:PORT`.
    private: String,
    kept: Arc<Kept>,
}

/// Where a stream goes on.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Place {
    /// How many events the client has.
    has: u64,
    /// It has the last one.
    ended: bool,
    /// Who reads the stream, if the model server gives it once.
    keeper: Option<Keeper>,
}

/// A gateway that keeps a stream.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Keeper {
    private: String,
    stream: Id,
}

impl Cursor for Place {
    const KIND: &'static str = "gateway-place";
    const VERSION: u32 = 1;
}

impl Gateway {
    pub(crate) fn new(model: Model, at: SocketAddr, private: String) -> Arc<Self> {
        Arc::new(Self {
            client: Client::builder(TokioExecutor::new()).build(HttpConnector::new()),
            model,
            at,
            private,
            kept: Arc::default(),
        })
    }

    /// For clients.
    pub(crate) fn public(self: &Arc<Self>) -> Router {
        Router::new()
            .route("/v1/chat/completions", post(complete))
            .with_state(self.clone())
    }

    /// For the other gateways, and nobody else.
    pub(crate) fn private(self: &Arc<Self>) -> Router {
        Router::new()
            .route("/kept/{origin}/{number}/{has}", get(give))
            .with_state(self.clone())
    }

    /// Takes connections to the model server in that other gateways give.
    pub(crate) fn takes<M: MakeServices>(&self, serve: Serve<M>) -> Serve<M> {
        let kept = self.kept.clone();
        serve.with_others(
            moved::KIND,
            moved::VERSION..=moved::VERSION,
            move |arrival| {
                let taken = moved::take(&kept, arrival);
                async move {
                    if let Err(error) = taken {
                        eprintln!("a stream of the model server is lost: {error}");
                    }
                }
            },
        )
    }

    /// Gives connections to the model server away, if that is to be. What stays is still read here.
    pub(crate) async fn give_all(&self, way: &Mover, to: &Destination) {
        if let Model::Moves(_) = self.model {
            moved::give_all(&self.kept, way, to).await;
        }
    }

    /// Ready when no other gateway needs this one.
    pub(crate) async fn emptied(&self) {
        self.kept.emptied().await;
    }

    async fn begin(&self, request: &Value) -> Result<Place, Error> {
        let from = match self.model {
            Model::Replays => None,
            Model::GivesOnce => Some(None),
            Model::Moves(from) => Some(Some(from)),
        };
        let keeper = match from {
            None => None,
            Some(from) => {
                let events = Events::begin(self.at, from, request, None).await?;
                Some(Keeper {
                    private: self.private.clone(),
                    stream: self.kept.begin(&self.private, events),
                })
            }
        };
        Ok(Place {
            has: 0,
            ended: false,
            keeper,
        })
    }

    /// What a keeper has of its stream behind so many events; the stream may have come here meanwhile.
    async fn batch(&self, keeper: &mut Keeper, has: u64) -> Result<Batch, Error> {
        let gone = |_| Error::Answer(StatusCode::GONE);
        if !self.kept.has(&keeper.stream) && keeper.private != self.private {
            let answer = self.ask(keeper, has).await?;
            match answer.status() {
                StatusCode::OK => {
                    let body = answer.into_body().collect().await?.to_bytes();
                    return Ok(serde_json::from_slice(&body)?);
                }
                StatusCode::MISDIRECTED_REQUEST if self.kept.arrives(&keeper.stream).await => {}
                status => return Err(Error::Answer(status)),
            }
        }
        keeper.private.clone_from(&self.private);
        self.kept.after(&keeper.stream, has).await.map_err(gone)
    }

    async fn ask(
        &self,
        keeper: &Keeper,
        has: u64,
    ) -> Result<Response<hyper::body::Incoming>, Error> {
        let Keeper { private, stream } = keeper;
        let Id { origin, number } = stream;
        let target = format!("http://{private}/kept/{origin}/{number}/{has}");
        // INVARIANT: the addresses are other gateways' own.
        let request = Request::get(target).body(Body::empty()).expect("a request");
        Ok(self.client.request(request).await?)
    }
}

async fn give(
    State(gateway): State<Arc<Gateway>>,
    Path((origin, number, has)): Path<(String, u64, u64)>,
) -> Result<Json<Batch>, StatusCode> {
    let batch = gateway.kept.after(&Id { origin, number }, has).await;
    batch.map(Json).map_err(|missing| match missing {
        Missing::Moved => StatusCode::MISDIRECTED_REQUEST,
        Missing::Gone => StatusCode::GONE,
    })
}

/// The events that a client does not have yet.
struct Tail {
    gateway: Arc<Gateway>,
    request: Value,
    from: From,
}

enum From {
    /// Nobody has been asked.
    Nobody,
    Model(Events),
    Keeper(VecDeque<String>),
}

impl Tail {
    async fn next(&mut self, place: &mut Place) -> Result<String, Error> {
        let Some(keeper) = &mut place.keeper else {
            if let From::Model(events) = &mut self.from {
                return events.next().await;
            }
            let after = (place.has > 0).then_some(place.has);
            let mut events = Events::begin(self.gateway.at, None, &self.request, after).await?;
            let next = events.next().await;
            self.from = From::Model(events);
            return next;
        };
        if let From::Keeper(events) = &mut self.from
            && let Some(event) = events.pop_front()
        {
            return Ok(event);
        }
        let batch = self.gateway.batch(keeper, place.has).await?;
        let mut events = VecDeque::from(batch.events);
        let next = events.pop_front().ok_or(Error::Broken);
        self.from = From::Keeper(events);
        next
    }
}

async fn complete(
    State(gateway): State<Arc<Gateway>>,
    resume: Resume<Place>,
    Json(request): Json<Value>,
) -> Response {
    if request["stream"] != true {
        return (StatusCode::BAD_REQUEST, "only streams").into_response();
    }
    let place = match resume.cursor() {
        Some(place) => place,
        None => match gateway.begin(&request).await {
            Ok(place) => place,
            Err(error) => return (StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
        },
    };
    // Whoever goes on before the first event does not begin another stream.
    resume.set(place.clone());
    let tail = Tail {
        gateway,
        request,
        from: From::Nobody,
    };
    let events = stream::unfold((tail, place), async |(mut tail, mut place)| {
        if place.ended {
            if let Some(keeper) = &mut place.keeper {
                // It need not keep the last events any longer. If it cannot be reached, it finds that out by itself.
                let _ = tail.gateway.batch(keeper, place.has).await;
            }
            return None;
        }
        let next = tail.next(&mut place).await;
        place.ended = next.as_ref().map_or(true, |event| event == DONE);
        let event = next.unwrap_or_else(|error| kept::failed(&error));
        place.has += 1;
        Some(((event, place.clone()), (tail, place)))
    });
    let at = resume.clone();
    let events = events.map(move |(data, place)| {
        let event = Event::default().id(place.has.to_string()).data(data);
        at.set(place);
        Ok::<_, Infallible>(event)
    });
    Sse::new(events)
        .keep_alive(KeepAlive::default())
        .movable(resume)
}
