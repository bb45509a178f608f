//! A host with many sessions over TLS that are in use is drained, and no client sees it.

use std::future::Future;
use std::sync::{Arc, mpsc};
use std::thread;

use tcpmig_sys::kernel_test;
use tcpmig_sys::lab::{Host, PATIENCE};
use tcpmig_sys::netns::Namespace;
use tcpmig_sys::process::descriptors;
use tokio::sync::mpsc as orders;

use crate::fleet::client::{self, Seen, Task};
use crate::fleet::server::{self, Drained, Through};
use crate::fleet::{Keys, Orders, SERVICE};
use crate::hosts::Hosts;
use crate::support::{succeeds, text};

const SESSIONS: usize = 1000;

/// A server, or the clients, on a thread in the network of a host.
struct Part {
    orders: orders::UnboundedSender<String>,
    said: mpsc::Receiver<String>,
}

impl Part {
    fn start<F>(host: &Host, run: impl FnOnce(Orders) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()>,
    {
        let (orders, heard) = orders::unbounded_channel();
        let (say, said) = mpsc::channel();
        let namespace = host.namespace().path();
        thread::spawn(move || {
            let namespace = Namespace::open(&namespace).unwrap();
            namespace.enter_permanently().unwrap();
            let say = move |line: &str| {
                // The test may have ended.
                let _ = say.send(line.to_owned());
            };
            let orders = Orders {
                heard,
                say: Arc::new(say),
            };
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(run(orders));
        });
        Self { orders, said }
    }

    fn say(&self, order: &str) {
        self.orders.send(order.to_owned()).unwrap();
    }

    fn hear(&self) -> String {
        // All of them together take their time on a busy machine.
        let said = self.said.recv_timeout(PATIENCE * 4);
        said.expect("it goes on")
    }
}

kernel_test!(
    a_host_with_a_thousand_tls_sessions_in_use_is_drained,
    || {
        // This process has both ends of each, and the one that it moves to.
        descriptors::raise_limit().unwrap();
        let hosts = Hosts::new();
        let keys = Keys::new();
        let [a, b] = ["a", "b"].map(|of| {
            let to = if of == "a" { "b.example" } else { "a.example" };
            let through = Through::Agent(hosts.agent(of).socket.clone(), to.to_owned());
            let keys = keys.clone();
            let run = |orders| async move { server::serve(&keys, through, orders).await };
            let server = Part::start(hosts.host(of), run);
            assert_eq!(server.hear(), "ready");
            server
        });
        let task = Task {
            keys,
            address: SERVICE.parse().unwrap(),
            sessions: SESSIONS,
            rate: 300,
            talk: false,
        };
        let run = |orders| async move { client::run(&task, orders).await };
        let clients = Part::start(&hosts.peer, run);
        assert_eq!(clients.hear(), "connected");
        clients.say("load");
        assert_eq!(clients.hear(), "loading");
        let drain = ["drain", "--to", "b.example", "--wait"];
        let drained = hosts.verb("a", &drain);
        let said = succeeds(&drained);
        assert!(
            said.contains("1000 connections moved, none is left"),
            "{said}{}",
            text(&drained.stderr)
        );
        let drained: Drained = serde_json::from_str(&a.hear()).unwrap();
        clients.say("stop");
        let seen: Seen = serde_json::from_str(&clients.hear()).unwrap();
        println!("{drained:?}, {seen:?}");
        assert_eq!(drained.moved, SESSIONS);
        assert_eq!(seen.failed, Vec::<String>::new());
        // Each was asked once more afterwards.
        assert!(seen.requests >= SESSIONS as u64);
        b.say("count");
        assert_eq!(b.hear(), SESSIONS.to_string());
    }
);
