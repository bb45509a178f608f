//! Counts, a number an event.

use std::convert::Infallible;
use std::time::Duration;

use axum::Router;
use axum::response::IntoResponse;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::routing::get;
use tcpmig::http::{IntoMovable, Resume, serve};

use crate::ordinary::Given;

pub(crate) async fn run(given: Given) {
    let app = Router::new().route("/sse", get(numbers));
    serve(given.listener, app.into_make_service(), given.site)
        .with_drain(given.term, given.to)
        .await
        .unwrap();
}

async fn numbers(resume: Resume<u64>) -> impl IntoResponse {
    let numbers = resume.unfold(0, async |number: u64| {
        tokio::time::sleep(Duration::from_millis(2)).await;
        let event = Event::default().data(number.to_string());
        Some((Ok::<_, Infallible>(event), number + 1))
    });
    Sse::new(numbers)
        .keep_alive(KeepAlive::default())
        .movable(resume)
}
