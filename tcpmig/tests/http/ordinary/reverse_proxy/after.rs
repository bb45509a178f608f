//! Passes requests on to another server.

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use tcpmig::http::{RangeLayer, serve};

use crate::ordinary::{Given, UPSTREAM};

type Http = Client<HttpConnector, Body>;

pub(crate) async fn run(given: Given) {
    let client: Http = Client::builder(TokioExecutor::new()).build(HttpConnector::new());
    let app = Router::new()
        .route("/{*path}", any(pass_on))
        .layer(RangeLayer)
        .with_state(client);
    serve(given.listener, app.into_make_service(), given.site)
        .with_drain(given.term, given.to)
        .await
        .unwrap();
}

async fn pass_on(State(client): State<Http>, mut request: Request) -> Result<Response, StatusCode> {
    let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
    *request.uri_mut() = Uri::try_from(format!("http://{UPSTREAM}{target}")).unwrap();
    let answer = client.request(request).await;
    Ok(answer.map_err(|_| StatusCode::BAD_GATEWAY)?.into_response())
}
