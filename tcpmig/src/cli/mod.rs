//! The verbs of the command and how they end.

mod agent;
mod bench;
mod demo;
mod doctor;
mod drain;
mod dump;
mod failure;
mod files;
mod guardian;
mod handovers;
mod import;
mod inspect;
mod keys;
mod list;
mod lockers;
mod locks;
mod manual;
mod move_;
mod print;
mod restore;
mod settle;
mod status;
mod taken;
mod thaw;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use tcpmig_sys::netns::Namespace;

/// Exit status 1: it failed, and a connection that was to move goes on where it was.
pub(crate) const FAILED: u8 = 1;
/// Exit status 3: nobody can say where a connection lives.
pub(crate) const IN_DOUBT: u8 = 3;
/// Exit status 4: there was nothing to do.
pub(crate) const NOTHING: u8 = 4;

/// Move live TCP connections, and the sessions on them, between hosts.
///
/// The other end of a connection that moves (a browser, curl, a phone) keeps it: no reset, no lost or repeated byte. Start with
/// `tcpmig demo`, which needs no privileges, and `tcpmig doctor`, which tells what works here.
#[derive(Debug, Parser)]
#[command(name = "tcpmig", version, max_term_width = 100, after_help = EXIT_STATUS)]
struct Cli {
    /// Print for machines: JSON on standard output, errors as JSON on standard error
    #[arg(long, global = true)]
    json: bool,

    #[command(subcommand)]
    verb: Verb,
}

const EXIT_STATUS: &str = "Exit status: 0 done; 1 failed, the connection goes on where it was; \
2 wrong usage; 3 nobody can say where the connection lives; 4 nothing to do. The variable \
TCPMIG_LOG (info, debug, tcpmig=trace) makes it tell more on standard error.";

#[derive(Debug, Subcommand)]
enum Verb {
    Agent(agent::AgentArgs),
    Bench(bench::BenchArgs),
    Demo(demo::DemoArgs),
    Doctor(doctor::DoctorArgs),
    Drain(drain::DrainArgs),
    Dump(dump::DumpArgs),
    Import(import::ImportArgs),
    Inspect(inspect::InspectArgs),
    List(list::ListArgs),
    Restore(restore::RestoreArgs),
    Status(status::StatusArgs),
    Thaw(thaw::ThawArgs),
    Locks(locks::LocksArgs),
    Move(move_::MoveArgs),
    Keys(keys::KeysArgs),
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    Manual(manual::ManualArgs),
    /// Plugs a device in again when the lease of a lock has ended whose process is dead
    #[command(hide = true, name = guardian::VERB)]
    Guardian(guardian::GuardianArgs),
    /// Sees whether a restored connection gets to its command
    #[command(hide = true, name = restore::WITNESS)]
    RestoreWitness(restore::WitnessArgs),
    /// A process of a measurement; it is told what to do on standard input
    #[command(hide = true, name = bench::PART)]
    BenchPart(bench::PartArgs),
    /// A version of the demo's server that is replaced; it is told what to do on standard input
    #[command(hide = true, name = demo::VERSION)]
    DemoVersion,
    /// A web server of the demo; it is told what to do on standard input
    #[command(hide = true)]
    DemoServer,
}

impl Verb {
    /// Whether it has done nothing if its output is lost.
    fn only_shows(&self) -> bool {
        match self {
            Self::Doctor(_)
            | Self::Inspect(_)
            | Self::List(_)
            | Self::Status(_)
            | Self::Completions { .. } => true,
            Self::Locks(locks) => locks.only_shows(),
            _ => false,
        }
    }
}

/// For whom the output is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    Text,
    Json,
}

pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    log_to_stderr(&cli.verb);
    let output = if cli.json { Output::Json } else { Output::Text };
    let shows = cli.verb.only_shows();
    let result = match cli.verb {
        Verb::Agent(args) => agent::main(&args),
        Verb::Bench(args) => bench::main(&args, output),
        Verb::Demo(args) => demo::main(&args, output),
        Verb::Doctor(args) => doctor::main(&args, output),
        Verb::Drain(args) => drain::main(&args, output),
        Verb::Dump(args) => dump::main(&args, output),
        Verb::List(args) => list::main(&args, output),
        Verb::Import(args) => import::main(&args, output),
        Verb::Inspect(args) => inspect::main(&args, output),
        Verb::Status(args) => status::main(&args, output),
        Verb::Restore(args) => restore::main(&args, output),
        Verb::Thaw(args) => thaw::main(&args, output),
        Verb::Move(args) => move_::main(&args, output),
        Verb::Locks(args) => locks::main(&args, output),
        Verb::Keys(args) => keys::main(&args, output),
        Verb::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "tcpmig", &mut script);
            print::to_output(format_args!("{}", String::from_utf8_lossy(&script)), "");
            Ok(ExitCode::SUCCESS)
        }
        Verb::Manual(args) => manual::main(&args, Cli::command()),
        Verb::Guardian(args) => guardian::main(&args),
        Verb::RestoreWitness(args) => restore::main_witness(&args),
        Verb::BenchPart(args) => bench::main_part(&args),
        Verb::DemoVersion => demo::main_version(),
        Verb::DemoServer => demo::main_server(),
    };
    let code = result.unwrap_or_else(|error| failure::print(&error, output));
    match print::failed() {
        None => code,
        Some(error) => failure::unprinted(error, if shows { FAILED.into() } else { code }, output),
    }
}

/// Goes to a network namespace for good, if one is named.
pub(crate) fn enter(namespace: Option<&str>) -> anyhow::Result<()> {
    use anyhow::Context;
    if let Some(name) = namespace {
        Namespace::open(name)
            .and_then(|namespace| namespace.enter_permanently())
            .with_context(|| format!("network namespace {name}"))?;
    }
    Ok(())
}

/// What `TCPMIG_LOG` asks for (`info`, `tcpmig=debug`), else warnings, and what becomes of each connection if that is all that is seen of
/// a verb.
fn log_to_stderr(verb: &Verb) {
    use tracing_subscriber::filter::{LevelFilter, Targets};
    use tracing_subscriber::layer::SubscriberExt;
    use tracing_subscriber::util::SubscriberInitExt;
    let usual = if matches!(verb, Verb::Agent(_)) {
        LevelFilter::INFO
    } else {
        LevelFilter::WARN
    };
    let usual = Targets::new().with_default(usual);
    let asked = std::env::var("TCPMIG_LOG").ok();
    let asked = asked.filter(|asked| !asked.is_empty());
    let asked = asked.map(|asked| asked.parse::<Targets>().map_err(|error| (asked, error)));
    let (filter, wrong) = match asked {
        Some(Ok(filter)) => (filter, None),
        Some(Err(wrong)) => (usual, Some(wrong)),
        None => (usual, None),
    };
    tracing_subscriber::fmt()
        .with_max_level(LevelFilter::TRACE)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .without_time()
        .finish()
        .with(filter)
        .init();
    if let Some((asked, error)) = wrong {
        tracing::warn!("TCPMIG_LOG={asked:?} is not understood ({error}): info, or tcpmig=debug");
    }
}
