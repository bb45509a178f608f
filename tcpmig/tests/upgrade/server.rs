//! The server: the same program in each version.

use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tcpmig::handover::Refusal;
use tcpmig::http::Server;
use tcpmig::upgrade::{Arrivals, Predecessor, Successor};
use tcpmig_format::Layer;
use tokio::task::LocalSet;

use crate::app::{Visits, app};
use crate::chat::handler;

/// Where versions find each other, and what this one does wrong.
pub(crate) const VARIABLES: [&str; 2] = ["TCPMIG_TEST_UPGRADE_AT", "TCPMIG_TEST_UPGRADE_BAD"];

/// How long a version may take to answer for a session.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// What a version does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bad {
    /// It ends before it is ready.
    Early,
    /// It crashes when the first session comes.
    Crashing,
    /// It never answers for a session.
    Hanging,
    /// It refuses sessions, and ends then.
    Refusing,
}

impl Bad {
    pub(crate) const ALL: [Self; 4] = [Self::Early, Self::Crashing, Self::Hanging, Self::Refusing];

    pub(crate) fn name(self) -> String {
        format!("{self:?}")
    }

    /// What it makes of a session.
    fn check(self) -> Result<(), Refusal> {
        match self {
            Self::Early => Ok(()),
            Self::Crashing => std::process::abort(),
            Self::Hanging => loop {
                std::thread::park();
            },
            Self::Refusing => {
                // The answer is written first.
                std::thread::spawn(|| {
                    std::thread::sleep(Duration::from_millis(200));
                    std::process::exit(0);
                });
                Err(Refusal::from("not this one".to_owned()))
            }
        }
    }
}

pub(crate) fn run() {
    let path = std::env::var_os(VARIABLES[0]).expect("where to wait");
    let bad = std::env::var(VARIABLES[1]).ok();
    let bad = Bad::ALL.into_iter().find(|known| Some(known.name()) == bad);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, serve(Path::new(&path), bad));
}

async fn serve(path: &Path, bad: Option<Bad>) {
    let slow = Arc::default();
    let chat = handler("server", Arc::clone(&slow));
    let movable = app("server", slow)
        .with_state::<Visits>()
        .with_websockets(chat);
    let server = Server::new(movable.clone());
    let check = move |layers: &[Layer]| match bad {
        Some(bad) => bad.check(),
        None => Ok(movable.check(layers)?),
    };
    let (listener, mut arrivals) = match Successor::connect(path, check).await.unwrap() {
        None => (TcpListener::bind("127.0.0.1:0").unwrap(), Arrivals::none()),
        Some(_) if bad == Some(Bad::Early) => return,
        Some(mut successor) => {
            let listener = successor.listener("http").unwrap();
            (listener, successor.ready().await.unwrap())
        }
    };
    let predecessor = match bad {
        // Its socket would be in the way of the next.
        Some(_) => Predecessor::bind(path.with_extension("bad")),
        None => Predecessor::bind(path),
    };
    let predecessor = predecessor.unwrap().answer_within(ANSWER_WITHIN);
    let mut predecessor = predecessor.listener("http", &listener).unwrap();
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    let arrived = |arrival| {
        let server = server.clone();
        tokio::task::spawn_local(async move { server.arrived(arrival).await.map(drop) });
    };
    println!("\nserving on {}", listener.local_addr().unwrap().port());
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (server, (stream, _)) = (server.clone(), accepted.unwrap());
                println!("\naccepted");
                tokio::task::spawn_local(async move { server.serve(stream).await.map(drop) });
            }
            Some(arrival) = arrivals.next() => arrived(arrival),
            next = predecessor.next() => {
                if next.take_all(&server, &mut arrivals, arrived).await.is_ok() {
                    return;
                }
                println!("\ngoes on");
            }
        }
    }
}
