//! A locker of one's own, which passes the conformance suite (`tests/custom_locker.rs` runs it): it keeps the locked
//! flows in two sets of nftables and lets the program nft(8) change them.
//!
//! It is a template. What makes a locker is here: all flows of a call or none, leases that end by themselves, an old
//! guard that never ends a newer lock, and a list that tells who holds what. It neither captures nor redirects, and
//! nothing has to be swept: the kernel removes an element when its lease ends, and the table is small enough to stay.
//!
//! Run it as root, or with `unshare -Urn`. It needs the packages nftables and util-linux.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::Value;
use tcpmig_lock::{
    Entry, EntryKind, FourTuple, LockBackend, LockError, LockGuard, Locker, check_request,
};

/// An element is the peer's address and port and ours. A packet that arrives has them in this order; one that leaves
/// has them in the other, so that one set serves both directions.
const TABLE: &str = "
    add table inet my_locker
    add set inet my_locker flows4 { type ipv4_addr . inet_service . ipv4_addr . inet_service; flags timeout; }
    add set inet my_locker flows6 { type ipv6_addr . inet_service . ipv6_addr . inet_service; flags timeout; }
    add chain inet my_locker arriving { type filter hook prerouting priority raw; }
    add chain inet my_locker leaving { type filter hook output priority raw; }
    flush chain inet my_locker arriving
    flush chain inet my_locker leaving
    add rule inet my_locker arriving ip saddr . tcp sport . ip daddr . tcp dport @flows4 drop
    add rule inet my_locker arriving ip6 saddr . tcp sport . ip6 daddr . tcp dport @flows6 drop
    add rule inet my_locker leaving ip daddr . tcp dport . ip saddr . tcp sport @flows4 drop
    add rule inet my_locker leaving ip6 daddr . tcp dport . ip6 saddr . tcp sport @flows6 drop
";

/// Locks flows in the network namespace in which it was opened.
pub(crate) struct NftProgram {
    // A lock may be taken or ended on a thread that is in another namespace by then.
    namespace: Arc<File>,
}

impl NftProgram {
    /// Makes the table, which stays when this value goes: other processes may have locks in it.
    pub(crate) fn open() -> Result<Self, LockError> {
        let namespace = File::open("/proc/thread-self/ns/net").map_err(|error| failed(&error))?;
        let namespace = Arc::new(namespace);
        change(&namespace, TABLE)?;
        Ok(Self { namespace })
    }
}

impl Locker for NftProgram {
    fn name(&self) -> &'static str {
        "nft-program"
    }

    fn lock(&self, flows: &[FourTuple], lease: Duration) -> Result<LockGuard, LockError> {
        check_request(flows, lease)?;
        let name = holder();
        // `create` fails where `add` would take over what somebody else has, and nft changes all or nothing.
        let script = statements(flows, "create", Some((&name, lease)));
        if let Err(error) = change(&self.namespace, &script) {
            let held: HashSet<_> = elements(&self.namespace)?.iter().map(|e| e.flow).collect();
            return Err(match flows.iter().find(|flow| held.contains(flow)) {
                Some(flow) => LockError::AlreadyLocked(*flow),
                None => error,
            });
        }
        let namespace = Arc::clone(&self.namespace);
        let held = NftLock { namespace, name };
        Ok(LockGuard::new(flows.to_vec(), Box::new(held)))
    }

    fn list(&self) -> Result<Vec<Entry>, LockError> {
        let entry = |element: Element| {
            let mut entry = Entry::new(element.flow, EntryKind::Lock, element.remaining);
            entry.age = Some(element.lease.saturating_sub(element.remaining));
            let mut words = element.holder.split(' ');
            entry.owner = words.next().and_then(|pid| pid.parse().ok());
            entry.owner_name = words.nth(1).map(str::to_owned);
            entry
        };
        Ok(elements(&self.namespace)?.into_iter().map(entry).collect())
    }
}

/// What a guard of [`NftProgram`] holds.
struct NftLock {
    namespace: Arc<File>,
    name: String,
}

impl NftLock {
    /// Those of the flows that this guard still holds: after the end of its lease another one may hold them.
    fn still_held(&self, flows: &[FourTuple]) -> Result<Vec<Element>, LockError> {
        let mut elements = elements(&self.namespace)?;
        elements.retain(|element| element.holder == self.name && flows.contains(&element.flow));
        Ok(elements)
    }
}

impl LockBackend for NftLock {
    fn renew(&mut self, flows: &[FourTuple], lease: Duration) -> Result<(), LockError> {
        let held = self.still_held(flows)?;
        let missing = flows
            .iter()
            .find(|flow| held.iter().all(|element| element.flow != **flow));
        if let Some(flow) = missing {
            return Err(LockError::NotHeld(*flow));
        }
        // A renewal never shortens a lease.
        let longest = held.iter().map(|element| element.remaining).max();
        let lease = lease.max(longest.unwrap_or_default());
        // One transaction: no packet passes in between. It fails if a lease has ended since we looked.
        let mut script = statements(flows, "delete", None);
        script += &statements(flows, "create", Some((&self.name, lease)));
        change(&self.namespace, &script)
    }

    fn unlock(&mut self, flows: &[FourTuple]) -> Result<(), LockError> {
        loop {
            let held = self.still_held(flows)?;
            if held.is_empty() {
                return Ok(());
            }
            let flows: Vec<_> = held.iter().map(|element| element.flow).collect();
            match change(&self.namespace, &statements(&flows, "delete", None)) {
                // A lease ended meanwhile: what is still held is looked up again.
                Err(_) if self.still_held(&flows)?.len() < flows.len() => {}
                result => return result,
            }
        }
    }
}

/// A locked flow, as nft lists it.
struct Element {
    flow: FourTuple,
    holder: String,
    lease: Duration,
    remaining: Duration,
}

/// A name that no other guard has: the process, a number in it, and what the process is called.
fn holder() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let comm = std::fs::read_to_string("/proc/self/comm").unwrap_or_default();
    // nft quotes comments and knows no escapes in them.
    let plain: String = comm
        .trim()
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .collect();
    format!("{} {number} {plain}", std::process::id())
}

/// One statement for each flow.
fn statements(flows: &[FourTuple], verb: &str, held: Option<(&str, Duration)>) -> String {
    let suffix = held.map_or_else(String::new, |(holder, lease)| {
        format!(
            " timeout {}ms comment \"{holder}\"",
            lease.as_millis().max(1)
        )
    });
    let mut script = String::new();
    for flow in flows {
        let (local, remote) = (flow.local(), flow.remote());
        let set = if local.is_ipv4() { "flows4" } else { "flows6" };
        script += &format!(
            "{verb} element inet my_locker {set} {{ {} . {} . {} . {}{suffix} }}\n",
            remote.ip(),
            remote.port(),
            local.ip(),
            local.port(),
        );
    }
    script
}

/// The locked flows of both families.
fn elements(namespace: &File) -> Result<Vec<Element>, LockError> {
    let mut elements = Vec::new();
    for set in ["flows4", "flows6"] {
        let output = nft(
            namespace,
            &["-j", "list", "set", "inet", "my_locker", set],
            "",
        )?;
        let listed: Value = serde_json::from_slice(&output).map_err(|error| unreadable(&error))?;
        let of_set = listed["nftables"].as_array().into_iter().flatten();
        let of_set = of_set
            .filter_map(|object| object["set"]["elem"].as_array())
            .flatten();
        elements.extend(of_set.filter_map(element));
    }
    Ok(elements)
}

fn element(json: &Value) -> Option<Element> {
    let element = &json["elem"];
    let key = element["val"]["concat"].as_array()?;
    let address = |index: usize| key.get(index)?.as_str()?.parse::<IpAddr>().ok();
    let port = |index: usize| u16::try_from(key.get(index)?.as_u64()?).ok();
    let (remote, local) = ((address(0)?, port(1)?), (address(2)?, port(3)?));
    Some(Element {
        flow: FourTuple::new(local.into(), remote.into()).ok()?,
        holder: element["comment"].as_str()?.to_owned(),
        lease: Duration::from_secs(element["timeout"].as_u64()?),
        // The program tells whole seconds.
        remaining: Duration::from_secs(element["expires"].as_u64()?),
    })
}

/// Does all that the script says, or nothing.
fn change(namespace: &File, script: &str) -> Result<(), LockError> {
    if script.is_empty() {
        return Ok(());
    }
    nft(namespace, &["-f", "-"], script).map(drop)
}

/// Runs nft in the namespace.
fn nft(namespace: &File, arguments: &[&str], input: &str) -> Result<Vec<u8>, LockError> {
    let path = format!(
        "--net=/proc/{}/fd/{}",
        std::process::id(),
        namespace.as_raw_fd()
    );
    let run = || -> io::Result<Output> {
        let mut child = Command::new("nsenter")
            .args([&path, "--", "nft"])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        // INVARIANT: it was asked for above, and is taken once. It is closed here, so that nft comes to its end.
        let mut stdin = child.stdin.take().expect("a pipe");
        stdin.write_all(input.as_bytes())?;
        drop(stdin);
        child.wait_with_output()
    };
    let output = run().map_err(|error| failed(&error))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(program(String::from_utf8_lossy(&output.stderr).trim()))
}

fn failed(error: &io::Error) -> LockError {
    program(&error.to_string())
}

fn unreadable(error: &serde_json::Error) -> LockError {
    program(&format!("its list cannot be read: {error}"))
}

fn program(message: &str) -> LockError {
    LockError::Program {
        program: "nft".to_owned(),
        message: message.to_owned(),
    }
}

#[allow(dead_code, reason = "the test takes the rest of this file in")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let locker: Box<dyn Locker> = Box::new(NftProgram::open()?);
    let flow: FourTuple = "10.0.0.1:80,10.0.0.9:51234".parse()?;
    let guard = locker.lock(&[flow], Duration::from_secs(30))?;
    if let Err(error) = locker.lock(&[flow], Duration::from_secs(30)) {
        println!("again: {error}");
    }
    println!("held: {:?}", locker.list()?);
    guard.unlock()?;
    println!("held: {:?}", locker.list()?);
    Ok(())
}
