//! Private network namespaces for tests, without privileges too.

use std::env;
use std::process::Command;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};

const INNER: &str = "TCPMIG_LOCK_TEST_INNER";

/// Runs a test in a network namespace of its own. Without privileges it runs this one test (`name` is that of the
/// test function) again in a user namespace where it has them. Fails, and never skips, if there can be no namespace.
pub fn isolated(name: &str, test: impl FnOnce()) {
    match unshare(CloneFlags::CLONE_NEWNET) {
        Ok(()) => {
            test();
        }
        Err(Errno::EPERM) if env::var_os(INNER).is_none() => again(name, &["-Urn"]),
        Err(error) => panic!("no network namespace for the test: unshare(CLONE_NEWNET): {error}"),
    }
}

/// Runs this one test again under `unshare` with these flags; [`is_again`] tells the two apart.
pub fn again(name: &str, flags: &[&str]) {
    let output = Command::new("unshare")
        .args(flags)
        .arg(env::current_exe().expect("the path of the test"))
        .args([name, "--exact", "--nocapture"])
        .env(INNER, "1")
        .output()
        .expect("run unshare(1), of util-linux");
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}");
    eprintln!("{}", String::from_utf8_lossy(&output.stderr));
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{name} failed under unshare {flags:?}"
    );
}

/// Whether this process is such a run.
pub fn is_again() -> bool {
    env::var_os(INNER).is_some()
}
