//! What the agent counts, for Prometheus.

use std::fmt;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabel, EncodeLabelSet, LabelSetEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::config;

/// How long somebody may take to ask.
const ASKED_WITHIN: Duration = Duration::from_secs(5);
/// How many may ask at a time.
const AT_ONCE: usize = 16;
/// The most bytes of a question.
const MAX_QUESTION: usize = 8 << 10;

/// A service, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Of {
    service: Arc<str>,
    outcome: Option<&'static str>,
}

impl EncodeLabelSet for Of {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        let mut labels = vec![("service", &*self.service)];
        labels.extend(self.outcome.map(|outcome| ("outcome", outcome)));
        for label in labels {
            EncodeLabel::encode(&label, encoder.encode_label())?;
        }
        Ok(())
    }
}

/// What is counted while the agent runs.
#[derive(Debug)]
pub(super) struct Metrics {
    registry: Registry,
    moves: Family<Of, Counter>,
    arrivals: Family<Of, Counter>,
    blackout: Histogram,
    pub(super) moving: Gauge<i64, AtomicI64>,
    pub(super) doubts: Gauge<i64, AtomicI64>,
    pub(super) clients: Gauge<i64, AtomicI64>,
    sessions: Family<Of, Gauge>,
    held: Family<Held, Gauge>,
    reloads: Family<Reload, Counter>,
}

/// A configuration that was read again.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reload {
    outcome: &'static str,
}

/// What the locker holds.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Held {
    kind: &'static str,
}

impl Metrics {
    pub(super) fn new() -> Self {
        let mut registry = Registry::with_prefix("tcpmig");
        // From a tenth of a millisecond to a few seconds.
        let buckets = [
            0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1., 2.,
            5.,
        ];
        let blackout = Histogram::new(buckets);
        let (moves, arrivals) = (Family::default(), Family::default());
        let (sessions, held) = (Family::default(), Family::default());
        let reloads = Family::default();
        registry.register(
            "reloads",
            "How often the configuration or the certificates were read again",
            reloads.clone(),
        );
        let (moving, doubts, clients) = (Gauge::default(), Gauge::default(), Gauge::default());
        registry.register(
            "moves",
            "Connections that were given away, by what became of them",
            moves.clone(),
        );
        registry.register(
            "arrivals",
            "Connections that other hosts offered, by what became of them",
            arrivals.clone(),
        );
        registry.register_with_unit(
            "blackout",
            "How long a connection that moved stood still",
            Unit::Seconds,
            blackout.clone(),
        );
        registry.register("moving", "Connections that are moving", moving.clone());
        registry.register(
            "doubts",
            "Connections of which nobody can say where they live",
            doubts.clone(),
        );
        registry.register(
            "clients",
            "Programs that talk to the agent",
            clients.clone(),
        );
        registry.register("sessions", "Connections of a service", sessions.clone());
        registry.register(
            "held",
            "Connections whose packets are locked or redirected here",
            held.clone(),
        );
        Self {
            registry,
            moves,
            arrivals,
            blackout,
            moving,
            doubts,
            clients,
            sessions,
            held,
            reloads,
        }
    }

    pub(super) fn count_reload(&self, is_done: bool) {
        let outcome = if is_done { "done" } else { "failed" };
        self.reloads.get_or_create(&Reload { outcome }).inc();
    }

    pub(super) fn count_move(&self, service: &Arc<str>, outcome: &'static str) {
        self.moves.get_or_create(&of(service, outcome)).inc();
    }

    pub(super) fn count_arrival(&self, service: &Arc<str>, outcome: &'static str) {
        self.arrivals.get_or_create(&of(service, outcome)).inc();
    }

    pub(super) fn stood_still(&self, time: Duration) {
        self.blackout.observe(time.as_secs_f64());
    }

    /// How many moves of a service had this outcome.
    pub(super) fn moves(&self, service: &Arc<str>, outcome: &'static str) -> u64 {
        self.moves.get_or_create(&of(service, outcome)).get()
    }

    /// What there is at this moment, by service and by kind.
    pub(super) fn set_now(&self, sessions: &[(Arc<str>, u64)], held: [(&'static str, u64); 2]) {
        self.sessions.clear();
        for (service, count) in sessions {
            let of = Of {
                service: service.clone(),
                outcome: None,
            };
            let count = i64::try_from(*count).unwrap_or(i64::MAX);
            self.sessions.get_or_create(&of).set(count);
        }
        for (kind, count) in held {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.held.get_or_create(&Held { kind }).set(count);
        }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        // INVARIANT: a string takes everything.
        encode(&mut text, &self.registry).expect("a string takes metrics");
        text
    }
}

fn of(service: &Arc<str>, outcome: &'static str) -> Of {
    Of {
        service: service.clone(),
        outcome: Some(outcome),
    }
}

/// Where they are asked for.
pub(super) enum Door {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Door {
    pub(super) fn open(at: &config::Metrics) -> io::Result<Self> {
        match at {
            config::Metrics::Tcp(address) => {
                let listener = std::net::TcpListener::bind(address)?;
                listener.set_nonblocking(true)?;
                Ok(Self::Tcp(TcpListener::from_std(listener)?))
            }
            config::Metrics::Unix(path) => {
                remove_socket(path)?;
                let listener = UnixListener::bind(path)?;
                // There are no secrets in it, but who may know is for the folder to say.
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
                Ok(Self::Unix(listener))
            }
        }
    }

    /// Answers, for ever. `look` brings what is known only when somebody asks.
    pub(super) async fn serve(
        self,
        metrics: Arc<Metrics>,
        look: impl Fn() + Send + Sync + 'static,
    ) {
        let look = Arc::new(look);
        let permits = Arc::new(Semaphore::new(AT_ONCE));
        loop {
            // INVARIANT: nobody closes the semaphore.
            let permit = permits.clone().acquire_owned().await;
            let accepted: io::Result<Box<dyn Stream>> = match &self {
                Self::Tcp(listener) => listener.accept().await.map(|(one, _)| Box::new(one) as _),
                Self::Unix(listener) => listener.accept().await.map(|(one, _)| Box::new(one) as _),
            };
            let stream = match accepted {
                Ok(stream) => stream,
                Err(error) => {
                    tracing::warn!(%error, "nobody can ask for metrics");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    continue;
                }
            };
            let (metrics, look) = (metrics.clone(), look.clone());
            tokio::spawn(async move {
                let _permit = permit;
                // Who asks and does not wait for the answer hears nothing.
                let _ = timeout(ASKED_WITHIN, answer(stream, &metrics, &*look)).await;
            });
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Removes what an earlier agent left; anything that is not a socket stays.
pub(super) fn remove_socket(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::FileTypeExt;
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => std::fs::remove_file(path),
        Ok(_) => Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "there is a file of that name that is not a socket",
        )),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// One question and its answer, as HTTP/1.0 has it: who asks again connects again.
async fn answer(
    mut stream: Box<dyn Stream>,
    metrics: &Metrics,
    look: &(impl Fn() + Sync),
) -> io::Result<()> {
    let mut question = Vec::new();
    let mut part = [0; 1024];
    while !question.windows(4).any(|end| end == b"\r\n\r\n") {
        let len = stream.read(&mut part).await?;
        if len == 0 || question.len() > MAX_QUESTION {
            return Ok(());
        }
        question.extend_from_slice(&part[..len]);
    }
    let line = question.split(|byte| *byte == b'\r').next();
    let mut words = line.unwrap_or_default().split(|byte| *byte == b' ');
    let (method, path) = (words.next(), words.next().unwrap_or_default());
    let (status, kind, body) = match (method, path) {
        (Some(b"GET"), b"/metrics") => {
            look();
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ("200 OK", kind, metrics.text())
        }
        (Some(b"GET"), _) => (
            "404 Not Found",
            "text/plain",
            "ask for /metrics\n".to_owned(),
        ),
        _ => ("405 Method Not Allowed", "text/plain", String::new()),
    };
    let len = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len}\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}
