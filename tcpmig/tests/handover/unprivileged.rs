//! Without `CAP_NET_ADMIN` over the connection's network namespace: the error names the call and the capability, and
//! the connection goes on.
//!
//! What is tried runs in a process of its own, this program again, because a test's own thread has the
//! capability. In a new user namespace it has it there, and not over the network namespace, which belongs
//! to the older one; this holds for root as for an ordinary user.

use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use tcpmig::capture::{Frozen, Plan};
use tcpmig::driver::{Destination, Mover, Options};
use tcpmig::steer::Redirected;
use tcpmig_lock::{Locker, Nftables, NoLock};
use tcpmig_sys::lab::test_name;
use tcpmig_sys::sockopt;

use crate::support::{
    Family, Keys, Net, Site, both_ways, end_of, endpoint, flow, kept, kernel_test,
};

/// Tells the helper process which it is, and gives it its keys.
const HELPER: &str = "TCPMIG_TEST_HELPER";
const KEYS: [&str; 3] = [
    "TCPMIG_TEST_CERTIFICATE",
    "TCPMIG_TEST_KEY",
    "TCPMIG_TEST_AUTHORITY",
];

/// Runs this test again as a helper without the capability, with the server's end of a connection as its
/// standard input; the connection and host B must not notice.
fn without_capability(test: &str) {
    let net = Net::new();
    let keys = Keys::new();
    let (a, b) = Site::pair_with(&net, &keys, &Options::default());
    b.serve();
    let (peer, server) = net.connect(Family::V4);
    let flow = flow(&server);
    let ends = net.peer.count(&end_of(flow));
    let mut command = net.a.command("unshare").unwrap();
    let output = command
        .args(["--user", "--map-root-user", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(HELPER, "1")
        .envs(KEYS.into_iter().zip(keys.pem("host-a")))
        .stdin(OwnedFd::from(server.try_clone().unwrap()))
        .output()
        .expect("unshare of util-linux is installed");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    both_ways(&peer, &server);
    assert_eq!(a.entries(flow), []);
    assert_eq!(b.entries(flow), []);
    b.no_arrival();
    assert_eq!(ends.packets(), 0, "RST or FIN at the peer");
}

fn is_helper() -> bool {
    std::env::var_os(HELPER).is_some()
}

fn the_connection() -> OwnedFd {
    std::io::stdin().as_fd().try_clone_to_owned().unwrap()
}

fn names(error: &str, call: &str) {
    for word in [call, "CAP_NET_ADMIN"] {
        assert!(error.contains(word), "no {word:?} in {error:?}");
    }
}

macro_rules! helped_test {
    ($name:ident, $helper:expr) => {
        kernel_test!($name, || {
            if is_helper() {
                let helper: fn() = $helper;
                return helper();
            }
            let path = concat!(module_path!(), "::", stringify!($name));
            without_capability(test_name(path));
        });
    };
}

helped_test!(locking_names_the_call_and_the_capability, || {
    let flow = Plan::read(the_connection().as_fd()).unwrap().flow();
    let locker = Nftables::new().unwrap();
    let error = locker.lock(&[flow], Duration::from_secs(1)).unwrap_err();
    names(&error.to_string(), "NFNL_MSG_BATCH_BEGIN");
    names(
        &locker.prepare().unwrap_err().to_string(),
        "NFNL_MSG_BATCH_BEGIN",
    );
});

helped_test!(freezing_names_the_call_and_the_capability, || {
    let socket = the_connection();
    let plan = Plan::read(socket.as_fd()).unwrap();
    let refused = Frozen::freeze(socket, plan, &NoLock, Duration::from_secs(1)).unwrap_err();
    names(&refused.to_string(), "setsockopt(TCP_REPAIR)");
    assert!(!sockopt::repair(refused.fd.as_fd()).unwrap());
});

helped_test!(moving_out_keeps_the_connection, || {
    let lockers: [(Arc<dyn Locker>, &str); 2] = [
        (Arc::new(Nftables::new().unwrap()), "NFNL_MSG_BATCH_BEGIN"),
        (Arc::new(NoLock), "setsockopt(TCP_REPAIR)"),
    ];
    let pem = KEYS.map(|name| std::env::var(name).unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let endpoint = endpoint("198.18.0.1:0".parse().unwrap(), &pem);
        let steer = Redirected::new("198.18.0.2".parse().unwrap(), Duration::from_secs(1));
        let to = Destination {
            address: "198.18.0.2:7077".parse().unwrap(),
            name: "host-b".to_owned(),
            steer: Arc::new(steer.unwrap()),
        };
        for (locker, call) in lockers {
            let mover = Mover::new(endpoint.clone(), locker, Options::default());
            let outcome = mover.move_out(the_connection(), None, &to).await;
            let (socket, reason): (TcpStream, String) = kept(outcome);
            names(&reason, call);
            assert!(!sockopt::repair(socket.as_fd()).unwrap());
        }
        endpoint.close("done").await;
    });
});
