//! The load: wrk, or h2load with several requests at a time on each connection.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tcpmig_sys::lab::Host;

use crate::{Args, Result, SERVICE};

/// wrk waits between the requests of a connection, and says at the end what it saw.
const SCRIPT: &str = "
delay = function() return math.random(20, 60) end
done = function(summary, latency, requests)
  local e = summary.errors
  io.stderr:write(string.format('%d %d %d %d %d\\n', summary.requests,
    e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50), latency:percentile(99), latency.max))
end
";

/// How many streams a connection of h2load has at a time, and how many requests it begins in a second.
const STREAMS: u32 = 4;
const REQUESTS: u32 = 40;
/// How long all moves may take: h2load says what it saw only when its time is over.
const MOVES: Duration = Duration::from_secs(20);

/// A program that uses the service all the time. It ends with this.
pub(crate) struct Load {
    /// `None` once it was waited for.
    child: Option<Child>,
    with: With,
}

enum With {
    Wrk { script: PathBuf },
    H2load { until: Instant },
}

/// What it saw.
pub(crate) struct Said {
    pub(crate) requests: u64,
    pub(crate) failed: u64,
    /// Middle, 99th percentile and worst, in microseconds, if it says so.
    pub(crate) latency_us: Option<[u64; 3]>,
}

impl Load {
    pub(crate) fn start(peer: &Host, args: &Args) -> Result<Self> {
        let scheme = if args.tls { "https" } else { "http" };
        // Neither of them checks a certificate.
        let url = format!("{scheme}://{SERVICE}/");
        let clients = format!("-c{}", args.clients);
        let (program, package) = args.load();
        let mut command = peer.command(program)?;
        command.arg("-t1").arg(clients);
        let with = if args.http2 {
            let lasts = Duration::from_secs(2 * args.seconds) + MOVES;
            command.arg(format!("-m{STREAMS}"));
            command.arg(format!("--rps={REQUESTS}"));
            command.arg(format!("--duration={}", lasts.as_secs()));
            command.stdout(Stdio::piped()).stderr(Stdio::null());
            let until = Instant::now() + lasts;
            With::H2load { until }
        } else {
            let name = format!("tcpmig-balance-{}.lua", std::process::id());
            let script = std::env::temp_dir().join(name);
            fs::write(&script, SCRIPT)?;
            // Long enough for the moves; it is told to stop when they are done.
            command.args(["-d3600s", "-s"]).arg(&script);
            command.stdout(Stdio::null()).stderr(Stdio::piped());
            With::Wrk { script }
        };
        let child = command.arg(url).spawn();
        let child =
            child.map_err(|error| format!("{program}: {error} (of Debian's package {package})"))?;
        let child = Some(child);
        Ok(Self { child, with })
    }

    /// It has connected.
    pub(crate) fn connected(&self) {
        if let With::Wrk { script } = &self.with {
            let _ = fs::remove_file(script);
        }
    }

    /// Waits for its end, once all has moved.
    ///
    /// # Errors
    ///
    /// It has ended before.
    pub(crate) fn end(mut self) -> Result<Said> {
        let mut child = self.child.take().ok_or("it was waited for")?;
        match &self.with {
            With::Wrk { .. } => {
                // It reports when it is interrupted.
                let pid = Pid::from_raw(i32::try_from(child.id())?);
                kill(pid, Signal::SIGINT)?;
            }
            With::H2load { until } => {
                if child.try_wait()?.is_some() {
                    return Err("h2load ended before all had moved: give it fewer --clients".into());
                }
                let left = until.saturating_duration_since(Instant::now());
                println!("\nh2load goes on for {:.0} s", left.as_secs_f64());
            }
        }
        let output = child.wait_with_output()?;
        let said = match &self.with {
            With::Wrk { .. } => wrk_said(&String::from_utf8_lossy(&output.stderr)),
            With::H2load { .. } => h2load_said(&String::from_utf8_lossy(&output.stdout)),
        };
        said.ok_or_else(|| format!("what the load said is not understood: {output:?}").into())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.connected();
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn wrk_said(said: &str) -> Option<Said> {
    let words = said.split_whitespace();
    let numbers: Vec<u64> = words.filter_map(|word| word.parse().ok()).collect();
    let [requests, failed, p50, p99, max] = numbers[..] else {
        return None;
    };
    Some(Said {
        requests,
        failed,
        latency_us: Some([p50, p99, max]),
    })
}

/// "requests: 9 total, 9 started, 9 done, 9 succeeded, 0 failed, 0 errored, 0 timeout"
fn h2load_said(said: &str) -> Option<Said> {
    let line = said.lines().find_map(|line| line.strip_prefix("requests:"));
    let counts: Vec<_> = line?.split(',').map(str::trim).collect();
    let count = |name: &str| -> Option<u64> {
        let mut counts = counts.iter();
        counts
            .find_map(|count| count.strip_suffix(name))?
            .trim()
            .parse()
            .ok()
    };
    Some(Said {
        requests: count("succeeded")?,
        failed: count("failed")? + count("errored")? + count("timeout")?,
        latency_us: None,
    })
}
