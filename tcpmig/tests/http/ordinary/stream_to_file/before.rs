//! Writes what is sent into a file.

use std::path::PathBuf;

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::StatusCode;
use axum::routing::post;
use futures_util::StreamExt;
use tokio::fs::File;
use tokio::io::AsyncWriteExt;

use crate::ordinary::Given;

pub(crate) async fn run(given: Given) {
    let app = Router::new()
        .route("/file/{name}", post(save))
        .layer(DefaultBodyLimit::disable())
        .with_state(given.folder);
    axum::serve(given.listener, app)
        .with_graceful_shutdown(given.term)
        .await
        .unwrap();
}

async fn save(
    Path(name): Path<String>,
    State(folder): State<PathBuf>,
    body: Body,
) -> Result<String, StatusCode> {
    let mut file = File::create(folder.join(name)).await.unwrap();
    let mut pieces = body.into_data_stream();
    let mut len = 0;
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|_| StatusCode::BAD_REQUEST)?;
        len += piece.len();
        file.write_all(&piece).await.unwrap();
    }
    file.flush().await.unwrap();
    Ok(format!("{len} bytes\n"))
}
