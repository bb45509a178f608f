//! The next version of a server takes thousands of WebSockets over.

use std::path::Path;
use std::time::Instant;

use tcpmig::http::Server;
use tcpmig::upgrade::{Arrivals, Predecessor, Successor};
use tcpmig_format::Layer;
use tcpmig_sys::lab::Lab;

use crate::fleet::client::Seen;
use crate::fleet::server::movable;
use crate::fleet::{Keys, Orders};
use crate::part::{Part, Role};
use crate::{Arguments, spread, used};

pub(crate) fn measure(given: &Arguments) {
    let mut lab = Lab::new().unwrap();
    let host = lab.host("host", &["198.18.0.1/24"]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (keys, path) = (Keys::new(), folder.path().join("server.sock"));
    let start = || Part::start(&host, &Role::Version(keys.clone(), path.clone()));
    let mut first = start();
    let address = first.hear();
    let task = given.task(&keys, &address, true);
    let mut clients = Part::start(&host, &Role::Clients(task));
    assert_eq!(clients.hear(), "connected");
    clients.say("load");
    assert_eq!(clients.hear(), "loading");
    let before = used(&first);
    let begin = Instant::now();
    let second = start();
    assert_eq!(second.hear(), address);
    let ready = begin.elapsed();
    assert_eq!(first.hear(), "ended");
    let used = [&first, &second].map(|part| used(part));
    assert!(first.child.wait().unwrap().success());
    let took = begin.elapsed();
    clients.say("stop");
    let seen: Seen = serde_json::from_str(&clients.hear()).unwrap();
    println!(
        "upgrade with {} WebSockets over TLS: {:.2} s from the start of the new process to the end of the old one, of which {:.2} s until it is ready; processor time {:.2} s of the old one, {:.2} s of the new one",
        given.sessions,
        took.as_secs_f64(),
        ready.as_secs_f64(),
        used[0] - before,
        used[1]
    );
    println!(
        "    {} messages, {} failed {:?}; answered within {}",
        seen.requests,
        seen.failed.len(),
        seen.failed.first(),
        spread(seen.answered_us)
    );
    assert_eq!(seen.failed, Vec::<String>::new());
}

/// A version of the server: until the next one has everything.
pub(crate) async fn version(keys: &Keys, path: &Path, mut orders: Orders) {
    let movable = movable(keys);
    let server = Server::new(movable.clone());
    let check = move |layers: &[Layer]| Ok(movable.check(layers)?);
    let (listener, mut arrivals) = match Successor::connect(path, check).await.unwrap() {
        None => {
            let listener = crate::fleet::server::listen(([127, 0, 0, 1], 0).into());
            (listener.into_std().unwrap(), Arrivals::none())
        }
        Some(mut successor) => {
            let listener = successor.listener("https").unwrap();
            (listener, successor.ready().await.unwrap())
        }
    };
    let predecessor = Predecessor::bind(path).unwrap();
    let mut predecessor = predecessor.listener("https", &listener).unwrap();
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    (orders.say)(&listener.local_addr().unwrap().to_string());
    let arrived = |arrival| {
        let (server, say) = (server.clone(), orders.say.clone());
        tokio::spawn(async move {
            if let Err(error) = server.arrived(arrival).await {
                say(&format!("a session that was taken over ended: {error}"));
            }
        });
    };
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (server, (stream, _)) = (server.clone(), accepted.unwrap());
                stream.set_nodelay(true).unwrap();
                tokio::spawn(async move { server.serve(stream).await.map(drop) });
            }
            Some(arrival) = arrivals.next() => arrived(arrival),
            next = predecessor.next() => {
                next.take_all(&server, &mut arrivals, arrived).await.unwrap();
                return (orders.say)("ended");
            }
            order = orders.heard.recv() => if order.is_none() {
                return;
            }
        }
    }
}
