//! `tcpmig list`: the TCP connections of this host.

use std::collections::HashMap;
use std::fs;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;
use tcpmig::agent::Registered;
use tcpmig::capture::Plan;
use tcpmig::driver::policy::Prefix;
use tcpmig_sys::info::State;
use tcpmig_sys::process::owners::{self, Owner};
use tcpmig_sys::process::take::descriptor;
use tcpmig_sys::sockets::{self, Listed};

use super::print::{say, tell};
use super::status::AgentSocket;
use super::{NOTHING, Output, enter};

/// List TCP connections: who has them, what waits in their queues, which service they are of, and whether they can be moved.
///
/// Whose process may not be inspected shows none: run it as root to see all. Whether one can be moved is told from what the kernel lists;
/// with --check each is looked at more closely, as a move would do it. Nothing is changed by either.
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    filter: Filter,

    /// Look at each connection as a move would: urgent data, upper layers, keys and options show only there
    #[arg(long)]
    check: bool,

    /// List those of this network namespace (a name of `ip netns`, or a path)
    #[arg(long, value_name = "NAME|PATH")]
    netns: Option<String>,

    #[command(flatten)]
    agent: AgentSocket,
}

/// Which connections are meant.
#[derive(Debug, Args)]
pub(crate) struct Filter {
    /// In this state (established, close-wait, ...); several can be given
    #[arg(long, value_name = "STATE", value_parser = state)]
    state: Vec<State>,

    /// Whose own end is this: ADDRESS, ADDRESS/LENGTH, :PORT or ADDRESS:PORT
    #[arg(long, value_name = "END", value_parser = end)]
    local: Vec<End>,

    /// Whose other end is this
    #[arg(long, value_name = "END", value_parser = end)]
    remote: Vec<End>,

    /// Of this process
    #[arg(long, value_name = "P")]
    pub(crate) pid: Option<u32>,

    /// Of this service, as the agent knows it
    #[arg(long, value_name = "NAME")]
    service: Option<String>,

    /// Only what can be moved
    #[arg(long)]
    movable: bool,
}

/// Addresses and a port.
#[derive(Debug, Clone, Copy)]
struct End {
    addresses: Option<Prefix>,
    port: Option<u16>,
}

impl End {
    fn is(&self, end: SocketAddr) -> bool {
        self.port.is_none_or(|port| port == end.port())
            && self
                .addresses
                .is_none_or(|addresses| addresses.contains(end.ip()))
    }
}

fn end(text: &str) -> Result<End, String> {
    let of_port = |text: &str| {
        let port = text
            .parse()
            .map_err(|_| format!("{text:?} is not a port"))?;
        Ok::<_, String>(Some(port))
    };
    if let Some(port) = text.strip_prefix(':') {
        return Ok(End {
            addresses: None,
            port: of_port(port)?,
        });
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(End {
            addresses: Some(address.ip().into()),
            port: Some(address.port()),
        });
    }
    let addresses = text.parse::<Prefix>().map_err(|error| error.to_string())?;
    Ok(End {
        addresses: Some(addresses),
        port: None,
    })
}

/// States by the names that `ss` has for them.
const STATES: [(&str, State); 11] = [
    ("established", State::Established),
    ("syn-sent", State::SynSent),
    ("syn-recv", State::SynReceived),
    ("fin-wait-1", State::FinWait1),
    ("fin-wait-2", State::FinWait2),
    ("time-wait", State::TimeWait),
    ("close", State::Close),
    ("close-wait", State::CloseWait),
    ("last-ack", State::LastAck),
    ("listen", State::Listen),
    ("closing", State::Closing),
];

fn state(text: &str) -> Result<State, String> {
    let known = STATES
        .iter()
        .find(|(name, _)| *name == text.to_ascii_lowercase());
    known.map(|(_, state)| *state).ok_or_else(|| {
        let names: Vec<&str> = STATES.iter().map(|(name, _)| *name).collect();
        format!("{text:?} is none of {}", names.join(", "))
    })
}

fn name(state: State) -> &'static str {
    // The kernel has two of them, before and after a process can have it.
    let state = if state == State::NewSynReceived {
        State::SynReceived
    } else {
        state
    };
    let known = STATES.iter().find(|(_, known)| *known == state);
    known.map_or("?", |(name, _)| name)
}

/// A connection with all that is shown of it.
pub(crate) struct Shown {
    pub(crate) listed: Listed,
    pub(crate) owners: Vec<Owner>,
    pub(crate) service: Option<String>,
    /// Why it cannot be moved.
    pub(crate) hindered: Option<String>,
}

impl Filter {
    /// Whether it takes everything.
    pub(crate) fn is_open(&self) -> bool {
        let has_ends = !self.local.is_empty() || !self.remote.is_empty();
        !has_ends && self.state.is_empty() && self.pid.is_none() && self.service.is_none()
    }

    fn takes(&self, shown: &Shown) -> bool {
        let Listed {
            state,
            local,
            remote,
            ..
        } = shown.listed;
        let by_state = if self.state.is_empty() {
            state != State::Listen
        } else {
            self.state.iter().any(|wanted| name(*wanted) == name(state))
        };
        let any = |ends: &[End], of| ends.is_empty() || ends.iter().any(|end| end.is(of));
        by_state
            && any(&self.local, local)
            && any(&self.remote, remote)
            && self
                .pid
                .is_none_or(|pid| shown.owners.iter().any(|owner| owner.pid == pid))
            && (self.service.is_none() || self.service == shown.service)
    }
}

/// The connections that are meant, of the network namespace of this thread.
pub(crate) fn select(
    filter: &Filter,
    services: &[Registered],
    check: bool,
) -> anyhow::Result<Vec<Shown>> {
    let mut owners = owners::all()?;
    let mut shown: Vec<Shown> = sockets::list()?
        .into_iter()
        .map(|listed| Shown {
            owners: owners.remove(&listed.inode).unwrap_or_default(),
            service: service_of(services, listed.local),
            hindered: None,
            listed,
        })
        .filter(|shown| filter.takes(shown))
        .collect();
    for one in &mut shown {
        one.hindered = hindered(one).or_else(|| check.then(|| looked_at(one)).flatten());
    }
    shown.retain(|one| !filter.movable || one.hindered.is_none());
    shown.sort_by_key(|one| (one.listed.local, one.listed.remote));
    Ok(shown)
}

/// Whether a connection with this local end is of a service.
pub(crate) fn is_of(service: &Registered, local: SocketAddr) -> bool {
    let canonical = local.ip().to_canonical();
    let is = |address: &SocketAddr| {
        address.port() == local.port()
            && (address.ip().is_unspecified() || address.ip().to_canonical() == canonical)
    };
    service.addresses.iter().any(is)
}

fn service_of(services: &[Registered], local: SocketAddr) -> Option<String> {
    let found = services.iter().find(|one| is_of(one, local));
    found.map(|one| one.service.clone())
}

/// What is known without touching it.
fn hindered(one: &Shown) -> Option<String> {
    let why = match one.listed.state {
        State::Listen => "a listener",
        State::TimeWait => "it has ended; nobody has it",
        State::SynReceived | State::NewSynReceived => "its handshake is not done",
        _ if one.listed.inode == 0 => "nobody has it: it waits to be accepted, or to end",
        _ => return None,
    };
    Some(why.to_owned())
}

/// What a move would find before it touches anything.
fn looked_at(one: &Shown) -> Option<String> {
    let Some(owner) = one.owners.first() else {
        return Some("its process may not be inspected".to_owned());
    };
    let socket = match descriptor(owner.pid, owner.fd) {
        Ok(socket) => socket,
        Err(error) => return Some(error.to_string()),
    };
    Plan::read(socket.as_fd())
        .err()
        .map(|error| error.to_string())
}

pub(crate) fn main(args: &ListArgs, output: Output) -> anyhow::Result<ExitCode> {
    // Not from the other network namespace: the agent's socket is a file.
    let services = match args.agent.status() {
        Ok(status) => status.services,
        // What it does not need it does without.
        Err(error) if args.filter.service.is_some() => return Err(error),
        Err(_) => Vec::new(),
    };
    enter(args.netns.as_deref())?;
    let shown = select(&args.filter, &services, args.check)?;
    match output {
        Output::Json => {
            let shown: Vec<_> = shown.iter().map(json).collect();
            say!("{}", json!(shown));
        }
        Output::Text => print(&shown),
    }
    if shown.is_empty() {
        if output == Output::Text {
            tell!("no connection is like that");
        }
        return Ok(ExitCode::from(NOTHING));
    }
    Ok(ExitCode::SUCCESS)
}

fn json(one: &Shown) -> serde_json::Value {
    let owners: Vec<_> = one
        .owners
        .iter()
        .map(|owner| json!({ "pid": owner.pid, "fd": owner.fd }))
        .collect();
    json!({
        "state": name(one.listed.state),
        "local": one.listed.local.to_string(),
        "remote": one.listed.remote.to_string(),
        "receive_queue": one.listed.receive_queue,
        "send_queue": one.listed.send_queue,
        "user": one.listed.user,
        "owners": owners,
        "service": one.service,
        "movable": one.hindered.is_none(),
        "reason": one.hindered,
    })
}

fn print(shown: &[Shown]) {
    if shown.is_empty() {
        return;
    }
    let mut names = HashMap::new();
    say!(
        "{:<11} {:>9} {:>9} {:<28} {:<28} {:<24} {:<14} MOVABLE",
        "STATE",
        "RECEIVED",
        "TO SEND",
        "LOCAL",
        "REMOTE",
        "PROCESS",
        "SERVICE"
    );
    for one in shown {
        let owner = one.owners.first();
        let owner = owner.map(|owner| {
            let name = names.entry(owner.pid).or_insert_with(|| command(owner.pid));
            format!("{name} {} fd {}", owner.pid, owner.fd)
        });
        say!(
            "{:<11} {:>9} {:>9} {:<28} {:<28} {:<24} {:<14} {}",
            name(one.listed.state),
            one.listed.receive_queue,
            one.listed.send_queue,
            one.listed.local.to_string(),
            one.listed.remote.to_string(),
            owner.unwrap_or_else(|| "-".to_owned()),
            one.service.as_deref().unwrap_or("-"),
            one.hindered
                .as_deref()
                .map_or("yes".to_owned(), |why| format!("no: {why}"))
        );
    }
}

/// The name of a process; empty if it has ended.
fn command(pid: u32) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    name.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_given_as_addresses_and_ports() {
        let is = |text: &str, of: &str| end(text).unwrap().is(of.parse().unwrap());
        assert!(is(":80", "10.0.0.1:80") && !is(":80", "10.0.0.1:81"));
        assert!(is("10.0.0.1", "10.0.0.1:80") && !is("10.0.0.2", "10.0.0.1:80"));
        assert!(is("10.0.0.0/8", "[::ffff:10.0.0.1]:80"));
        assert!(is("10.0.0.1:80", "10.0.0.1:80") && !is("10.0.0.1:80", "10.0.0.1:81"));
        assert!(is("[2001:db8::1]:80", "[2001:db8::1]:80"));
        assert!(is("2001:db8::/32", "[2001:db8::1]:80"));
        assert!(end("port").is_err() && end(":port").is_err());
    }

    #[test]
    fn states_have_the_names_of_ss() {
        for (text, known) in STATES {
            assert_eq!(state(text).unwrap(), known);
            assert_eq!(name(known), text);
        }
        assert!(state("open").unwrap_err().contains("established"));
    }
}
