//! The load.

use std::process::{Child, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tcpmig_sys::lab::Host;

pub(crate) struct Load {
    pub(crate) connections: usize,
    /// Until it is stopped, if there is none.
    pub(crate) duration: Option<Duration>,
    /// Between the requests of a connection: at least and at most.
    pub(crate) pause_ms: Option<[u64; 2]>,
}

/// What wrk says at its end.
pub(crate) struct Said {
    pub(crate) requests: u64,
    pub(crate) duration: Duration,
    errors: u64,
    /// In the middle, 99th percentile, worst.
    pub(crate) latency_us: [u64; 3],
}

impl Said {
    /// Of a load that measures no latencies.
    pub(crate) fn new(requests: u64, duration: Duration, errors: u64) -> Self {
        Self {
            requests,
            duration,
            errors,
            latency_us: [0; 3],
        }
    }

    pub(crate) fn assert_no_errors(&self) {
        assert_eq!(self.errors, 0, "requests that failed");
    }
}

pub(crate) struct Running {
    child: Child,
    _script: tempfile::NamedTempFile,
}

const DONE: &str = "
done = function(summary, latency, requests)
  local e = summary.errors
  io.stderr:write(string.format('%d %d %d %d %d %d\\n', summary.requests, summary.duration,
    e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50), latency:percentile(99), latency.max))
end
";

pub(crate) fn start(peer: &Host, url: &str, load: &Load) -> Running {
    let pause = load.pause_ms.map_or_else(String::new, |[least, most]| {
        format!("delay = function() return math.random({least}, {most}) end\n")
    });
    let script = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&script, pause + DONE).unwrap();
    let seconds = load.duration.map_or(3600, |duration| duration.as_secs());
    let mut command = peer.command("wrk").unwrap();
    command.args(["-t1", "-s"]).arg(script.path());
    command.arg(format!("-c{}", load.connections));
    command.arg(format!("-d{seconds}s")).arg(url);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    Running {
        child: command.spawn().expect("wrk is installed"),
        _script: script,
    }
}

pub(crate) fn run(peer: &Host, url: &str, load: &Load) -> Said {
    start(peer, url, load).end()
}

impl Running {
    pub(crate) fn stop(self) -> Said {
        let id = Pid::from_raw(self.child.id().try_into().unwrap());
        kill(id, Signal::SIGINT).unwrap();
        self.end()
    }

    fn end(self) -> Said {
        let output = self.child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        let numbers = said.split_whitespace().filter_map(|word| word.parse().ok());
        let numbers: Vec<u64> = numbers.collect();
        let [requests, micros, errors, middle, high, worst] = numbers[..] else {
            panic!("wrk said {said:?}");
        };
        Said {
            requests,
            duration: Duration::from_micros(micros),
            errors,
            latency_us: [middle, high, worst],
        }
    }
}
