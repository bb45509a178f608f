//! What this kernel and this process can do.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};

use socket2::{Domain, Protocol, Socket, Type};

use crate::error::{Error, Result};
use crate::sockopt::{self, Repair};
use crate::{descriptors, netns, take};

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
        buffer_lock(),
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
