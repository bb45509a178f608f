//! One process that moves connections of several network namespaces, from none of them.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use tcpmig::driver::{Acceptor, Destination, Ending, Mover, Options};
use tcpmig::steer::Redirected;
use tcpmig_lock::{Backend, Locker};
use tcpmig_sys::lab::Host;
use tcpmig_sys::netns::Namespace;

use crate::support::{Family, Keys, Net, both_ways, endpoint, flow, kernel_test};

fn namespace(host: &Host) -> Namespace {
    host.run(Namespace::current).unwrap().unwrap()
}

fn locker(host: &Host) -> Arc<dyn Locker> {
    let locker = Backend::Nftables.open_in(namespace(host).as_fd());
    Arc::from(locker.unwrap())
}

kernel_test!(
    a_process_that_is_elsewhere_moves_connections_of_two_namespaces,
    || {
        let net = Net::new();
        let keys = Keys::new();
        let [pem_a, pem_b] = ["host-a", "host-b"].map(|name| keys.pem(name));
        let steer = net.a.run(|| {
            let target = "198.18.0.2".parse().unwrap();
            Redirected::new(target, Duration::from_secs(60)).unwrap()
        });
        let steer = Arc::new(steer.unwrap());
        let [there, back] = [net.connect(Family::V4), net.connect(Family::V4)];
        let (far, server) = there;
        let (idle_far, idle) = back;
        let flows = [flow(&server), flow(&idle)];
        let (locker_a, locker_b) = (locker(&net.a), locker(&net.b));
        let (of_a, of_b) = (namespace(&net.a), namespace(&net.b));
        // The thread of this runtime is at the peer, which has no address of the two hosts.
        let arrived = net.peer.run(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                let ends = [(&pem_a, 7077), (&pem_b, 7078)];
                let [end_a, end_b] = ends.map(|(pem, port)| {
                    endpoint(format!("198.18.0.9:{port}").parse().unwrap(), pem)
                });
                let mut arrivals = Acceptor::new(end_b, locker_b)
                    .in_namespace(of_b)
                    .unwrap()
                    .serve();
                let mover = Mover::new(end_a, locker_a, Options::default())
                    .in_namespace(of_a)
                    .unwrap();
                let to = Destination {
                    address: "198.18.0.9:7078".parse().unwrap(),
                    name: "host-b".to_owned(),
                    steer,
                };
                let mut arrived = Vec::new();
                for socket in [server, idle].map(OwnedFd::from) {
                    let outcome = mover.move_out(socket, None, &to).await;
                    assert!(matches!(outcome.ending, Ending::Moved), "{outcome:?}");
                    arrived.push(arrivals.next().await.unwrap());
                }
                arrived
            })
        });
        let arrived = arrived.unwrap();
        for (arrived, (far, flow)) in arrived.into_iter().zip([far, idle_far].iter().zip(flows)) {
            assert_eq!(arrived.flow, flow);
            let of = Namespace::of_socket(arrived.socket.as_fd()).unwrap();
            let is_there = net.b.run(move || of.is_current().unwrap()).unwrap();
            assert!(is_there, "it was built in another namespace");
            both_ways(far, &arrived.socket.into());
        }
    }
);
