//! A service of systemd: the same program in each version, and after a crash.

use std::io::Read;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;

use tcpmig::http::Server;
use tcpmig::upgrade::systemd::{Notify, Passed};
use tcpmig::upgrade::{Arrivals, Predecessor, Store, Successor};
use tcpmig_format::Layer;
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::{LocalSet, spawn_local};

use crate::app::{Visits, app};
use crate::chat::handler;

/// Where its versions find each other.
pub(crate) const SOCKET: &str = "TCPMIG_TEST_SERVICE_AT";

pub(crate) const ARGUMENTS: [&str; 4] = [
    "service_of_the_tests",
    "--exact",
    "--nocapture",
    "--include-ignored",
];

pub(crate) fn run() {
    // It ends with the test, whoever is its parent then.
    std::thread::spawn(|| {
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(1);
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, serve());
}

async fn serve() {
    let path = PathBuf::from(std::env::var_os(SOCKET).expect("where to wait"));
    let notify = Notify::from_environment().unwrap();
    let notify = notify.expect("somebody wants to know");
    let mut passed = Passed::take().unwrap();
    let (store, kept) = Store::open(notify, &mut passed).unwrap();
    let slow = Arc::default();
    let chat = handler("service", Arc::clone(&slow));
    let movable = app("service", slow)
        .with_state::<Visits>()
        .with_websockets(chat);
    let server = Server::new(movable.clone());
    let check = move |layers: &[Layer]| Ok(movable.check(layers)?);
    let successor = Successor::connect(&path, check).await.unwrap();
    let is_first = successor.is_none();
    let (listener, mut arrivals) = match successor {
        None => (passed.listener("http").unwrap(), Arrivals::none()),
        Some(mut successor) => {
            let listener = successor.listener("http").unwrap();
            (listener, successor.ready().await.unwrap())
        }
    };
    let predecessor = Predecessor::bind(&path).unwrap();
    let mut predecessor = predecessor.listener("http", &listener).unwrap();
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    let mut reload = signal(SignalKind::hangup()).unwrap();
    let mut note = signal(SignalKind::user_defined1()).unwrap();
    println!("\n{} came back", kept.len());
    let arrived = |arrival| {
        let server = server.clone();
        spawn_local(async move { server.arrived(arrival).await.map(drop) });
    };
    kept.into_iter().for_each(arrived);
    if is_first {
        store.notify().ready().unwrap();
    }
    loop {
        let server = server.clone();
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted.unwrap();
                spawn_local(async move { server.serve(stream).await.map(drop) });
            }
            Some(arrival) = arrivals.next() => arrived(arrival),
            _ = reload.recv() => {
                store.notify().reloading().unwrap();
                let mut next = Command::new(std::env::current_exe().unwrap());
                // It has the same environment and standard input; what systemd has passed is not for it.
                let next = next.args(ARGUMENTS).stdin(Stdio::inherit()).spawn();
                assert!(next.is_ok(), "{next:?}");
            }
            _ = note.recv() => {
                let mut noted = 0;
                for session in server.connections() {
                    noted += usize::from(store.note(&session).await.is_ok());
                }
                assert_eq!(noted, store.count());
                println!("\nnoted {noted}");
            }
            next = predecessor.next() => {
                store.notify().replaced_by(next.process()).unwrap();
                next.take_all(&server, &mut arrivals, arrived).await.unwrap();
                // What was noted here is forgotten when its tasks have seen that it is gone.
                while store.count() > 0 {
                    tokio::task::yield_now().await;
                }
                return;
            }
        }
    }
}
