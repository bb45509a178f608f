//! An OpenAI-style gateway to a model server, whose streams of tokens go on at another gateway when this one is deployed anew.
//!
//! ```text
//! TCPMIG_SITE=a.toml gateway LISTEN PRIVATE MODEL once|replays|moves HOST
//! TCPMIG_SITE=a.toml gateway 198.51.100.80:80 10.0.0.1:9000 10.0.0.9:8000 once b.example
//! ```
//!
//! Clients ask at LISTEN, the other gateways at PRIVATE for what this one keeps. On SIGTERM every connection moves to HOST in
//! the middle of what it receives. If the model server gives each stream once, this gateway ends when the streams that it
//! reads have come to their ends: the other gateways fetch them from it. With `moves` its connections to the model
//! server move too, and it ends at once; they come from the address of LISTEN.

mod llm;

use std::error::Error;
use std::net::SocketAddr;
use std::{env, process::ExitCode};

use tcpmig::http::{Site, serve};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use llm::{Gateway, Model};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let [listen, private, model, kind, to] = &arguments[..] else {
        return Err("usage: gateway LISTEN PRIVATE MODEL once|replays|moves HOST".into());
    };
    let kind = match &kind[..] {
        "once" => Model::GivesOnce,
        "replays" => Model::Replays,
        "moves" => Model::Moves(listen.parse::<SocketAddr>()?.ip()),
        _ => return Err(format!("{kind:?} is not once, replays or moves").into()),
    };
    let gateway = Gateway::new(kind, model.parse()?, private.clone());
    let for_others = TcpListener::bind(private).await?;
    let for_others = axum::serve(for_others, gateway.private());
    let for_others = tokio::spawn(async move { for_others.await });

    let listener = TcpListener::bind(listen).await?;
    let mut term = signal(SignalKind::terminate())?;
    let term = async move {
        term.recv().await;
    };
    let site = Site::from_env()?;
    let (mover, host) = (site.mover(), site.destination(to));
    let app = gateway.public().into_make_service();
    let served = gateway
        .takes(serve(listener, app, site))
        .with_drain(term, to)
        .await?;
    for stayed in served.stayed {
        eprintln!("{} did not move: {}", stayed.peer, stayed.why);
    }
    if let Some(host) = host {
        gateway.give_all(&mover, &host).await;
    }
    gateway.emptied().await;
    for_others.abort();
    Ok(())
}
