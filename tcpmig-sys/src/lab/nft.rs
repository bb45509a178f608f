//! The packet filter of a host, by `nft`.

use std::io::Write;
use std::process::{Command, Stdio};

use super::Host;

/// Runs a script of `nft` in the network namespace of the calling thread: rules, and commands such as `list ruleset`. What it
/// shows.
///
/// # Panics
///
/// If it refuses the script, or is not installed.
pub fn nft(script: &str) -> String {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("nft is installed");
    let mut stdin = child.stdin.take().expect("it is piped");
    stdin.write_all(script.as_bytes()).expect("nft reads");
    drop(stdin);
    let output = child.wait_with_output().expect("nft ends");
    assert!(output.status.success(), "nft refused {script}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

impl Host {
    /// Like [`nft`], but on this host.
    ///
    /// # Panics
    ///
    /// If it refuses the script, or is not installed.
    pub fn nft(&self, script: &str) -> String {
        self.run(|| nft(script)).expect("the host can be entered")
    }

    /// Keeps TCP on the wire from passing these hooks (`prerouting`, `output`) of this host, until [`mend`](Self::mend). What
    /// comes back to the host itself passes.
    ///
    /// # Panics
    ///
    /// If nft refuses the rules: it has been cut before.
    pub fn cut(&self, hooks: &[&str]) {
        let chain = |hook: &&str| {
            let device = if *hook == "output" {
                "oifname"
            } else {
                "iifname"
            };
            // Before whatever a lock of the host has.
            format!(
                "chain {hook} {{ type filter hook {hook} priority -310; {device} eth0 meta l4proto tcp drop; }}; "
            )
        };
        let chains: String = hooks.iter().map(chain).collect();
        self.nft(&format!("table inet cut {{ {chains} }}"));
    }

    /// Ends [`cut`](Self::cut).
    ///
    /// # Panics
    ///
    /// If it was not cut.
    pub fn mend(&self) {
        self.nft("delete table inet cut");
    }

    /// Counts from now on what this host receives and matches (an expression of nftables). One counter at a time.
    ///
    /// # Panics
    ///
    /// If nft refuses the expression.
    pub fn count(&self, matching: &str) -> Counter<'_> {
        self.nft(&format!(
            "table inet count {{ }}; delete table inet count; table inet count {{ counter n {{ }}; chain i {{ type filter hook prerouting \
             priority raw; {matching} counter name n; }}; }}"
        ));
        Counter(self)
    }

    /// How many packets the counter `n` of this `inet` table has seen on this host.
    ///
    /// # Panics
    ///
    /// If there is no such counter.
    #[must_use]
    pub fn counted(&self, table: &str) -> u64 {
        let text = self.nft(&format!("list counter inet {table} n"));
        let mut words = text
            .split_whitespace()
            .skip_while(|word| *word != "packets");
        let count = words.nth(1).and_then(|count| count.parse().ok());
        count.unwrap_or_else(|| panic!("no counter in {text:?}"))
    }
}

/// What [`Host::count`] counts.
#[derive(Debug)]
pub struct Counter<'a>(&'a Host);

impl Counter<'_> {
    /// How many packets there were.
    ///
    /// # Panics
    ///
    /// If somebody removed the counter.
    #[must_use]
    pub fn packets(&self) -> u64 {
        self.0.counted("count")
    }
}
