//! Small networks of namespaces, for demonstrations and tests.
//!
//! A [`Lab`] is a switch with hosts on it. Nothing of it has a name in the
//! system and nothing outside it changes: when the last process in it ends, by whatever
//! cause, the kernel takes it all away. It runs `ip` of iproute2 and needs
//! `CAP_SYS_ADMIN` and `CAP_NET_ADMIN` in the process's user namespace
//! ([`crate::netns::enter_user_namespace`] gives both to an ordinary user).

use std::fs;
use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

pub mod calls;
mod nft;
pub mod path;
pub mod seen;
mod wait;
mod world;

pub use nft::{Counter, nft};
pub use wait::{PATIENCE, eventually, pattern, slowed, until};
pub use world::{Family, World};

use crate::error::Error;
use crate::netns::{InNamespace, Namespace};
use crate::raw;

/// Why a network could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LabError {
    /// A namespace could not be made or entered.
    #[error(transparent)]
    Namespace(#[from] Error),
    /// The command could not be started.
    #[error("{program}: {source} (is the package installed?)")]
    Start {
        /// Its name.
        program: &'static str,
        /// Why.
        source: io::Error,
    },
    /// `ip` refused a line.
    #[error("ip: {0}")]
    Ip(String),
    /// The kernel did not start a device in time.
    #[error("{device} carries no packets after {}s: {shown}", PATIENCE.as_secs())]
    Silent {
        /// The device.
        device: String,
        /// What `ip` says about it.
        shown: String,
    },
    /// A setting under `/proc/sys` could not be written.
    #[error("write({path}): {source}")]
    Setting {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
}

type Result<T> = std::result::Result<T, LabError>;

/// A switch that hosts are plugged into.
#[derive(Debug)]
pub struct Lab {
    switch: Namespace,
    ports: u32,
}

/// A host: a network namespace, in a [`Lab`] with the device `eth0` on the switch.
#[derive(Debug)]
pub struct Host {
    name: String,
    namespace: Namespace,
    /// Empty without a switch.
    port: String,
}

impl Lab {
    /// A switch without hosts.
    ///
    /// # Errors
    ///
    /// [`LabError`]; nothing is left behind.
    pub fn new() -> Result<Self> {
        let switch = Namespace::create()?;
        ip(
            &switch,
            "link add br0 type bridge\nlink set br0 type bridge forward_delay 0\nlink set br0 up\n",
        )?;
        Ok(Self { switch, ports: 0 })
    }

    /// A host with these addresses (`10.0.0.1/24`, `2001:db8::1/64`) on its `eth0`.
    ///
    /// # Errors
    ///
    /// [`LabError`]; the host is then not part of the lab.
    pub fn host(&mut self, name: &str, addresses: &[&str]) -> Result<Host> {
        let (host, ()) = self.plugged(name, addresses, UP, |switch, port, host| {
            let path = host.path();
            let line = format!("link add {port} type veth peer name eth0 netns {path}\n");
            ip(switch, &line).map(drop)
        })?;
        Ok(host)
    }

    /// A host as by [`Lab::host`] that is far away: its frames go by such a path, as long as the cable is kept.
    ///
    /// # Errors
    ///
    /// [`LabError`]; the host is then not part of the lab.
    pub fn far_host(
        &mut self,
        name: &str,
        addresses: &[&str],
        path: &path::Path,
    ) -> Result<(Host, path::Cable)> {
        self.plugged(name, addresses, UP_TAP, |switch, port, host| {
            path::Cable::plug(path, [(host, "eth0"), (switch, port)])
        })
    }

    /// A host whose `eth0` and port are made by `plug`, from the switch, the port's name and the host. `ip` shows `up` of
    /// them when they carry packets.
    fn plugged<T>(
        &mut self,
        name: &str,
        addresses: &[&str],
        up: &str,
        plug: impl FnOnce(&Namespace, &str, &Namespace) -> Result<T>,
    ) -> Result<(Host, T)> {
        let namespace = Namespace::create()?;
        self.ports += 1;
        let port = format!("port{}", self.ports);
        let host = Host {
            name: name.to_owned(),
            namespace,
            port: port.clone(),
        };
        host.check_no_duplicates()?;
        let plugged = plug(&self.switch, &port, &host.namespace)?;
        ip(
            &self.switch,
            &format!("link set {port} master br0\nlink set {port} up\n"),
        )?;
        let mut lines = "link set lo up\nlink set eth0 up\n".to_owned();
        for address in addresses {
            let nodad = if address.contains(':') { " nodad" } else { "" };
            lines += &format!("addr add {address} dev eth0{nodad}\n");
        }
        host.ip(&lines)?;
        wait_for_device(&host.namespace, "eth0", &[up])?;
        wait_for_device(&self.switch, &port, &[up, "bridge_slave state forwarding"])?;
        Ok((host, plugged))
    }

    /// A cable from one host to another, beside the switch: a device of this name at each end, with the address.
    ///
    /// # Errors
    ///
    /// [`LabError`].
    pub fn cable(&self, device: &str, ends: [(&Host, &str); 2]) -> Result<()> {
        let [(a, _), (b, _)] = ends;
        let path = b.namespace.path();
        a.ip(&format!(
            "link add {device} type veth peer name {device} netns {path}\n"
        ))?;
        for (host, address) in ends {
            let nodad = if address.contains(':') { " nodad" } else { "" };
            host.ip(&format!(
                "addr add {address} dev {device}{nodad}\nlink set {device} up\n"
            ))?;
        }
        for (host, _) in ends {
            host.wait_for(device)?;
        }
        Ok(())
    }

    /// The namespace of the switch.
    #[must_use]
    pub fn switch(&self) -> &Namespace {
        &self.switch
    }
}

impl Host {
    /// A host without a switch, with nothing but its `lo`, which is up.
    ///
    /// # Errors
    ///
    /// [`LabError`]; nothing is left behind.
    pub fn alone(name: &str) -> Result<Self> {
        let host = Self::in_namespace(name, Namespace::create()?);
        host.check_no_duplicates()?;
        host.ip("link set lo up\n")?;
        Ok(host)
    }

    /// The host whose network namespace this is: one that another process has made, or made by other means.
    #[must_use]
    pub fn in_namespace(name: &str, namespace: Namespace) -> Self {
        Self {
            name: name.to_owned(),
            namespace,
            port: String::new(),
        }
    }

    /// Else neighbours are not asked for until the link-local address has been checked for duplicates, for more than a second.
    fn check_no_duplicates(&self) -> Result<()> {
        if fs::exists("/proc/sys/net/ipv6").unwrap_or(false) {
            self.set("net/ipv6/conf/default/accept_dad", "0")?;
        }
        Ok(())
    }

    /// The name that it was given.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The port of the switch that it is plugged into; empty without a switch.
    #[must_use]
    pub fn port(&self) -> &str {
        &self.port
    }

    /// The hardware address of its `eth0`.
    ///
    /// # Errors
    ///
    /// [`LabError::Ip`].
    pub fn hardware_address(&self) -> Result<[u8; 6]> {
        let shown = ip(&self.namespace, "link show dev eth0\n")?;
        let mut words = shown.split_whitespace();
        let address = words.find(|word| *word == "link/ether").and(words.next());
        let mut bytes = [0; 6];
        let mut parts = address.unwrap_or_default().split(':');
        for byte in &mut bytes {
            let read = parts
                .next()
                .and_then(|part| u8::from_str_radix(part, 16).ok());
            *byte = read.ok_or_else(|| LabError::Ip(shown.clone()))?;
        }
        Ok(bytes)
    }

    /// Its network namespace.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Runs lines of `ip -batch` on this host.
    ///
    /// # Errors
    ///
    /// [`LabError::Ip`] with what `ip` said about the first line that it refused.
    pub fn ip(&self, lines: &str) -> Result<()> {
        ip(&self.namespace, lines)?;
        Ok(())
    }

    /// Waits until a device that was set up, like that at its other end, carries packets.
    ///
    /// The kernel starts such devices one after another, and each waits for all that other networks
    /// of the machine are changed in. Until then packets are lost without a word, and `connect` fails
    /// after three questions for the neighbour's address, a second apart.
    ///
    /// # Errors
    ///
    /// [`LabError::Silent`] after two minutes.
    pub fn wait_for(&self, device: &str) -> Result<()> {
        wait_for_device(&self.namespace, device, &[UP])
    }

    /// Waits until `ip -details` shows all of this of a device.
    ///
    /// # Errors
    ///
    /// [`LabError::Silent`] after two minutes.
    pub fn wait_until_shown(&self, device: &str, shows: &[&str]) -> Result<()> {
        wait_for_device(&self.namespace, device, shows)
    }

    /// Lets the host hold an address (`10.0.0.1/32`) without telling the network: on
    /// its loopback device, and silent to ARP requests for it. IPv6 is silent there by itself.
    ///
    /// # Errors
    ///
    /// [`LabError`].
    pub fn hold_silently(&self, addresses: &[&str]) -> Result<()> {
        self.set("net/ipv4/conf/all/arp_ignore", "1")?;
        self.set("net/ipv4/conf/all/arp_announce", "2")?;
        let mut lines = String::new();
        for address in addresses {
            let nodad = if address.contains(':') { " nodad" } else { "" };
            lines += &format!("addr add {address} dev lo{nodad}\n");
        }
        self.ip(&lines)
    }

    /// Writes a setting of `/proc/sys` as this host.
    ///
    /// # Errors
    ///
    /// [`LabError::Setting`].
    pub fn set(&self, setting: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/{setting}");
        self.run(|| fs::write(&path, value))?
            .map_err(|source| LabError::Setting { path, source })
    }

    /// Runs a closure as this host, on the calling thread.
    ///
    /// Sockets made in it stay this host's.
    ///
    /// # Errors
    ///
    /// [`LabError::Namespace`] if the host cannot be entered.
    pub fn run<T>(&self, action: impl FnOnce() -> T) -> Result<T> {
        let entered = self.namespace.enter()?;
        let done = action();
        drop(entered);
        Ok(done)
    }

    /// A command that will run on this host and dies with the thread that starts it.
    ///
    /// # Errors
    ///
    /// [`LabError::Start`].
    pub fn command(&self, program: &str) -> Result<Command> {
        let mut command = Command::new(program);
        command
            .in_namespace(&self.namespace)
            .map_err(|source| LabError::Start {
                program: "dup",
                source,
            })?
            .die_with_parent();
        Ok(command)
    }
}

/// `setsockopt` of bytes, for what only tests set.
///
/// # Errors
///
/// [`Error`] of the call.
pub fn set_option(fd: BorrowedFd<'_>, level: i32, option: i32, bytes: &[u8]) -> crate::Result<()> {
    raw::set_slice(fd, level, option, "setsockopt", bytes)
}

/// `getsockopt` of bytes, for what only tests read.
///
/// # Errors
///
/// [`Error`] of the call.
pub fn option(fd: BorrowedFd<'_>, level: i32, option: i32) -> crate::Result<Vec<u8>> {
    let mut bytes = vec![0; 256];
    let len = raw::get_bytes(fd, level, option, "getsockopt", &mut bytes)?;
    bytes.truncate(len);
    Ok(bytes)
}

/// An eBPF program for `SO_ATTACH_BPF` that accepts every packet.
///
/// # Errors
///
/// [`Error`] of the call: EPERM without `CAP_BPF` where `kernel.unprivileged_bpf_disabled` is set.
pub fn accepting_program() -> crate::Result<std::os::fd::OwnedFd> {
    // `struct bpf_insn`: r0 = -1; exit.
    raw::load_filter(&[0xffff_ffff_0000_00b7, 0x95])
}

/// The name of a test as its program knows it: its path without that of the program.
#[must_use]
pub fn test_name(path: &str) -> &str {
    path.split_once("::").map_or(path, |(_, name)| name)
}

/// Runs a test that makes networks: `test` is its name as [`test_name`] gives it.
///
/// As root here and now; for an ordinary user it runs the test of this name again, in a process in a
/// user namespace of its own.
///
/// # Panics
///
/// If the body does, if the test fails there, or if it cannot be run there: a test that cannot set itself up
/// has failed.
pub fn isolated(test: &str, body: impl FnOnce()) {
    if crate::netns::has_capabilities() {
        return body();
    }
    let program = std::env::current_exe();
    let output = program.and_then(|program| {
        Command::new("unshare")
            .args(["--user", "--map-root-user", "--net", "--"])
            .arg(program)
            .args(["--exact", test, "--nocapture"])
            .output()
    });
    let output = output.unwrap_or_else(|error| panic!("{test}: unshare of util-linux: {error}"));
    let said = String::from_utf8_lossy(&output.stdout);
    print!("{said}");
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    // A name that matches no test would succeed as well.
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{test} in a user namespace: {}",
        output.status
    );
}

/// A test that makes networks: `kernel_test!(its_name, || ...)`, or with a function of the same module.
#[macro_export]
macro_rules! kernel_test {
    ($name:ident, $body:expr) => {
        #[test]
        fn $name() {
            let path = concat!(module_path!(), "::", stringify!($name));
            $crate::lab::isolated($crate::lab::test_name(path), $body);
        }
    };
}

/// What `ip` shows of a device that the kernel has started.
const UP: &str = " state UP ";
/// The same of a TAP device, which the kernel does not say more of.
const UP_TAP: &str = ",LOWER_UP";

fn wait_for_device(namespace: &Namespace, device: &str, shows: &[&str]) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let shown = ip(namespace, &format!("link show dev {device}\n"))?;
        if shows.iter().all(|part| shown.contains(part)) {
            return Ok(());
        }
        if Instant::now() > deadline {
            let device = device.to_owned();
            return Err(LabError::Silent { device, shown });
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Runs the lines, and gives what `ip` shows.
fn ip(namespace: &Namespace, lines: &str) -> Result<String> {
    let start = |source| LabError::Start {
        program: "ip",
        source,
    };
    // It is started from inside: who enters between fork and exec makes the kernel copy all page tables of this process.
    let inside = namespace.enter()?;
    let mut child = Command::new("ip")
        .args(["-oneline", "-details", "-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(start)?;
    drop(inside);
    if let Some(mut stdin) = child.stdin.take() {
        // A refused line ends `ip`; what it said is read below.
        let _ = stdin.write_all(lines.as_bytes());
    }
    let output = child.wait_with_output().map_err(start)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(LabError::Ip(said));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
