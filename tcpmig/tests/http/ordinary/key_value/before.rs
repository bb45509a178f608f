//! Keeps values under names.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::get;

use crate::ordinary::Given;

type Values = Arc<Mutex<HashMap<String, Bytes>>>;

pub(crate) async fn run(given: Given) {
    let app = Router::new()
        .route("/{name}", get(value).post(keep))
        .with_state(Values::default());
    axum::serve(given.listener, app)
        .with_graceful_shutdown(given.term)
        .await
        .unwrap();
}

async fn value(Path(name): Path<String>, State(values): State<Values>) -> Result<Bytes, StatusCode> {
    let values = values.lock().unwrap();
    values.get(&name).cloned().ok_or(StatusCode::NOT_FOUND)
}

async fn keep(Path(name): Path<String>, State(values): State<Values>, value: Bytes) {
    values.lock().unwrap().insert(name, value);
}
