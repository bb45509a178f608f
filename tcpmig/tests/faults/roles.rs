//! The processes of the two hosts. Each says where it stands and waits for a line before it goes on.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use tcpmig::capture::Frozen;
use tcpmig::driver::journal::{File, HandoverInfo, Journal, Note, Role, Unfinished};
use tcpmig::driver::{Acceptor, Destination, Ending, Mover, Options, Resolved};
use tcpmig::handover::{Fate, HandoverId};
use tcpmig::steer::{Redirected, Steer, SteerError, Steering};
use tcpmig_format::FourTuple;
use tcpmig_lock::{Entry, LockError, LockGuard, Locker, Nftables, Swept};

use crate::Step;
use crate::support::endpoint;

pub(crate) const SERVICE: &str = "198.18.0.80:80";
const SOURCE: &str = "198.18.0.1:7077";
/// Connections that are given away at once.
pub(crate) const BATCH: usize = 24;
const TARGET: &str = "198.18.0.2:7077";

pub(crate) fn run(mut arguments: impl Iterator<Item = String>) {
    let (role, journal) = (arguments.next().unwrap(), arguments.next().unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    match role.as_str() {
        "source" => runtime.block_on(source(Path::new(&journal))),
        "sources" => runtime.block_on(sources(Path::new(&journal))),
        "again" => runtime.block_on(source_again(Path::new(&journal))),
        "notes" => notes(Path::new(&journal)),
        "target" => runtime.block_on(target(Path::new(&journal), true)),
        "targets" => runtime.block_on(target(Path::new(&journal), false)),
        other => panic!("no role {other}"),
    }
}

fn pem() -> [String; 3] {
    ["CERT", "KEY", "CA"].map(|name| std::env::var(name).unwrap())
}

fn stop_at(step: Step) {
    println!("at {step:?}");
    hear();
}

fn hear() -> String {
    let mut line = String::new();
    io::stdin().read_line(&mut line).unwrap();
    line
}

/// How long a single handover waits for PREPARED where the fault comes before it.
pub(crate) const PREPARED_WITHIN: Duration = Duration::from_millis(1500);

fn options() -> Options {
    let limit = |name| {
        let milliseconds = std::env::var(name).unwrap().parse().unwrap();
        Duration::from_millis(milliseconds)
    };
    let mut options = Options::default();
    options.lease = limit("LEASE_MS");
    options.settle = Duration::ZERO;
    options.prepared_within = limit("PREPARED_MS");
    options.commit_at_once = std::env::var("AT_ONCE").unwrap().parse().unwrap();
    options.answer_within = Duration::from_millis(300);
    options
}

/// Answers until it is told to stop, and then nothing that was read is unanswered.
fn echo(mut stream: &TcpStream, stop: &AtomicBool) {
    stream.set_nonblocking(false).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_millis(20)))
        .unwrap();
    let mut bytes = [0; 4096];
    while !stop.load(Ordering::Relaxed) {
        match stream.read(&mut bytes) {
            Ok(0) => return,
            Ok(count) if stream.write_all(&bytes[..count]).is_err() => return,
            Ok(_) => {}
            // Interrupted: the process stood still for a while (signal(7), with SO_RCVTIMEO).
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) => {}
            // The peer has gone.
            Err(_) => return,
        }
    }
}

async fn source(journal: &Path) {
    let service: SocketAddr = SERVICE.parse().unwrap();
    let listener = TcpListener::bind(service).unwrap();
    let locker = Arc::new(Stopping(tcpmig::locker::nftables().unwrap()));
    let endpoint = endpoint(SOURCE.parse().unwrap(), &pem());
    println!("listening");
    let (stream, _) = listener.accept().unwrap();
    drop(listener);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| echo(&stream, &stop));
        hear();
        stop.store(true, Ordering::Relaxed);
    });
    let target: SocketAddr = TARGET.parse().unwrap();
    let redirected = Redirected::new(target.ip(), Duration::from_secs(60)).unwrap();
    let to = Destination {
        address: target,
        name: "host-b".to_owned(),
        steer: Arc::new(StoppingSteer(redirected)),
    };
    let journal = Arc::new(StoppingJournal(File::open(journal).unwrap()));
    let mover = Mover::new(endpoint, locker, options()).with_journal(journal);
    let outcome = mover.move_out(OwnedFd::from(stream), None, &to).await;
    let ending = settled(outcome.ending).await;
    tell(outcome.flow.unwrap(), ending.fate());
    println!("ended");
    if let Ending::Kept { socket, .. } = ending {
        tokio::task::spawn_blocking(|| echo(&socket.into(), &AtomicBool::new(false)));
    }
    std::future::pending::<()>().await;
}

/// Gives many connections away at once, and stops at no step.
async fn sources(journal: &Path) {
    let service: SocketAddr = SERVICE.parse().unwrap();
    let listener = TcpListener::bind(service).unwrap();
    let locker = Arc::new(tcpmig::locker::nftables().unwrap());
    let endpoint = endpoint(SOURCE.parse().unwrap(), &pem());
    println!("listening");
    let streams: Vec<TcpStream> = (0..BATCH).map(|_| listener.accept().unwrap().0).collect();
    drop(listener);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for stream in &streams {
            scope.spawn(|| echo(stream, &stop));
        }
        hear();
        stop.store(true, Ordering::Relaxed);
    });
    println!("moving");
    let target: SocketAddr = TARGET.parse().unwrap();
    let redirected = Redirected::new(target.ip(), Duration::from_secs(60)).unwrap();
    let to = Destination {
        address: target,
        name: "host-b".to_owned(),
        steer: Arc::new(redirected),
    };
    let journal = Arc::new(File::open(journal).unwrap());
    let mut options = options();
    options.in_flight = 6;
    options.prepared_within = Duration::from_secs(5);
    let mover = Mover::new(endpoint, locker, options).with_journal(journal);
    let ports: Vec<u16> = streams
        .iter()
        .map(|stream| stream.peer_addr().unwrap().port())
        .collect();
    let mut moves = mover.move_all(streams.into_iter().map(OwnedFd::from), &to);
    let mut said = Vec::new();
    while let Some(outcome) = moves.next().await {
        let ending = settled(outcome.ending).await;
        if let Some(flow) = outcome.flow {
            said.push(flow.remote().port());
            tell(flow, ending.fate());
        }
        if let Ending::Kept { socket, .. } = ending {
            tokio::task::spawn_blocking(|| echo(&socket.into(), &AtomicBool::new(false)));
        }
    }
    // Those that were not looked at have no flow, and are kept.
    for port in ports.iter().filter(|port| !said.contains(port)) {
        println!("{port} Kept");
    }
    println!("ended");
    std::future::pending::<()>().await;
}

/// Asks until somebody answers: on a busy machine a target may take longer than the source asks by itself.
async fn settled(mut ending: Ending) -> Ending {
    while let Ending::InDoubt(doubt) = ending {
        ending = doubt.ask().await.ending;
    }
    ending
}

/// Says where a connection is, by its peer's port.
fn tell(flow: FourTuple, fate: Fate) {
    println!("{} {fate:?}", flow.remote().port());
}

/// The source's process after one that was killed.
async fn source_again(journal: &Path) {
    let locker = Arc::new(tcpmig::locker::nftables().unwrap());
    let endpoint = endpoint(SOURCE.parse().unwrap(), &pem());
    let journal = Arc::new(File::open(journal).unwrap());
    let mover = Mover::new(endpoint, locker, options()).with_journal(journal.clone());
    loop {
        let resolved = mover.resolve().await;
        for Resolved { fate, open, .. } in &resolved {
            tell(open.about.flow, *fate);
        }
        if journal.left_open().is_empty() {
            println!("nothing is open");
            break;
        }
        // The link may be cut, or the target be down.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    std::future::pending::<()>().await;
}

/// Notes one handover after the other, and says each note after it was made.
fn notes(journal: &Path) {
    let journal = File::open_with(journal, 50).unwrap();
    let flow = "198.18.0.80:80,198.18.0.9:51234".parse().unwrap();
    let mut about = HandoverInfo::new(Role::Target, flow, "host-b", None);
    let mut out = io::stdout().lock();
    writeln!(out, "begun").unwrap();
    loop {
        let id = HandoverId::random().unwrap();
        about.role = Role::Source;
        journal.begin(id, &about).unwrap();
        writeln!(out, "{id} Offering.").unwrap();
        for note in [Note::Committing, Note::Moved] {
            journal.note(id, note).unwrap();
            writeln!(out, "{id} {note:?}.").unwrap();
        }
        about.role = Role::Target;
        journal.begin(id, &about).unwrap();
        writeln!(out, "{id} Prepared.").unwrap();
        for note in [Note::Activating, Note::Active] {
            journal.note(id, note).unwrap();
            writeln!(out, "{id} {note:?}.").unwrap();
        }
    }
}

async fn target(journal: &Path, stops: bool) {
    let locker = Arc::new(tcpmig::locker::nftables().unwrap());
    let endpoint = endpoint(TARGET.parse().unwrap(), &pem());
    let journal = File::open(journal).unwrap();
    let journal: Arc<dyn Journal> = if stops {
        Arc::new(StoppingJournal(journal))
    } else {
        Arc::new(journal)
    };
    let mut arrivals = Acceptor::new(endpoint, locker)
        .options(options())
        .journal(journal)
        .serve();
    println!("serving");
    while let Some(arrived) = arrivals.next().await {
        let mut stream = TcpStream::from(arrived.socket);
        stream.set_nonblocking(false).unwrap();
        stream.write_all(&arrived.unwritten).unwrap();
        // The rest of the process goes on: it may have to say ACTIVE again.
        tokio::task::spawn_blocking(move || {
            if stops {
                stop_at(Step::Active);
            }
            echo(&stream, &AtomicBool::new(false));
        });
    }
}

struct StoppingJournal(File);

impl Journal for StoppingJournal {
    fn begin(&self, id: HandoverId, about: &HandoverInfo) -> io::Result<()> {
        self.0.begin(id, about)?;
        if about.role == Role::Target {
            stop_at(Step::Accept);
        }
        Ok(())
    }

    fn note(&self, id: HandoverId, note: Note) -> io::Result<()> {
        if note == Note::Activating {
            stop_at(Step::Activate);
        }
        self.0.note(id, note)?;
        match note {
            Note::Committing => stop_at(Step::Decided),
            Note::Activating => stop_at(Step::Noted),
            _ => {}
        }
        Ok(())
    }

    fn lookup(&self, id: HandoverId) -> Option<Note> {
        self.0.lookup(id)
    }

    fn offered_by(&self, id: HandoverId) -> Option<String> {
        self.0.offered_by(id)
    }

    fn left_open(&self) -> Vec<Unfinished> {
        self.0.left_open()
    }
}

struct Stopping(Nftables);

impl Locker for Stopping {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn lock(&self, flows: &[FourTuple], lease: Duration) -> Result<LockGuard, LockError> {
        let guard = self.0.lock(flows, lease)?;
        stop_at(Step::Locked);
        Ok(guard)
    }

    fn sweep(&self) -> Result<Swept, LockError> {
        self.0.sweep()
    }

    fn list(&self) -> Result<Vec<Entry>, LockError> {
        self.0.list()
    }
}

struct StoppingSteer(Redirected);

impl Steer for StoppingSteer {
    fn plan(&self, flow: FourTuple, locker: &dyn Locker) -> Result<Box<dyn Steering>, SteerError> {
        Ok(Box::new(StoppingSteering(self.0.plan(flow, locker)?)))
    }
}

struct StoppingSteering(Box<dyn Steering>);

impl Steering for StoppingSteering {
    fn steer(self: Box<Self>, frozen: &mut Frozen) -> Result<(), SteerError> {
        stop_at(Step::Steering);
        self.0.steer(frozen)?;
        stop_at(Step::Steered);
        Ok(())
    }
}
