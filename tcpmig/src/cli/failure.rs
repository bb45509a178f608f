//! How an error is shown: the cause, and a hint where there is one.

use std::io::{self, Write};
use std::process::ExitCode;

use serde_json::json;
use tcpmig::agent::AgentError;
use tcpmig::agent::server::StartError;
use tcpmig::capture::CaptureError;
use tcpmig::options::NotSet;
use tcpmig::restore::RestoreError;
use tcpmig_lock::LockError;
use tcpmig_lock::conntrack::ConntrackError;
use tcpmig_sys::NotMigratable;
use tcpmig_sys::lab::LabError;

use super::{FAILED, Output};

/// Prints an error; the exit status that goes with it.
pub(crate) fn print(error: &anyhow::Error, output: Output) -> ExitCode {
    let text = text(error);
    let hint = hint(error);
    let mut err = io::stderr().lock();
    // Nobody reads it if this fails.
    let _ = match output {
        Output::Json => writeln!(err, "{}", json!({ "error": text, "hint": hint })),
        Output::Text => match hint {
            Some(hint) => writeln!(err, "error: {text}\nhint: {hint}"),
            None => writeln!(err, "error: {text}"),
        },
    };
    ExitCode::from(FAILED)
}

/// What was to be printed could not be. Whatever the command did is done, and its exit status tells of that.
pub(crate) fn unprinted(error: &io::Error, code: ExitCode, output: Output) -> ExitCode {
    let text = format!("standard output: {error}");
    let mut err = io::stderr().lock();
    let _ = match output {
        Output::Json => writeln!(err, "{}", json!({ "warning": text })),
        Output::Text => writeln!(err, "warning: {text}"),
    };
    code
}

/// The causes from the outside in, without those that the one before them has named already.
fn text(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

fn hint(error: &anyhow::Error) -> Option<&'static str> {
    error.chain().find_map(|cause| {
        if let Some(cause) = cause.downcast_ref::<tcpmig_sys::Error>() {
            return of_socket(cause);
        }
        // These show what is in them as themselves.
        if let Some(CaptureError::Socket(cause)) = cause.downcast_ref() {
            return of_socket(cause);
        }
        if let Some(CaptureError::Translated(_)) = cause.downcast_ref() {
            return Some(
                "it can be moved only where the translation is made on the way (by a router or a load balancer in front of both hosts), not on this host: `conntrack -L` shows the entry, `nft list ruleset` the rule",
            );
        }
        if let Some(RestoreError::Conntrack(cause)) = cause.downcast_ref() {
            return of_conntrack(cause);
        }
        if let Some(RestoreError::Socket(cause)) = cause.downcast_ref() {
            return of_socket(cause);
        }
        if let Some(cause) = cause.downcast_ref::<LockError>() {
            return of_lock(cause);
        }
        if let Some(cause) = cause.downcast_ref::<AgentError>() {
            return of_agent(cause);
        }
        if let Some(StartError::Read { error, .. }) = cause.downcast_ref() {
            return (error.kind() == io::ErrorKind::NotFound).then_some(
                "write one after tcpmig/packaging/agent.toml in the source, which the package has as /etc/tcpmig/agent.toml",
            );
        }
        if cause.is::<NotSet>() {
            return Some(
                "make this host have it (for TCP_CONGESTION: modprobe tcp_NAME), or leave it out with --options warn",
            );
        }
        match cause.downcast_ref::<LabError>() {
            Some(LabError::Start { program: "ip", .. }) => {
                Some("install iproute2 (apt-get install iproute2)")
            }
            _ => None,
        }
    })
}

fn of_socket(error: &tcpmig_sys::Error) -> Option<&'static str> {
    match error {
        tcpmig_sys::Error::Call {
            call: "unshare(CLONE_NEWUSER)",
            ..
        } => Some(
            "this system forbids user namespaces to ordinary users: run as root, or see kernel.unprivileged_userns_clone, user.max_user_namespaces and kernel.apparmor_restrict_unprivileged_userns",
        ),
        tcpmig_sys::Error::NotMigratable(NotMigratable::FastOpen) => {
            Some("try again when the handshake is done")
        }
        tcpmig_sys::Error::NotMigratable(NotMigratable::InRepairMode) => {
            Some("another move of it is under way, or one was cut off: `tcpmig thaw` lets it go on")
        }
        tcpmig_sys::Error::Traced { .. } => {
            Some("end the debugger or strace that has the process, then try again")
        }
        tcpmig_sys::Error::NoPermission { .. } => {
            Some("run as root or with CAP_NET_ADMIN; `tcpmig doctor` tells what is missing")
        }
        _ => None,
    }
}

fn of_agent(error: &AgentError) -> Option<&'static str> {
    let AgentError::Unreachable { source, .. } = error else {
        return None;
    };
    match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Some(
            "start it (tcpmig agent --config FILE), or name the socket that it has (--agent PATH, TCPMIG_AGENT)",
        ),
        io::ErrorKind::PermissionDenied => Some(
            "run as a user that its configuration names: socket_mode and socket_group, users of a service, admins",
        ),
        _ => None,
    }
}

fn of_conntrack(error: &ConntrackError) -> Option<&'static str> {
    match error {
        ConntrackError::Translates(_) => Some(
            "another connection of this host, or one that it forwards, has these addresses and ports: `conntrack -L` shows it",
        ),
        ConntrackError::Full => Some("sysctl -w net.netfilter.nf_conntrack_max=262144"),
        _ => None,
    }
}

fn of_lock(error: &LockError) -> Option<&'static str> {
    match error {
        LockError::NoPermission { .. } => {
            Some("run as root or with CAP_NET_ADMIN; `tcpmig doctor` tells what is missing")
        }
        LockError::NoNftables { .. } => Some(
            "load nf_tables (modprobe nf_tables), or lock the packets yourself and use --lock none",
        ),
        LockError::AlreadyLocked(_) => Some(
            "`tcpmig locks` shows who holds it, and for how long: wait for that process or end it; what an ended one left, `tcpmig locks --release LOCAL,REMOTE` ends at once",
        ),
        _ => None,
    }
}
