//! How an error is shown: the cause, and a hint where there is one.

use std::io::{self, Write};
use std::process::ExitCode;

use serde_json::json;
use tcpmig::capture::CaptureError;
use tcpmig::options::NotSet;
use tcpmig::restore::RestoreError;
use tcpmig_lock::LockError;
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
        if let Some(RestoreError::Socket(cause)) = cause.downcast_ref() {
            return of_socket(cause);
        }
        if let Some(cause) = cause.downcast_ref::<LockError>() {
            return of_lock(cause);
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
        tcpmig_sys::Error::NotMigratable(NotMigratable::UnderRepair) => Some(
            "another move of it is under way, or one was cut off: its process can switch TCP_REPAIR off",
        ),
        tcpmig_sys::Error::NoPermission { .. } => {
            Some("run as root or with CAP_NET_ADMIN; `tcpmig doctor` tells what is missing")
        }
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
            "another move of this connection is under way, or one was cut off: its lock ends with its lease (`tcpmig locks` shows it)",
        ),
        _ => None,
    }
}
