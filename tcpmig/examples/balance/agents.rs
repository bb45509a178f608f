//! The same without privileges: servers are processes of the user nobody, and agents move their connections.

use std::fmt::Write as _;
use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::{Mutex, mpsc};
use std::thread;

use serde::{Deserialize, Serialize};
use tcpmig::agent::server::Agent;
use tcpmig::agent::{Client, Event, Service};
use tcpmig::http::Server;
use tcpmig::session::{Carriers, Tcp};
use tcpmig_sys::lab::Host;
use tcpmig_sys::netns::Namespace;
use tcpmig_transport::keys::{Authority, Issued};
use tokio::io::AsyncBufReadExt;

use crate::site::{Moved, Site, movable, move_some, own_address, own_name};
use crate::{Result, SERVICE, tls};

/// The user of the servers, where there are others than root.
const NOBODY: u32 = 65534;

/// What a server reads first. Keys are not for command lines.
#[derive(Serialize, Deserialize)]
struct Setup {
    socket: PathBuf,
    /// Certificate and key, for HTTPS.
    tls: Option<(String, String)>,
}

/// The folder of all agents and servers.
pub(crate) struct Folder {
    path: PathBuf,
    user: u32,
    servers: usize,
}

impl Folder {
    pub(crate) fn create(authority: &Authority, servers: usize) -> Result<Self> {
        let name = format!("tcpmig-balance-{}", std::process::id());
        let folder = Self {
            path: std::env::temp_dir().join(name),
            // In a user namespace of an ordinary user there is one user only.
            user: if fs::read_to_string("/proc/self/uid_map")?
                .trim_end()
                .ends_with(" 1")
            {
                0
            } else {
                NOBODY
            },
            servers,
        };
        fs::create_dir(&folder.path)?;
        // Servers of the other user reach their agents' sockets and this program here, wherever it was built.
        fs::set_permissions(&folder.path, Permissions::from_mode(0o755))?;
        fs::copy(std::env::current_exe()?, folder.path.join("balance"))?;
        fs::write(folder.path.join("ca.pem"), authority.ca_pem())?;
        Ok(folder)
    }

    /// What the agent of this server has to know.
    fn config(&self, number: usize) -> Result<String> {
        let (name, own) = (own_name(number), own_address(number));
        let mut config = format!(
            "name = \"{name}\"\nlisten = \"{own}\"\ncertificate = \"{name}.pem\"\nkey = \"{name}.key\"\n\
             authority = \"ca.pem\"\njournal = \"{name}.journal\"\nsocket = \"{name}.sock\"\nsocket_mode = \"0666\"\n"
        );
        let others: Vec<usize> = (0..self.servers).filter(|other| *other != number).collect();
        for other in &others {
            let (name, address) = (own_name(*other), own_address(*other));
            write!(
                config,
                "[hosts.{name}]\naddress = \"{address}\"\nsteer = \"redirect\"\n"
            )?;
        }
        let others: Vec<String> = others.into_iter().map(own_name).collect();
        let (address, port) = SERVICE.rsplit_once(':').ok_or("no port")?;
        write!(
            config,
            "[services.web]\nusers = [{}]\naddresses = [\"{address}\"]\nports = [{port}]\nto = {others:?}\nfrom = {others:?}\n",
            self.user
        )?;
        Ok(config)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// A server that is a process of its own.
pub(crate) struct Unprivileged(Mutex<Talk>);

struct Talk {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Drop for Talk {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Unprivileged {
    /// Starts the agent of a host, and then its server.
    pub(crate) fn start(
        folder: &Folder,
        host: &Host,
        number: usize,
        issued: &Issued,
        web: Option<&Issued>,
    ) -> Result<Self> {
        issued.write_to(&folder.path)?;
        let name = own_name(number);
        let config = folder.path.join(format!("{name}.toml"));
        fs::write(&config, folder.config(number)?)?;
        start_agent(host, config)?;
        let program = folder.path.join("balance");
        let mut command = host.command("setpriv")?;
        // Who changes the user is not ended with its parent any more.
        command.args(["--pdeathsig", "KILL", "--no-new-privs", "--inh-caps=-all"]);
        command.arg("--bounding-set=-all");
        if folder.user != 0 {
            let user = folder.user.to_string();
            command.args(["--reuid", &user, "--regid", &user, "--clear-groups"]);
        }
        let mut child = command
            .arg("--")
            .arg(program)
            .arg("server")
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (orders, answers) = (child.stdin.take(), child.stdout.take());
        let site = Self(Mutex::new(Talk {
            child,
            orders: orders.ok_or("standard input")?,
            answers: BufReader::new(answers.ok_or("standard output")?),
        }));
        let setup = Setup {
            socket: folder.path.join(format!("{name}.sock")),
            tls: web.map(|web| (web.cert_pem.clone(), web.key_pem.clone())),
        };
        let ready: bool = site.ask(&serde_json::to_string(&setup)?)?;
        if ready {
            Ok(site)
        } else {
            Err(format!("{name} did not start").into())
        }
    }

    fn ask<T: for<'a> Deserialize<'a>>(&self, order: &str) -> Result<T> {
        let mut talk = self.0.lock().map_err(|_| "somebody panicked")?;
        writeln!(talk.orders, "{order}")?;
        let mut answer = String::new();
        talk.answers.read_line(&mut answer)?;
        serde_json::from_str(&answer).map_err(|_| "a server ended".into())
    }
}

impl Site for Unprivileged {
    fn count(&self) -> Result<usize> {
        self.ask("count")
    }

    fn move_some(&self, count: usize, to: usize) -> Result<Moved> {
        self.ask(&format!("move {count} {}", own_name(to)))
    }
}

/// On a thread in the host's network namespace, as root.
fn start_agent(host: &Host, config: PathBuf) -> Result<()> {
    let namespace = Namespace::open(&host.namespace().path())?;
    let (ready, is_ready) = mpsc::channel();
    thread::spawn(move || {
        let run = || -> Result<()> {
            namespace.enter_permanently()?;
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async {
                let mut agent = Agent::open(&config)?;
                let _ = ready.send(());
                agent.run().await;
                Ok(())
            })
        };
        if let Err(error) = run() {
            eprintln!("{}: {error}", config.display());
        }
    });
    is_ready.recv().map_err(|_| "an agent did not start".into())
}

/// A server, which is told on standard input what to do.
pub(crate) fn serve() -> Result<()> {
    let mut setup = String::new();
    std::io::stdin().read_line(&mut setup)?;
    let Setup { socket, tls } = serde_json::from_str(&setup)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    match tls {
        Some((cert, key)) => runtime.block_on(run(&socket, tls::server(&cert, &key)?)),
        None => runtime.block_on(run(&socket, Tcp)),
    }
}

async fn run<K: Carriers>(socket: &Path, carriers: K) -> Result<()> {
    let movable = movable(carriers);
    let server = Server::new(movable.clone());
    let listener = tokio::net::TcpListener::bind(SERVICE).await?;
    let agent = Client::connect(socket).await?;
    let service = Service::new("web").address(SERVICE.parse()?);
    let service = service.takes(move |offer| {
        let movable = movable.clone();
        async move { Ok(movable.check(&offer.layers)?) }
    });
    let mut events = agent.register(service).await?;
    let way = agent.way("web");
    let mut orders = tokio::io::BufReader::new(tokio::io::stdin()).lines();
    println!("true");
    loop {
        let server = server.clone();
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted?;
                stream.set_nodelay(true)?;
                tokio::spawn(async move { server.serve(stream).await });
            }
            Some(event) = events.next() => if let Event::Arrived(arrival) = event {
                tokio::spawn(async move {
                    if let Err(error) = server.arrived(arrival).await {
                        eprintln!("a connection was closed: {error}");
                    }
                });
            },
            order = orders.next_line() => {
                let Some(order) = order? else { return Ok(()) };
                let words: Vec<String> = order.split(' ').map(str::to_owned).collect();
                let way = way.clone();
                tokio::spawn(async move {
                    if let [_, count, to] = &words[..] {
                        let us = |report: &std::collections::BTreeMap<String, u64>| {
                            report.get("blackout_us").copied().unwrap_or_default()
                        };
                        let count = count.parse().unwrap_or(0);
                        let moved = move_some(&server, count, &way, to, us).await;
                        println!("{}", serde_json::json!(moved));
                    } else {
                        println!("{}", server.count());
                    }
                });
            }
        }
    }
}
