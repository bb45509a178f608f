//! The suite that every locker has to pass, in this crate or elsewhere.
//!
//! [`conformance_tests!`](crate::conformance_tests) makes one `#[test]` of each [case](CASES), for a [`Setup`] that
//! says how the locker is made:
//!
//! ```
//! use tcpmig_lock::conformance::{Ground, Setup};
//! use tcpmig_lock::{Locker, NoLock};
//!
//! struct None;
//!
//! impl Setup for None {
//!     fn locker(&self, _ground: &Ground) -> Box<dyn Locker> {
//!         Box::new(NoLock)
//!     }
//! }
//!
//! tcpmig_lock::conformance_tests!(None);
//! # fn main() {}
//! ```
//!
//! Each case runs with real connections between private network namespaces, which it makes without privileges too,
//! and which go with it. It needs `ip` (iproute2) and, as an ordinary user, `unshare` (util-linux).
//!
//! No case is skipped. What a locker cannot do it says in its [`Features`], and the case then checks
//! that it behaves as it said: a locker that does not capture has to refuse to hand over, one that silences a whole
//! device has to silence it, and one that silences nothing must leave the traffic alone.
//!
//! Cases fail by panicking, as tests do.

mod cases;
mod checks;
mod faults;
pub mod isolate;
pub mod lab;
mod take_over;
pub mod wire;

use std::net::IpAddr;
use std::time::{Duration, Instant};

pub use cases::CASES;
use lab::{Connection, Host};

#[cfg(doc)]
use crate::Features;
use crate::{Locker, Scope};

/// How a locker is made for the suite.
pub trait Setup: Sync {
    /// A new handle that locks connections of [`Ground::server`], in whatever namespace it works in; see
    /// [`Host::run`]. All handles must see each other's locks.
    fn locker(&self, ground: &Ground) -> Box<dyn Locker>;

    /// A handle as [`locker`](Self::locker) makes it, which lets packets with this mark pass; none if it cannot.
    fn exempting(&self, ground: &Ground, mark: u32) -> Option<Box<dyn Locker>> {
        let _ = (ground, mark);
        None
    }

    /// A handle as [`locker`](Self::locker) makes it, whose guards hand over what arrives; none if it cannot.
    fn capturing(&self, ground: &Ground) -> Option<Box<dyn Locker>> {
        let _ = ground;
        None
    }

    /// Whether this kernel lacks what the locker needs, found out in the calling thread's network namespace by other
    /// means than the locker itself. The cases then assert that it refuses to lock, and leaves nothing.
    fn lacking(&self) -> bool {
        false
    }

    /// What is there now that the locker makes and removes, as text: the suite compares it from before the first lock
    /// with what is there after a sweep.
    fn traces(&self, ground: &Ground) -> String {
        let _ = ground;
        String::new()
    }
}

/// The network of a case: a server and a client with two ways between them.
///
/// `eth0` of both leads to a switch, on which `port1` is the server's and `port9` the client's port of the bridge
/// `br0`. `eth1` of both leads to the other directly.
pub struct Ground {
    /// The host of the connections that are locked.
    pub server: Host,
    /// The host of their peers.
    pub client: Host,
    /// What is between their `eth0`.
    pub switch: Host,
}

/// Where the namespaces are, for the process that a case starts.
const GROUND: &str = "TCPMIG_CONFORMANCE_GROUND";

impl Default for Ground {
    fn default() -> Self {
        Self::new()
    }
}

impl Ground {
    /// Makes the network. Needs `CAP_SYS_ADMIN` and `CAP_NET_ADMIN`, as a test has inside
    /// [`isolated`](isolate::isolated).
    #[must_use]
    pub fn new() -> Self {
        let (server, client) = (Host::new(), Host::new());
        let switch = lab::switch(&[(&server, 1), (&client, 9)]);
        server.ip(&format!(
            "link add eth1 type veth peer name eth1 netns {}",
            client.path()
        ));
        for (host, number) in [(&server, 1), (&client, 9)] {
            host.ip(&format!("address add 10.0.1.{number}/24 dev eth1"));
            host.ip(&format!(
                "address add 2001:db8:1::{number}/64 dev eth1 nodad"
            ));
            host.ip("link set eth1 up");
        }
        for (host, devices) in [
            (&server, ["eth0", "eth1"]),
            (&client, ["eth0", "eth1"]),
            (&switch, ["port1", "port9"]),
        ] {
            devices.into_iter().for_each(|device| host.settle(device));
        }
        Self {
            server,
            client,
            switch,
        }
    }

    /// For the environment of a process that is to use this network, as long as this value lives.
    fn variable(&self) -> String {
        [&self.server, &self.client, &self.switch]
            .map(Host::path)
            .join(":")
    }

    /// The network of the process that started this one for a case.
    fn of_parent() -> Self {
        let paths = std::env::var(GROUND).expect("the variable of the parent");
        let mut hosts = paths.split(':').map(Host::open);
        let mut next = || hosts.next().expect("three paths");
        Self {
            server: next(),
            client: next(),
            switch: next(),
        }
    }

    /// The server's addresses on `eth0`, of both families.
    #[must_use]
    pub fn addresses() -> [IpAddr; 2] {
        ["10.0.0.1", "2001:db8::1"].map(|text| text.parse().expect("an address"))
    }

    /// The server's addresses on `eth1`, of both families.
    #[must_use]
    pub fn other_addresses() -> [IpAddr; 2] {
        ["10.0.1.1", "2001:db8:1::1"].map(|text| text.parse().expect("an address"))
    }

    /// A connection from the client to this address of the server.
    #[must_use]
    pub fn connection(&self, address: IpAddr) -> Connection {
        Connection::new(&self.server, &self.client, address)
    }

    /// Sends both ways on a connection and waits until the client has sent its byte three times without an answer.
    /// Fails if anything has arrived.
    fn expect_silence(&self, connection: &mut Connection) {
        let mut wire = wire::Capture::new(&self.client);
        let from = connection.flow().remote();
        lab::send(&mut connection.server, b's');
        lab::send(&mut connection.client, b'c');
        let mut sent = 0;
        lab::eventually("the client sends again", || {
            let segments = wire.segments();
            let mine = |segment: &&wire::Segment| segment.from == from;
            sent += segments.iter().filter(mine).count();
            (sent >= 3).then_some(())
        });
        lab::expect_nothing(&connection.server);
        lab::expect_nothing(&connection.client);
    }

    /// What was sent in silence arrives, and the connection goes on.
    fn expect_sound(connection: &mut Connection) {
        lab::expect(&mut connection.server, b'c');
        lab::expect(&mut connection.client, b's');
        connection.ping();
    }

    /// A locked connection is as silent as the locker says.
    fn expect_locked(&self, silence: Scope, connection: &mut Connection) {
        match silence {
            Scope::Flows | Scope::Device => self.expect_silence(connection),
            Scope::Nothing => connection.ping(),
        }
    }

    /// It goes on.
    fn expect_unlocked(silence: Scope, connection: &mut Connection) {
        match silence {
            Scope::Flows | Scope::Device => Self::expect_sound(connection),
            Scope::Nothing => connection.ping(),
        }
    }
}

/// Waits until what the locker leaves is what was there before, and says what differs.
fn expect_traces(setup: &dyn Setup, ground: &Ground, before: &str) {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let after = setup.traces(ground);
        if after == before {
            return;
        }
        if Instant::now() >= end {
            let only = |one: &str, other: &str| -> Vec<String> {
                let others: Vec<&str> = other.lines().collect();
                let lines = one.lines().filter(|line| !others.contains(line));
                lines.map(str::to_owned).collect()
            };
            let (gone, new) = (only(before, &after), only(&after, before));
            panic!("something is left; there was {gone:#?}, and now there is {new:#?}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The lease of locks that a case ends itself.
const LEASE: Duration = Duration::from_secs(60);

/// One case of the suite.
#[derive(Clone, Copy)]
pub struct Case {
    /// Its name.
    pub name: &'static str,
    pub(crate) run: fn(&str, &dyn Setup),
}

/// Runs the case `case` as the test function whose path (with the crate in front, as `module_path!` gives it) is
/// `path`. [`conformance_tests!`](crate::conformance_tests) calls it.
///
/// # Panics
///
/// If the locker does not pass, or if there is no such case.
pub fn run_case(path: &str, case: &str, setup: &dyn Setup) {
    let case = CASES
        .iter()
        .find(|known| known.name == case)
        .expect("a case of the suite");
    // The harness knows test functions by their path inside the crate.
    let test = path.split_once("::").map_or(path, |(_, test)| test);
    if faults::is_holder() {
        return faults::hold(setup);
    }
    isolate::isolated(test, || {
        if setup.lacking() {
            refuses(setup);
        } else {
            (case.run)(test, setup);
        }
    });
}

/// On a kernel that lacks what the locker needs, it says so and leaves nothing.
fn refuses(setup: &dyn Setup) {
    println!("this kernel lacks what the locker needs: it has to refuse");
    let ground = Ground::new();
    let before = setup.traces(&ground);
    let locker = setup.locker(&ground);
    let mut flow = ground.connection(Ground::addresses()[0]);
    let error = locker.lock(&[flow.flow()], LEASE).map(drop);
    println!("{}", error.expect_err("a lock without what it needs"));
    expect_traces(setup, &ground, &before);
    flow.ping();
}

/// Makes one `#[test]` of each case of the [conformance suite](crate::conformance), for an expression that gives a
/// [`Setup`](crate::conformance::Setup). Each module can have it once.
#[macro_export]
macro_rules! conformance_tests {
    ($setup:expr) => {
        $crate::conformance_tests! { @each $setup;
            a_locked_flow_is_silent_both_ways_until_unlocked
            others_are_as_silent_as_promised
            flows_of_both_families_are_locked_in_one_call
            a_second_lock_is_refused_and_nothing_of_it_holds
            what_makes_no_sense_is_refused_and_locks_nothing
            a_lease_ends_by_itself
            a_renewed_lease_lasts
            a_renewal_never_shortens
            unlocking_what_is_over_is_no_error
            dropping_unlocks_and_detaching_does_not
            the_list_names_flow_lease_age_and_owner
            sweep_leaves_what_holds_and_nothing_else
            packets_with_an_exempt_mark_pass
            what_arrives_is_captured
            what_cannot_be_redirected_stays_locked
            a_locker_keeps_its_namespace
            many_flows_in_one_call
            a_lock_of_many_is_split_as_promised
            a_killed_holder_leaves_its_lock_to_the_lease
            a_killed_holder_takes_no_other_lock_with_it
            holders_killed_at_random_leave_nothing_behind
            what_a_dead_holder_left_is_taken_over_and_given_back
            what_a_living_holder_has_is_not_taken_over
            what_nobody_holds_is_locked_by_taking_over
        }
    };
    (@each $setup:expr; $($case:ident)*) => {
        $(
            #[test]
            fn $case() {
                $crate::conformance::run_case(
                    concat!(module_path!(), "::", stringify!($case)),
                    stringify!($case),
                    &$setup,
                );
            }
        )*

        /// The macro knows all cases.
        #[test]
        fn no_case_is_left_out() {
            let made = [$(stringify!($case)),*];
            let known: Vec<&str> = $crate::conformance::CASES.iter().map(|case| case.name).collect();
            assert_eq!(made.as_slice(), known);
        }
    };
}
