//! Answers at once, or later.

use std::time::Duration;

use axum::Router;
use axum::routing::get;
use tcpmig::http::serve;

use crate::ordinary::Given;

pub(crate) async fn run(given: Given) {
    let app = Router::new()
        .route("/", get(async || "here"))
        .route("/slow", get(slow));
    serve(given.listener, app.into_make_service(), given.site)
        .with_drain(given.term, given.to)
        .await
        .unwrap();
}

async fn slow() -> &'static str {
    tokio::time::sleep(Duration::from_millis(500)).await;
    "at last"
}
