//! What does not move, and says why.

use std::time::Duration;

use tcpmig::http::{Movable, Obstacle, SessionError};
use tcpmig::session::Tcp;

use crate::app::{Slow, Visits, app, bytes};
use crate::client::Client;
use crate::host::{Hosts, moment};

async fn impatient() -> Hosts {
    Hosts::with(|movable| movable.drain_within(Duration::from_millis(300))).await
}

#[tokio::test]
async fn the_obstacle_is_named_and_the_connection_goes_on() {
    let hosts = impatient().await;
    let client = Client::new(hosts.address).await;
    let slow = client.get("/slow").await;
    while hosts.begun() < 1 {
        moment().await;
    }
    let moving = hosts.try_move();
    // It comes while the move is waited for, and is served here then.
    let held = async {
        moment().await;
        client.get("/").await
    };
    let (moved, held) = tokio::join!(moving, held);
    assert_eq!(moved, Err(Obstacle::Service));
    assert_eq!(held.body().await.whole().await.0, b"a");
    hosts.slow.release.notify_waiters();
    assert_eq!(slow.body().await.whole().await.0, b"at last");

    let plain = client.get("/plain/1?len=3000000&wait=5").await.body().await;
    assert_eq!(hosts.try_move().await, Err(Obstacle::Response));
    drop(plain);
    let (upload, mut body) = client.post("/upload").await;
    body.send_data("some".into(), false).unwrap();
    while hosts.begun() < 2 {
        moment().await;
    }
    assert_eq!(hosts.try_move().await, Err(Obstacle::Request));
    body.send_data("more".into(), true).unwrap();
    assert_eq!(upload.body().await.whole().await.0, b"8");

    // And nothing of that is in the way now.
    let download = client.get("/file/9?len=1000000&wait=1").await.body().await;
    hosts.hop().await;
    assert!(download.whole().await.0 == bytes(9, 0, 1_000_000));
    assert_eq!(client.text("/").await, "b");
}

#[tokio::test]
async fn who_does_not_speak_it_takes_no_connection() {
    let hosts = Hosts::new().await;
    let client = Client::new(hosts.address).await;
    assert_eq!(client.text("/").await, "a");
    let layers = hosts.hop().await;
    let slow = std::sync::Arc::new(Slow::default());
    app("c", slow).check(&layers).expect("it is known");
    let router = hyper_util::service::TowerToHyperService::new(axum::Router::<()>::new());
    let plain: Movable<_, Tcp> = Movable::new(router).with_state::<Visits>();
    let error = plain.check(&layers).unwrap_err();
    assert!(matches!(error, SessionError::Unknown { .. }), "{error}");
    for cut in 0..layers[0].payload.len() {
        let mut cut_off = layers.clone();
        cut_off[0].payload = layers[0].payload[..cut].to_vec().into();
        let slow = std::sync::Arc::new(Slow::default());
        app("c", slow).check(&cut_off).unwrap_err();
    }
}
