//! Connections of programs that know nothing of this: a configured command gets them, as inetd's did.

use std::io::{self, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;

use tcpmig_sys::process::passing::own_user;

use super::Shared;
use super::config::ServiceCommand;
use super::taking::give_to;
use crate::driver::{Arrived, Offer};
use crate::handover::{Code, Refusal};

/// A connection that a command will get.
pub(super) struct Commanded {
    service: Arc<str>,
    command: ServiceCommand,
}

impl Shared {
    /// The command that gets a connection, if the configuration has one.
    pub(super) fn command_for(&self, offer: &Offer) -> Result<Option<Commanded>, Refusal> {
        let config = self.config();
        let local = offer.flow.local();
        let mut services = config.services.iter();
        let found = services.find(|(_, one)| one.command.is_some() && one.has_address(local));
        let Some((name, service)) = found else {
            return Ok(None);
        };
        let from = &offer.from;
        if !service.may_come_from(from) {
            let reason = format!("connections of the service {name} are not taken from {from}");
            return Err(Refusal::new(Code::Policy, reason));
        }
        // A program that knows nothing of layers would damage the session.
        if let Some(layer) = offer.layers.first() {
            return Err(Refusal::new(Code::Session, layer.unconsumed().to_string()));
        }
        Ok(service.command.clone().map(|command| Commanded {
            service: name.as_str().into(),
            command,
        }))
    }

    /// Starts the command for a connection that came.
    pub(super) fn start(&self, commanded: &Commanded, arrived: Arrived) {
        let (id, flow, service) = (arrived.id, arrived.flow, commanded.service.clone());
        let command = commanded.command.clone();
        self.metrics.count_arrival(&service, "arrived");
        give_to(&arrived.socket, command.account.user);
        // What the kernel did not take is written first, and may wait for the peer.
        tokio::task::spawn_blocking(move || {
            match run(&command, arrived.socket, &arrived.unwritten) {
                Ok(status) => tracing::info!(%id, %flow, %service, %status, "a command has ended"),
                Err(error) => {
                    tracing::error!(%id, %flow, %service, %error, "a connection that moved here is closed");
                }
            }
        });
    }
}

/// Until it has ended.
fn run(
    command: &ServiceCommand,
    socket: OwnedFd,
    unwritten: &[u8],
) -> io::Result<std::process::ExitStatus> {
    let mut stream = TcpStream::from(socket);
    stream.set_nonblocking(false)?;
    stream.write_all(unwritten)?;
    let ServiceCommand { words, account } = command;
    let mut starting = Command::new(&words[0]);
    starting
        .args(&words[1..])
        .current_dir("/")
        .stdin(OwnedFd::from(stream.try_clone()?))
        .stdout(OwnedFd::from(stream))
        .stderr(Stdio::inherit());
    if account.user != own_user() {
        // Supplementary groups are dropped with it.
        starting.uid(account.user).gid(account.group);
    }
    let mut child = starting.spawn()?;
    // The command has the only descriptors: the connection ends with it.
    drop(starting);
    child.wait()
}
