//! One process that moves connections of several network namespaces, from none of them.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use tcpmig::driver::{Acceptor, Destination, Ending, Mover, Options};
use tcpmig::steer::Redirected;
use tcpmig_lock::{Backend, EntryKind, Locker};
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

kernel_test!(
    two_namespaces_of_one_process_give_each_other_connections_at_once,
    || {
        let net = Net::new();
        let keys = Keys::new();
        let hosts = [(&net.a, "host-a", 7077), (&net.b, "host-b", 7078)];
        let parts = hosts.map(|(host, name, port)| {
            let pem = keys.pem(name);
            let address: SocketAddr = format!("198.18.0.9:{port}").parse().unwrap();
            (
                name,
                pem,
                address,
                locker(host),
                [namespace(host), namespace(host)],
            )
        });
        // Each forwards to the other.
        let steers = [(&net.a, "198.18.0.2"), (&net.b, "198.18.0.1")].map(|(host, to)| {
            let target = to.parse().unwrap();
            let steer = || Redirected::new(target, Duration::from_secs(60)).unwrap();
            Arc::new(host.run(steer).unwrap())
        });
        let connections: Vec<_> = (0..8).map(|_| net.connect(Family::V4)).collect();
        let (far, near): (Vec<_>, Vec<_>) = connections.into_iter().unzip();
        // One process at the peer, which has no address of the two hosts.
        let arrived = net.peer.run(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                let [(a, a_to, mut at_a), (b, b_to, mut at_b)] = {
                    let mut steers = steers.into_iter();
                    let [to_b, to_a] = [parts[1].2, parts[0].2];
                    let mut others = [(to_b, "host-b"), (to_a, "host-a")].into_iter();
                    parts.map(|(_, pem, address, locker, [of_mover, of_acceptor])| {
                        let endpoint = endpoint(address, &pem);
                        let arrivals = Acceptor::new(endpoint.clone(), locker.clone())
                            .in_namespace(of_acceptor)
                            .unwrap()
                            .serve();
                        let mover = Mover::new(endpoint, locker, Options::default())
                            .in_namespace(of_mover)
                            .unwrap();
                        let (address, name) = others.next().unwrap();
                        let to = Destination {
                            address,
                            name: name.to_owned(),
                            steer: steers.next().unwrap(),
                        };
                        (mover, to, arrivals)
                    })
                };
                // All leave a, and come back as soon as they have come: both give away and take in meanwhile.
                let there = async {
                    for socket in near.into_iter().map(OwnedFd::from) {
                        let outcome = a.move_out(socket, None, &a_to).await;
                        assert!(matches!(outcome.ending, Ending::Moved), "{outcome:?}");
                    }
                };
                let back = async {
                    for _ in &far {
                        let arrived = at_b.next().await.unwrap();
                        let of = Namespace::of_socket(arrived.socket.as_fd()).unwrap();
                        let outcome = b.move_out(arrived.socket, None, &b_to).await;
                        assert!(matches!(outcome.ending, Ending::Moved), "{outcome:?}");
                        assert!(!of.is_current().unwrap());
                    }
                };
                let home = async {
                    let mut home = Vec::new();
                    for _ in &far {
                        home.push(at_a.next().await.unwrap());
                    }
                    home
                };
                let ((), (), home) = tokio::join!(there, back, home);
                (home, far)
            })
        });
        let (home, far) = arrived.unwrap();
        for arrived in home {
            let of = Namespace::of_socket(arrived.socket.as_fd()).unwrap();
            let is_there = net.a.run(move || of.is_current().unwrap()).unwrap();
            assert!(is_there, "it was built in another namespace");
            let mut far = far.iter();
            let far = far.find(|far| far.local_addr().unwrap() == arrived.flow.remote());
            both_ways(far.unwrap(), &arrived.socket.into());
        }
        for host in [&net.a, &net.b] {
            // Nothing is left but what sends late packets of the way there on.
            let held = locker(host).list().unwrap();
            let locks = held.iter().filter(|entry| entry.kind == EntryKind::Lock);
            assert_eq!(locks.count(), 0, "{held:?}");
        }
    }
);
