//! Who is told of moves: layers, the application, and those who ask what a connection is doing.

use std::convert::Infallible;
use std::io::{BufRead, BufReader, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::HeaderValue;
use axum::middleware::{Next, from_fn};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper_util::service::TowerToHyperService;
use tcpmig::http::{Activity, IntoMovable, Movable, Noticed, Once, Resume};
use tower_http::trace::TraceLayer;

use crate::requests::{connect, response};
use crate::scene::Scene;
use crate::support::{PATIENCE, kernel_test, until};

const ID: &str = "x-request-id";

/// Gives each request an id, unless it has one, and tells the peer.
async fn request_id(name: &'static str, mut request: Request, next: Next) -> Response {
    static NUMBER: AtomicU64 = AtomicU64::new(1);
    let mut id = || {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        HeaderValue::from_str(&format!("{name}-{number}")).unwrap()
    };
    let id = request.headers_mut().entry(ID).or_insert_with(&mut id);
    let id = id.clone();
    let mut response = next.run(request).await;
    response.headers_mut().insert(ID, id);
    response
}

/// Each event is the id of the request.
async fn ids(resume: Resume<u64>, request: Request) -> impl IntoResponse {
    let id = request.headers()[ID].to_str().unwrap().to_owned();
    let events = resume.unfold(0, move |number: u64| {
        let event = Event::default().data(&id);
        async move {
            tokio::time::sleep(Duration::from_millis(1)).await;
            Some((Ok::<_, Infallible>(event), number + 1))
        }
    });
    Sse::new(events).movable(resume)
}

#[derive(Clone, Default)]
struct Told {
    /// How many requests were traced.
    traced: Arc<AtomicU64>,
    notices: Arc<Mutex<Vec<On>>>,
}

/// On which host, what, about which request.
type On = (&'static str, Noticed, Option<String>);

impl Told {
    fn app(&self, name: &'static str) -> Movable<crate::app::App> {
        let Self { traced, notices } = self.clone();
        let trace = move |_: &Request<_>, _: &tracing::Span| {
            traced.fetch_add(1, Ordering::Relaxed);
        };
        let trace = TraceLayer::new_for_http().on_request(trace);
        let app = Router::new()
            .route("/ids", get(ids))
            .route("/plain", get(async || "at rest"))
            .layer(from_fn(move |request, next| {
                request_id(name, request, next)
            }))
            .layer(Once::new(trace));
        Movable::new(TowerToHyperService::new(app))
            .settle(Duration::from_millis(20))
            .answer_within(PATIENCE)
            .on_move(move |notice| {
                let told = (name, notice.what, notice.request.clone());
                notices.lock().unwrap().push(told);
            })
    }
}

kernel_test!(layers_and_the_application_are_told, || {
    let told = Told::default();
    let mut scene = Scene::serving_these(["a", "b"].map(|name| told.app(name)));
    let mut stream = connect(&scene);
    let other = stream.try_clone().unwrap();
    let mut reader = BufReader::new(&other);
    let mut ask = |path: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
    };
    ask("/plain");
    let (head, _) = response(&mut reader);
    assert!(head.contains("x-request-id: a-1"), "{head}");
    let doing = scene.doing();
    assert_eq!((doing.what, doing.request), (Activity::Idle, None));
    ask("/ids");
    let mut next = || {
        let mut line = String::new();
        while !line.starts_with("data: ") {
            line.clear();
            assert!(reader.read_line(&mut line).unwrap() > 0);
        }
        line
    };
    for hop in 0..4 {
        for _ in 0..10 {
            assert_eq!(next(), "data: a-2\n");
        }
        // What came along is read before anything is sent here.
        until("something is sent here", || {
            matches!(scene.doing().what, Activity::Response { sent: Some(1..) })
        });
        let doing = scene.doing();
        assert_eq!(doing.request.as_deref(), Some("GET /ids"));
        assert!(doing.to_string().starts_with("GET /ids: in a response, "));
        scene.hop();
        let from = ["a", "b"][hop % 2];
        let to = ["b", "a"][hop % 2];
        let both = [
            (from, Noticed::Left, Some("GET /ids".to_owned())),
            (to, Noticed::Resumed, Some("GET /ids".to_owned())),
        ];
        until("both are told", || {
            let mut notices = told.notices.lock().unwrap();
            let all = notices.len() == 2;
            if all {
                notices.sort_by_key(|notice| notice.1 == Noticed::Resumed);
                assert_eq!(notices[..], both);
                notices.clear();
            }
            all
        });
    }
    assert_eq!(next(), "data: a-2\n");
    assert_eq!(told.traced.load(Ordering::Relaxed), 2);
});

kernel_test!(a_websocket_says_what_it_is, || {
    let mut scene = Scene::new();
    let stream = crate::handed::open(&scene, "/axum-chat");
    for _ in 0..3 {
        until("it has begun", || scene.doing().what == Activity::Upgraded);
        let request = scene.doing().request;
        assert_eq!(request.as_deref(), Some("GET /axum-chat"));
        scene.hop();
    }
    drop(stream);
});
