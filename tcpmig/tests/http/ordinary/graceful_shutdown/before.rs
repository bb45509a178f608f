//! Answers at once, or later.

use std::time::Duration;

use axum::Router;
use axum::routing::get;

use crate::ordinary::Given;

pub(crate) async fn run(given: Given) {
    let app = Router::new()
        .route("/", get(async || "here"))
        .route("/slow", get(slow));
    axum::serve(given.listener, app)
        .with_graceful_shutdown(given.term)
        .await
        .unwrap();
}

async fn slow() -> &'static str {
    tokio::time::sleep(Duration::from_millis(500)).await;
    "at last"
}
