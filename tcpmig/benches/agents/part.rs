//! A part of a measurement, in a process of its own, which is spoken to line by line.

use std::io::{BufRead, Write};
use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tcpmig_sys::lab::Host;
use tcpmig_sys::process::descriptors;
use tokio::sync::mpsc;

use crate::fleet::client::{self, Task};
use crate::fleet::server::{self, Through};
use crate::fleet::{Keys, Orders};
use crate::support::Program;
use crate::upgrade;

#[derive(Serialize, Deserialize)]
pub(crate) enum Role {
    Server(Keys, Through),
    Clients(Task),
    /// A version of a server, with the socket at which versions meet.
    Version(Keys, PathBuf),
}

pub(crate) struct Part(Program);

impl Deref for Part {
    type Target = Program;

    fn deref(&self) -> &Program {
        &self.0
    }
}

impl DerefMut for Part {
    fn deref_mut(&mut self) -> &mut Program {
        &mut self.0
    }
}

impl Part {
    pub(crate) fn start(host: &Host, role: &Role) -> Self {
        let program = std::env::current_exe().unwrap();
        let command = host.command(program.to_str().unwrap()).unwrap();
        Self::by(command, role)
    }

    fn by(mut command: Command, role: &Role) -> Self {
        command.args(["part", &serde_json::to_string(role).unwrap()]);
        Self(Program::spawn(&mut command))
    }
}

pub(crate) fn run(role: &str) {
    let role: Role = serde_json::from_str(role).unwrap();
    descriptors::raise_limit().unwrap();
    let (sender, heard) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    let say = |line: &str| {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{line}").and_then(|()| out.flush()).unwrap();
    };
    let orders = Orders {
        heard,
        say: Arc::new(say),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        match role {
            Role::Server(keys, through) => server::serve(&keys, through, orders).await,
            Role::Clients(task) => client::run(&task, orders).await,
            Role::Version(keys, path) => upgrade::version(&keys, &path, orders).await,
        }
    });
}
