//! What this kernel and this process can do.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use socket2::{Domain, Protocol, Socket, Type};

use crate::error::{Error, Result};
use crate::process::{descriptors, take};
use crate::repair::mute::{self, Means};
use crate::sockopt::{self, Repair};
use crate::{netns, repair};

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It works.
    Works,
    /// It works with a restriction that the detail names.
    Limited,
    /// It does not work.
    Fails,
}

/// One thing that moves need, with the reason if it is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What was tried: a call or a property.
    pub name: &'static str,
    /// How it ended.
    pub verdict: Verdict,
    /// What was found, or why it fails.
    pub detail: String,
    /// What to change, if anything has to be.
    pub remedy: Option<&'static str>,
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.detail)
    }
}

/// Tries everything that this crate does, on sockets made for it.
///
/// Leaves nothing behind and sends nothing.
#[must_use]
pub fn checks() -> Vec<Check> {
    vec![
        kernel(),
        capability(),
        repair(),
        quiet_off(),
        mute_sockets(),
        buffer_lock(),
        options(),
        microseconds(),
        force_buffers(),
        raw_packets(),
        take_descriptor(),
        ipv6(),
        descriptor_limit(),
    ]
}

fn check(
    name: &'static str,
    outcome: Result<String>,
    failed: Verdict,
    remedy: &'static str,
) -> Check {
    match outcome {
        Ok(detail) => Check {
            name,
            verdict: Verdict::Works,
            detail,
            remedy: None,
        },
        Err(error) => Check {
            name,
            verdict: failed,
            detail: error.to_string(),
            remedy: Some(remedy),
        },
    }
}

fn socket(domain: Domain) -> Result<Socket> {
    Socket::new(domain, Type::STREAM, Some(Protocol::TCP)).map_err(|e| Error::new("socket", e))
}

fn repaired() -> Result<Socket> {
    let socket = socket(Domain::IPV4)?;
    sockopt::set_repair(socket.as_fd(), Repair::On)?;
    Ok(socket)
}

fn kernel() -> Check {
    let release = nix::sys::utsname::uname()
        .map(|name| name.release().to_string_lossy().into_owned())
        .unwrap_or_default();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|n| n.parse().unwrap_or(0_u32));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    Check {
        name: "kernel",
        verdict: if version >= (5, 14) {
            Verdict::Works
        } else {
            Verdict::Limited
        },
        detail: format!("Linux {release}"),
        remedy: (version < (5, 14)).then_some("use Linux 5.14 or newer"),
    }
}

fn capability() -> Check {
    const CAP_NET_ADMIN: u64 = 1 << 12;
    let has = netns::effective_capabilities().is_some_and(|got| got & CAP_NET_ADMIN != 0);
    Check {
        name: "CAP_NET_ADMIN",
        verdict: if has { Verdict::Works } else { Verdict::Fails },
        detail: if has { "held" } else { "not held" }.to_owned(),
        remedy: (!has).then_some(
            "run as root, give the program the capability (setcap cap_net_admin+ep), or try things out in `unshare -Urn`",
        ),
    }
}

fn repair() -> Check {
    let outcome = repaired().map(|_| "TCP_REPAIR can be switched on".to_owned());
    check(
        "repair mode",
        outcome,
        Verdict::Fails,
        "needs CAP_NET_ADMIN and a kernel with CONFIG_CHECKPOINT_RESTORE",
    )
}

fn quiet_off() -> Check {
    let outcome = repaired().and_then(|s| {
        sockopt::set_repair(s.as_fd(), Repair::OffQuiet)?;
        Ok("TCP_REPAIR_OFF_NO_WP is known".to_owned())
    });
    check(
        "quiet repair off",
        outcome,
        Verdict::Fails,
        "needs repair mode and Linux 4.19",
    )
}

fn mute_sockets() -> Check {
    let (verdict, detail) = match mute::means() {
        Ok(Means::Policies) => {
            let works =
                "a connection that stands still is silent without its lock (IP_XFRM_POLICY)";
            (Verdict::Works, works.to_owned())
        }
        Ok(Means::Filter) => {
            let limited = "without XFRM only the lock keeps in what the timers of a connection send that stands still";
            (Verdict::Limited, limited.to_owned())
        }
        Err(error) => (Verdict::Fails, error.to_string()),
    };
    Check {
        name: "mute sockets",
        verdict,
        detail,
        remedy: (verdict != Verdict::Works)
            .then_some("needs CAP_NET_ADMIN and a kernel with CONFIG_XFRM_USER"),
    }
}

fn buffer_lock() -> Check {
    let outcome = socket(Domain::IPV4).and_then(|s| {
        sockopt::buffer_lock(s.as_fd())?;
        Ok("SO_BUF_LOCK is known".to_owned())
    });
    check(
        "buffer autotuning kept",
        outcome,
        Verdict::Limited,
        "use Linux 5.14 or newer: else a restored connection with large queues keeps fixed buffers",
    )
}

/// Options that Linux has had since 5.18 and later, and what they are called.
fn options() -> Check {
    type Get = fn(BorrowedFd<'_>) -> Result<()>;
    const NEWER: [(&str, Get); 6] = [
        ("SO_PEEK_OFF", |fd| sockopt::peek_offset(fd).map(drop)),
        ("SO_TXREHASH", |fd| sockopt::tx_rehash(fd).map(drop)),
        ("IP_LOCAL_PORT_RANGE", |fd| {
            sockopt::local_port_range(fd).map(drop)
        }),
        ("TCP_RTO_MAX_MS", |fd| sockopt::rto_max(fd).map(drop)),
        ("TCP_RTO_MIN_US", |fd| sockopt::rto_min(fd).map(drop)),
        ("TCP_DELACK_MAX_US", |fd| {
            sockopt::delayed_ack_max(fd).map(drop)
        }),
    ];
    let missing = socket(Domain::IPV4).map(|socket| {
        let lacks = |(name, get): &(&'static str, Get)| {
            let unknown = matches!(get(socket.as_fd()), Err(Error::Unsupported { .. }));
            unknown.then_some(*name)
        };
        NEWER
            .iter()
            .filter_map(lacks)
            .collect::<Vec<_>>()
            .join(", ")
    });
    let all = missing.as_ref().is_ok_and(String::is_empty);
    let mut check = check(
        "options of sockets",
        missing.map(|missing| match missing.as_str() {
            "" => "this kernel knows all that are carried".to_owned(),
            missing => format!("this kernel does not know {missing}"),
        }),
        Verdict::Limited,
        "",
    );
    if !all {
        check.verdict = Verdict::Limited;
        check.remedy = Some(
            "nothing here uses them; a connection from a newer kernel that has changed one is refused by its name, or restored without it (--options warn)",
        );
    }
    check
}

/// Whether a timestamp clock can count microseconds, as that of a connection from elsewhere may do.
fn microseconds() -> Check {
    let outcome = repaired().and_then(|socket| {
        repair::set_clock(
            socket.as_fd(),
            repair::Clock {
                value: 0,
                microseconds: true,
            },
        )?;
        Ok("clocks of milliseconds and of microseconds can be restored".to_owned())
    });
    check(
        "timestamps in microseconds",
        outcome,
        Verdict::Limited,
        "they came with Linux 6.7, for routes that ask for them: such a connection stays where it is",
    )
}

fn force_buffers() -> Check {
    let outcome = socket(Domain::IPV4).and_then(|s| {
        sockopt::force_send_buffer(s.as_fd(), 1 << 16)?;
        Ok("buffers may exceed net.core.wmem_max and rmem_max".to_owned())
    });
    let mut check = check(
        "buffers of any size",
        outcome,
        Verdict::Limited,
        "needs CAP_NET_ADMIN in the initial user namespace",
    );
    if check.verdict == Verdict::Limited {
        let limit = std::fs::read_to_string("/proc/sys/net/core/wmem_max").unwrap_or_default();
        check.detail = format!(
            "SO_SNDBUFFORCE is not permitted: queues to restore are limited by net.core.wmem_max ({})",
            limit.trim()
        );
    }
    check
}

fn raw_packets() -> Check {
    let outcome = Socket::new(
        Domain::IPV4,
        Type::RAW,
        Some(Protocol::from(libc::IPPROTO_RAW)),
    )
    .map(|_| "connections that one end has closed can be restored".to_owned())
    .map_err(|source| Error::Call {
        call: "socket(SOCK_RAW)",
        source,
    });
    check(
        "raw packets",
        outcome,
        Verdict::Limited,
        "needs CAP_NET_RAW: else a connection that one end has closed cannot be restored here",
    )
}

fn take_descriptor() -> Check {
    let outcome = socket(Domain::IPV4).and_then(|s| {
        use std::os::fd::AsRawFd;
        let taken: OwnedFd = take::descriptor(std::process::id(), s.as_raw_fd())?;
        drop(taken);
        Ok("pidfd_getfd works".to_owned())
    });
    check(
        "descriptors of other processes",
        outcome,
        Verdict::Limited,
        "needs Linux 5.6 and the right to trace the process (CAP_SYS_PTRACE, kernel.yama.ptrace_scope)",
    )
}

fn ipv6() -> Check {
    let outcome = socket(Domain::IPV6).map(|_| "available".to_owned());
    check(
        "IPv6",
        outcome,
        Verdict::Limited,
        "the kernel has no IPv6: only IPv4 connections can be moved",
    )
}

fn descriptor_limit() -> Check {
    let outcome = descriptors::limit().map(|(soft, hard)| format!("{soft} (up to {hard})"));
    check(
        "descriptors",
        outcome,
        Verdict::Limited,
        "raise it with ulimit -n",
    )
}
