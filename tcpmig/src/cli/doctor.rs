//! `tcpmig doctor`: what this kernel and this user can do.

use std::fmt::Write as _;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use clap::Args;
use serde_json::json;
use tcpmig_format::FourTuple;
use tcpmig_lock::{LockError, Locker, NextHop, Nftables};
use tcpmig_sys::netns::{self, Namespace};
use tcpmig_sys::probe::{self, Check, Verdict};

use super::{FAILED, Output, enter};

/// Tell what works on this host and what to change.
///
/// Tries every kernel feature that moves need, on sockets and in a network namespace made for it; nothing is sent and
/// nothing is left behind. Exit status 1 if something necessary is missing.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Check what works inside a user namespace of your own, as `tcpmig demo` uses it
    #[arg(long)]
    user_namespace: bool,

    /// Check in this network namespace (a name of `ip netns`, or a path)
    #[arg(long, value_name = "NAME|PATH")]
    netns: Option<String>,
}

pub(crate) fn main(args: &DoctorArgs, output: Output) -> anyhow::Result<ExitCode> {
    if args.user_namespace {
        netns::enter_user_namespace()?;
    }
    enter(args.netns.as_deref())?;
    let mut checks = probe::checks();
    checks.extend(packets());
    checks.push(udp_buffers());
    for (program, what) in [("ip", "package iproute2"), ("curl", "package curl")] {
        checks.push(program_of_the_demo(program, what));
    }
    let fails = checks.iter().any(|check| check.verdict == Verdict::Fails);
    print(&checks, fails, output);
    Ok(ExitCode::from(if fails { FAILED } else { 0 }))
}

/// Locks and redirects a flow that does not exist, in a namespace of its own.
fn packets() -> Vec<Check> {
    let tried = Namespace::create().and_then(|namespace| {
        let entered = namespace.enter()?;
        let outcome = (lock(), redirect());
        drop(entered);
        Ok(outcome)
    });
    let (locked, redirected) = match tried {
        Ok(outcome) => outcome,
        Err(error) => {
            return vec![Check {
                name: "nftables",
                verdict: Verdict::Fails,
                detail: format!("not tried, because no namespace can be made for it: {error}"),
                remedy: Some(
                    "run as root, or see what works with `tcpmig doctor --user-namespace`",
                ),
            }];
        }
    };
    let check = |name, outcome: Result<(), LockError>, works: &str, verdict, remedy| match outcome {
        Ok(()) => Check {
            name,
            verdict: Verdict::Works,
            detail: works.to_owned(),
            remedy: None,
        },
        Err(error) => Check {
            name,
            verdict,
            detail: error.to_string(),
            remedy: Some(remedy),
        },
    };
    vec![
        check(
            "nftables",
            locked,
            "the packets of single connections can be locked",
            Verdict::Fails,
            "use a kernel with CONFIG_NF_TABLES and CONFIG_NF_TABLES_INET (modprobe nf_tables), or lock by other means (--lock none)",
        ),
        check(
            "redirect",
            redirected,
            "the packets of single connections can be forwarded",
            Verdict::Limited,
            "use a kernel with CONFIG_NF_TABLES_NETDEV and CONFIG_NFT_FWD_NETDEV, or steer packets by other means",
        ),
    ]
}

fn example() -> Result<FourTuple, LockError> {
    "192.0.2.1:80,192.0.2.9:50000"
        .parse()
        .map_err(|error| LockError::Other(format!("{error}").into()))
}

fn lock() -> Result<(), LockError> {
    let locker = Nftables::new()?;
    locker.lock(&[example()?], Duration::from_secs(1))?.unlock()
}

fn redirect() -> Result<(), LockError> {
    let locker = Nftables::new()?;
    let lock = locker.lock(&[example()?], Duration::from_secs(1))?;
    let hop = NextHop {
        device: "lo".to_owned(),
        address: [192, 0, 2, 2].into(),
        ingress: "lo".to_owned(),
    };
    lock.redirect(&hop, Duration::from_secs(1))?.end()
}

fn udp_buffers() -> Check {
    const WANTED: u64 = 4 << 20;
    let limit = |name: &str| {
        let text = std::fs::read_to_string(format!("/proc/sys/net/core/{name}"));
        text.ok().and_then(|text| text.trim().parse::<u64>().ok())
    };
    let (read, write) = (limit("rmem_max"), limit("wmem_max"));
    let enough = |limit: Option<u64>| limit.is_some_and(|limit| limit >= WANTED);
    let show = |limit: Option<u64>| limit.map_or("unknown".to_owned(), |limit| limit.to_string());
    let good = enough(read) && enough(write);
    Check {
        name: "UDP buffers for QUIC",
        verdict: if good { Verdict::Works } else { Verdict::Limited },
        detail: format!(
            "net.core.rmem_max {}, net.core.wmem_max {}",
            show(read),
            show(write)
        ),
        remedy: (!good).then_some(
            "large queues travel slower: sysctl -w net.core.rmem_max=8388608 net.core.wmem_max=8388608",
        ),
    }
}

fn program_of_the_demo(program: &'static str, remedy: &'static str) -> Check {
    let found = Command::new(program)
        .arg("-V")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    Check {
        name: program,
        verdict: if found.is_ok() {
            Verdict::Works
        } else {
            Verdict::Limited
        },
        remedy: found.is_err().then_some(remedy),
        detail: match found {
            Ok(_) => "installed (for the demo)".to_owned(),
            Err(error) => format!("{error} (only the demo needs it)"),
        },
    }
}

fn print(checks: &[Check], fails: bool, output: Output) {
    if output == Output::Json {
        let checks: Vec<_> = checks
            .iter()
            .map(|check| {
                json!({
                    "name": check.name,
                    "verdict": format!("{:?}", check.verdict).to_lowercase(),
                    "detail": check.detail,
                    "remedy": check.remedy,
                })
            })
            .collect();
        println!("{}", json!({ "ok": !fails, "checks": checks }));
        return;
    }
    let mut text = String::new();
    for check in checks {
        let verdict = match check.verdict {
            Verdict::Works => "ok",
            Verdict::Limited => "limited",
            Verdict::Fails => "FAILS",
        };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{verdict:<8} {:<31} {}", check.name, check.detail);
        if let Some(remedy) = check.remedy {
            let _ = writeln!(text, "{:<8} {:<31} -> {remedy}", "", "");
        }
    }
    text += if fails {
        "Connections cannot be moved here as things are.\n"
    } else {
        "Connections can be moved here.\n"
    };
    print!("{text}");
}
