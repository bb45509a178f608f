//! `tcpmig doctor`: what this kernel and this user can do.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsFd;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use clap::Args;
use serde_json::json;
use tcpmig_format::FourTuple;
use tcpmig_lock::conntrack::{self, Arrival, Known};
use tcpmig_lock::{LockError, Locker, NextHop, Nftables};
use tcpmig_sys::netns::{self, Namespace};
use tcpmig_sys::probe::{self, Check, Verdict};

use super::{FAILED, Output, enter};
use crate::cli::print::{say, to_output};

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
    checks.push(tracking());
    checks.push(udp_buffers());
    for (program, what) in [("ip", "package iproute2"), ("curl", "package curl")] {
        checks.push(program_of_the_demo(program, what));
    }
    let fails = checks.iter().any(|check| check.verdict == Verdict::Fails);
    print(&checks, fails, output);
    Ok(ExitCode::from(if fails { FAILED } else { 0 }))
}

/// Longer than a slow machine takes; the namespace, and the lock with it, ends with this process.
const LEASE: Duration = Duration::from_secs(60);

/// Locks and redirects a flow that does not exist, in a namespace of its own.
fn packets() -> Vec<Check> {
    let tried = Namespace::create().and_then(|namespace| {
        let entered = namespace.enter()?;
        let outcome = (lock(), redirect(), owned());
        drop(entered);
        Ok(outcome)
    });
    let (locked, redirected, owned) = match tried {
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
        check(
            "owned tables",
            owned,
            "a table can belong to a process, so that `nft flush ruleset` leaves its locks",
            Verdict::Limited,
            "they came with Linux 6.9. Where the rules of this host are flushed, a process sets its own locks and redirects up again within milliseconds, and `tcpmig locks --guard` those of all",
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
    locker.lock(&[example()?], LEASE)?.unlock()
}

fn redirect() -> Result<(), LockError> {
    let locker = Nftables::new()?;
    let lock = locker.lock(&[example()?], LEASE)?;
    let hop = NextHop {
        device: "lo".to_owned(),
        address: [192, 0, 2, 2].into(),
        ingress: "lo".to_owned(),
    };
    lock.redirect(&hop, LEASE)?.end()
}

/// What a packet filter that keeps to known connections would do with one that arrives.
fn tracking() -> Check {
    const NAME: &str = "connection tracking";
    let limited = |detail: String, remedy| Check {
        name: NAME,
        verdict: Verdict::Limited,
        detail,
        remedy: Some(remedy),
    };
    if !conntrack::is_loaded() {
        return Check {
            name: NAME,
            verdict: Verdict::Works,
            detail: "not loaded: packet filters and translations here know no connections"
                .to_owned(),
            remedy: None,
        };
    }
    let survey = match conntrack::survey() {
        Ok(Some(survey)) => survey,
        Ok(None) => {
            return limited(
                "cannot be asked: a firewall that accepts established connections only would drop what arrives, and translated connections are not noticed".to_owned(),
                "use a kernel with CONFIG_NF_CT_NETLINK (modprobe nf_conntrack_netlink)",
            );
        }
        Err(error) => {
            return limited(error.to_string(), "see whether `conntrack -L` works here");
        }
    };
    let setting = |name: &str| {
        let text = std::fs::read_to_string(format!("/proc/sys/net/netfilter/{name}"));
        text.ok().and_then(|text| text.trim().parse::<u64>().ok())
    };
    if let (Some(count), Some(max)) = (setting("nf_conntrack_count"), setting("nf_conntrack_max"))
        && count >= max / 10 * 9
    {
        return limited(
            format!(
                "{count} of at most {max} entries: what arrives may find no room, and is refused then"
            ),
            "sysctl -w net.netfilter.nf_conntrack_max=1048576",
        );
    }
    let made = example()
        .map_err(|error| error.to_string())
        .and_then(|flow| {
            let here = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))
                .map_err(|error| format!("socket: {error}"))?;
            Known::make(here.as_fd(), Arrival::new(flow), Duration::ZERO)
                .map(drop)
                .map_err(|error| error.to_string())
        });
    if let Err(error) = made {
        return limited(error, "see whether `conntrack -I` works here");
    }
    let loose = match setting("nf_conntrack_tcp_loose") {
        Some(0) => " (also with nf_conntrack_tcp_loose=0, as here)",
        _ => "",
    };
    Check {
        name: NAME,
        verdict: Verdict::Works,
        detail: format!(
            "what arrives is made known{loose}: firewalls that accept established connections only let it pass. {} of {} TCP connections tracked here are translated, and stay",
            survey.translated, survey.tracked
        ),
        remedy: None,
    }
}

fn owned() -> Result<(), LockError> {
    if Nftables::with_owned_table("tcpmig-doctor")?.owns_table()? {
        return Ok(());
    }
    let unknown = "this kernel has no tables that are owned and stay (flags owner and persist)";
    Err(LockError::Other(unknown.into()))
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
        say!("{}", json!({ "ok": !fails, "checks": checks }));
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
    to_output(format_args!("{text}"), "");
}
