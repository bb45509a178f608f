//! The gateway: completions are passed on event by event, and go on at another gateway in the middle of one.

mod kept;
mod model;

use std::collections::VecDeque;
use std::convert::Infallible;
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
use tcpmig::http::{Cursor, IntoMovable, Resume};

use kept::{Batch, Kept};
use model::{Error, Events, Http};

/// What the model server can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Model {
    /// It gives the rest of a stream again, behind the event of `Last-Event-ID`.
    Replays,
    /// It gives each stream once.
    GivesOnce,
}

/// A gateway.
pub(crate) struct Gateway {
    client: Http,
    model: Model,
    /// Where the model server is: `HOST:PORT`.
    at: String,
    /// Where other gateways find what this one keeps: `HOST:PORT`.
    private: String,
    kept: Arc<Kept>,
}

/// Where a stream goes on.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Place {
    /// How many events the client has.
    has: u64,
    /// Who reads the stream, if the model server gives it once.
    keeper: Option<Keeper>,
}

/// A gateway that keeps a stream.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Keeper {
    private: String,
    stream: u64,
}

impl Cursor for Place {
    const KIND: &'static str = "gateway-place";
    const VERSION: u32 = 1;
}

impl Gateway {
    pub(crate) fn new(model: Model, at: String, private: String) -> Arc<Self> {
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
            .route("/kept/{stream}/{has}", get(give))
            .with_state(self.clone())
    }

    /// Ready when no other gateway needs this one.
    pub(crate) async fn emptied(&self) {
        self.kept.emptied().await;
    }

    async fn begin(&self, request: &Value) -> Result<Place, Error> {
        let keeper = match self.model {
            Model::Replays => None,
            Model::GivesOnce => {
                let events = Events::begin(&self.client, &self.at, request, None).await?;
                Some(Keeper {
                    private: self.private.clone(),
                    stream: self.kept.begin(events),
                })
            }
        };
        Ok(Place { has: 0, keeper })
    }

    async fn batch(&self, keeper: &Keeper, has: u64) -> Result<Batch, Error> {
        if keeper.private == self.private {
            let batch = self.kept.after(keeper.stream, has).await;
            return batch.ok_or(Error::Status(StatusCode::GONE));
        }
        let Keeper { private, stream } = keeper;
        let request = Request::get(format!("http://{private}/kept/{stream}/{has}"));
        // INVARIANT: the address was another gateway's own.
        let request = request.body(Body::empty()).expect("a request");
        let answer = self.client.request(request).await?;
        if answer.status() != StatusCode::OK {
            return Err(Error::Status(answer.status()));
        }
        let body = answer.into_body().collect().await?.to_bytes();
        Ok(serde_json::from_slice(&body)?)
    }
}

async fn give(
    State(gateway): State<Arc<Gateway>>,
    Path((stream, has)): Path<(u64, u64)>,
) -> Result<Json<Batch>, StatusCode> {
    let batch = gateway.kept.after(stream, has).await;
    batch.map(Json).ok_or(StatusCode::GONE)
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
    async fn next(&mut self, place: &Place) -> Result<Option<String>, Error> {
        if let (From::Nobody, None) = (&self.from, &place.keeper) {
            let Gateway { client, at, .. } = &*self.gateway;
            let after = (place.has > 0).then_some(place.has);
            self.from = From::Model(Events::begin(client, at, &self.request, after).await?);
        }
        if let From::Model(events) = &mut self.from {
            return events.next().await;
        }
        if let From::Keeper(events) = &mut self.from
            && let Some(event) = events.pop_front()
        {
            return Ok(Some(event));
        }
        let Some(keeper) = &place.keeper else {
            return Ok(None);
        };
        let mut events = VecDeque::from(self.gateway.batch(keeper, place.has).await?.events);
        let next = events.pop_front();
        self.from = From::Keeper(events);
        Ok(next)
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
    let events = stream::unfold(Some((tail, place)), async |state| {
        let (mut tail, mut place) = state?;
        let next = tail.next(&place).await;
        place.has += 1;
        match next {
            Ok(Some(event)) => Some(((event, place.clone()), Some((tail, place)))),
            Ok(None) => None,
            Err(error) => Some(((kept::failed(&error), place), None)),
        }
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
