//! Serves the files of a folder.

use axum::Router;
use tower_http::services::ServeDir;

use crate::ordinary::Given;

pub(crate) async fn run(given: Given) {
    let app = Router::new().nest_service("/files", ServeDir::new(given.folder));
    axum::serve(given.listener, app)
        .with_graceful_shutdown(given.term)
        .await
        .unwrap();
}
