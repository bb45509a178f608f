//! What others hold is renewed and released by hand.

use std::time::Duration;

use serde_json::{Value, json};
use tcpmig_lock::{Locker, Nftables};
use tcpmig_sys::lab::isolated;

use crate::locks::locks;
use crate::support::{Net, fails, succeeds, tcpmig};

fn held(net: &Net) -> Vec<Value> {
    locks(net, &[])["held"].as_array().unwrap().clone()
}

/// What a dump left is prolonged, and then ended.
fn renewed_and_released(dumped: &[&str], kind: &str) {
    let net = Net::new();
    let echo = net.echo();
    let image = net.file("connection.image");
    let image = image.to_str().unwrap();
    let dump = ["dump", "--flow", &echo.flow, "-o", image, "--lease", "60"];
    succeeds(&tcpmig(&net.a, &[&dump[..], dumped].concat()));
    let owner = held(&net)[0]["owner"].clone();
    let renew = |lease: &str| {
        let value = locks(&net, &["--renew", &echo.flow, "--lease", lease]);
        assert_eq!(value["renewed"][0], echo.flow, "{value}");
        let held = held(&net);
        assert_eq!(held.len(), 1, "{held:?}");
        assert_eq!(held[0]["kind"], kind, "{held:?}");
        // Who asked for it has ended: it is still the dump's.
        assert_eq!(held[0]["owner"], owner, "{held:?}");
        let remaining = held[0]["remaining_seconds"].as_f64().unwrap();
        assert!(remaining > 5000.0 && remaining <= 7200.0, "{held:?}");
    };
    renew("7200");
    // A renewal never shortens.
    renew("60");
    let nobody = "198.18.0.80:7000,198.18.0.9:9";
    let said = tcpmig(&net.a, &["locks", "--release", &echo.flow, nobody]);
    fails(&said, 0, &["nothing to do", nobody]);
    assert!(succeeds(&said).contains("released"));
    assert_eq!(held(&net), Vec::<Value>::new());
    for option in ["--release", "--renew"] {
        fails(
            &tcpmig(&net.a, &["locks", option, &echo.flow]),
            4,
            &["nothing to do"],
        );
    }
}

macro_rules! renewed_and_released {
    ($($name:ident: $dumped:expr, $kind:literal;)*) => {
        $(
            #[test]
            fn $name() {
                isolated(concat!("held::", stringify!($name)), || {
                    renewed_and_released($dumped, $kind);
                });
            }
        )*
    };
}

renewed_and_released! {
    a_lock_of_nftables_is_renewed_and_released: &[], "lock";
    a_redirect_is_renewed_and_released: &["--redirect", "198.18.0.2", "--redirect-lease", "60"], "redirect";
    a_lock_of_iptables_is_renewed_and_released: &["--lock", "iptables"], "lock";
    a_lock_of_a_device_is_renewed_and_released: &["--lock", "link:eth0"], "lock";
}

#[test]
fn a_connection_is_locked_before_it_comes() {
    isolated("held::a_connection_is_locked_before_it_comes", || {
        let net = Net::new();
        let [first, second] = [
            "198.18.0.80:7000,198.18.0.9:1025",
            "[2001:db8::80]:7000,[2001:db8::9]:1025",
        ];
        let value = locks(&net, &["--lock", first, second, "--lease", "7200"]);
        assert_eq!(value, json!({ "locked": [first, second], "not_held": [] }));
        let all = held(&net);
        assert_eq!(all.len(), 2, "{all:?}");
        for one in all {
            assert_eq!(one["kind"], "lock", "{one}");
            assert!(one["remaining_seconds"].as_f64().unwrap() > 5000.0, "{one}");
        }
        // All or none.
        let third = "198.18.0.80:7000,198.18.0.9:1026";
        let said = tcpmig(&net.a, &["locks", "--lock", third, first]);
        fails(
            &said,
            1,
            &["held by tcpmig", first, "already locked", "--renew"],
        );
        assert_eq!(held(&net).len(), 2);
        // By those who hold nothing it is ended as what a dump left is.
        locks(&net, &["--release", first, second]);
        assert_eq!(held(&net), Vec::<Value>::new());
        let echo = net.echo();
        let said = tcpmig(&net.a, &["locks", "--lock", &echo.flow]);
        fails(&said, 1, &["lives here already", "silence"]);
        assert_eq!(held(&net), Vec::<Value>::new());
    });
}

#[test]
fn what_a_living_process_holds_is_left_to_it() {
    isolated("held::what_a_living_process_holds_is_left_to_it", || {
        let net = Net::new();
        let flow = "198.18.0.80:7000,198.18.0.9:1025";
        let locker = net.a.run(|| Nftables::new().unwrap()).unwrap();
        let lease = Duration::from_secs(60);
        let mut guard = locker.lock(&[flow.parse().unwrap()], lease).unwrap();
        let me = format!("({})", std::process::id());
        for option in ["--release", "--renew"] {
            fails(
                &tcpmig(&net.a, &["locks", option, flow]),
                1,
                &["is held by", &me, "--force"],
            );
        }
        assert_eq!(held(&net).len(), 1);
        guard.renew(lease).unwrap();
        locks(&net, &["--renew", flow, "--lease", "7200", "--force"]);
        assert!(held(&net)[0]["remaining_seconds"].as_f64().unwrap() > 5000.0);
        locks(&net, &["--release", flow, "--force"]);
        assert_eq!(held(&net), Vec::<Value>::new());
        drop(guard);
        // Wrong usage.
        for wrong in [
            &["locks", "--renew", flow, "--release", flow][..],
            &["locks", "--lock", flow, "--release", flow],
            &["locks", "--lock", flow, "--renew", flow],
            &["locks", "--lock", flow, "--sweep"],
            &["locks", "--lock", flow, "--lease", "0"],
            &["locks", "--lock"],
            &["locks", "--release", flow, "--sweep"],
            &["locks", "--release", "nonsense"],
            &["locks", "--lease", "5"],
            &["locks", "--force"],
        ] {
            fails(&tcpmig(&net.a, wrong), 2, &[]);
        }
    });
}
