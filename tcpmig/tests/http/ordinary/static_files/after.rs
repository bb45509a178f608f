//! Serves the files of a folder.

use axum::Router;
use tcpmig::http::{RangeLayer, serve};
use tower_http::services::ServeDir;

use crate::ordinary::Given;

pub(crate) async fn run(given: Given) {
    let app = Router::new()
        .nest_service("/files", ServeDir::new(given.folder))
        .layer(RangeLayer);
    serve(given.listener, app.into_make_service(), given.site)
        .with_drain(given.term, given.to)
        .await
        .unwrap();
}
