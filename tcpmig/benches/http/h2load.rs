//! The load of HTTP/2.

use std::process::Stdio;
use std::time::Duration;

use tcpmig_sys::lab::Host;

use crate::wrk::Said;

/// How many streams each connection has at a time.
pub(crate) const STREAMS: usize = 10;

pub(crate) fn run(peer: &Host, url: &str, connections: usize, seconds: u64) -> Said {
    let mut command = peer.command("h2load").unwrap();
    command.arg("-t1").arg(format!("-c{connections}"));
    command.arg(format!("-m{STREAMS}"));
    command.arg(format!("--duration={seconds}")).arg(url);
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    let output = command.output().expect("h2load is installed");
    let said = String::from_utf8(output.stdout).unwrap();
    // "requests: 9 total, 9 started, 9 done, 9 succeeded, 0 failed, 0 errored, 0 timeout"
    let line = said.lines().find_map(|line| line.strip_prefix("requests:"));
    let line = line.unwrap_or_else(|| panic!("h2load said {said:?}"));
    let count = |name: &str| -> u64 {
        let mut counts = line.split(',').map(str::trim);
        let found = counts.find_map(|count| count.strip_suffix(name));
        found
            .unwrap_or_else(|| panic!("h2load said {line:?}"))
            .trim()
            .parse()
            .unwrap()
    };
    let errors = count("failed") + count("errored") + count("timeout");
    Said::new(count("succeeded"), Duration::from_secs(seconds), errors)
}
