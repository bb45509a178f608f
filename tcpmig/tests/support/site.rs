//! A host at work: a thread in its namespace, with a runtime, an endpoint and a locker.

use std::any::Any;
use std::cell::RefCell;
use std::future::Future;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use tcpmig::driver::journal::{Journal, NoJournal};
use tcpmig::driver::policy::{Policy, Rules};
use tcpmig::driver::{
    Acceptor, Arrivals, Arrived, Destination, Ending, Mover, Offered, Options, Outcome,
};
use tcpmig::handover::Refusal;
use tcpmig::steer::{Redirected, Steer, SteerError, Steering};
use tcpmig_format::{FourTuple, Layer};
use tcpmig_lock::{Entry, Locker, Nftables};
use tcpmig_sys::lab::{self, Host};
use tcpmig_sys::netns::Namespace;
use tcpmig_transport::keys::Authority;
use tcpmig_transport::{Authorities, Endpoint, Identity, TransportLimits, Trust};
use tokio::sync::{Mutex, mpsc as tasks};
use tokio::task::{LocalSet, spawn_local};

use super::PATIENCE;
use super::net::{A, B, Net};

/// The keys of both hosts.
pub(crate) struct Keys(Authority);

impl Keys {
    pub(crate) fn new() -> Self {
        Self(Authority::create("tests").unwrap())
    }

    /// Certificate, private key and authority of a host.
    pub(crate) fn pem(&self, name: &str) -> [String; 3] {
        let issued = self.0.issue(name).unwrap();
        [
            issued.cert_pem.clone(),
            issued.key_pem.clone(),
            self.0.ca_pem().to_owned(),
        ]
    }
}

/// How soon a host finds out that the other is not there, where that is what happens.
fn soon() -> Duration {
    lab::slowed(Duration::from_secs(6))
}

/// An endpoint at `address` on the calling thread's host.
pub(crate) fn endpoint(address: SocketAddr, pem: &[String; 3]) -> Endpoint {
    endpoint_within(address, pem, soon())
}

fn endpoint_within(
    address: SocketAddr,
    [cert, key, ca]: &[String; 3],
    handshake: Duration,
) -> Endpoint {
    let identity = Identity::from_pem(cert.as_bytes(), key.as_bytes()).unwrap();
    let trust = Trust::anyone_signed_by(Authorities::from_pem(ca.as_bytes()).unwrap());
    let mut limits = TransportLimits::default();
    limits.handshake = handshake;
    // Not what is tested: a busy machine takes its time for a frame.
    limits.frame = PATIENCE;
    Endpoint::bind(address, &identity, &trust, limits).unwrap()
}

/// What a host's tasks work with.
pub(crate) struct Here {
    pub(crate) endpoint: Endpoint,
    pub(crate) locker: Arc<Nftables>,
    pub(crate) options: Options,
    other: SocketAddr,
    other_name: &'static str,
    arrivals: Mutex<Option<Arrivals>>,
    kept: RefCell<Vec<Box<dyn Any>>>,
}

impl Here {
    /// The other host, to which the packets are redirected.
    pub(crate) fn other(&self) -> Destination {
        let lease = self.options.redirect_lease;
        let to = |address| Redirected::new(address, lease).unwrap();
        let IpAddr::V4(v4) = self.other.ip() else {
            panic!("the hosts know each other by IPv4");
        };
        let v6 = Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, v4.octets()[3].into());
        self.other_by(Arc::new(ByFamily {
            v4: to(v4.into()),
            v6: to(v6.into()),
        }))
    }

    pub(crate) fn other_by(&self, steer: Arc<dyn Steer>) -> Destination {
        Destination {
            address: self.other,
            name: self.other_name.to_owned(),
            steer,
        }
    }

    /// Lets something live as long as this host.
    pub(crate) fn keep(&self, something: impl Any) {
        self.kept.borrow_mut().push(Box::new(something));
    }

    /// Takes in what arrives here, instead of what did before.
    pub(crate) async fn serves(&self, arrivals: Arrivals) {
        *self.arrivals.lock().await = Some(arrivals);
    }

    pub(crate) async fn serves_no_more(&self) {
        *self.arrivals.lock().await = None;
    }

    pub(crate) fn mover(&self) -> Mover {
        Mover::new(
            self.endpoint.clone(),
            self.locker.clone(),
            self.options.clone(),
        )
    }
}

/// A redirect to the address of the flow's family.
struct ByFamily {
    v4: Redirected,
    v6: Redirected,
}

impl Steer for ByFamily {
    fn waits(&self) -> bool {
        self.v4.waits() || self.v6.waits()
    }

    fn plan(&self, flow: FourTuple, locker: &dyn Locker) -> Result<Box<dyn Steering>, SteerError> {
        let to = if flow.is_ipv4() { &self.v4 } else { &self.v6 };
        to.plan(flow, locker)
    }
}

/// What a test does not choose how long to wait for is long for every machine; what it does takes as much longer as its
/// machine is slower.
fn patient(options: &Options) -> Options {
    let default = Options::default();
    let limit = |chosen: Duration, default: Duration| {
        if chosen == default {
            PATIENCE
        } else {
            lab::slowed(chosen)
        }
    };
    let mut options = options.clone();
    options.prepared_within = limit(options.prepared_within, default.prepared_within);
    options.answer_within = lab::slowed(options.answer_within);
    options.ask_for = limit(options.ask_for, default.ask_for);
    options.commit_within = limit(options.commit_within, default.commit_within);
    options
}

type Task = Box<dyn FnOnce(Rc<Here>) + Send>;

/// A host at work. It stops when this is dropped.
pub(crate) struct Site {
    tasks: Option<tasks::UnboundedSender<Task>>,
    thread: Option<thread::JoinHandle<()>>,
}

/// Something that a host does meanwhile.
#[must_use = "it has to be waited for"]
pub(crate) struct Running<T>(mpsc::Receiver<thread::Result<T>>);

impl<T> Running<T> {
    /// Waits for its end; a panic of it goes on here.
    pub(crate) fn wait(self) -> T {
        match self.0.recv_timeout(PATIENCE * 2) {
            Ok(Ok(value)) => value,
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            Err(error) => panic!("a host did not finish: {error}"),
        }
    }
}

impl Site {
    /// Both hosts at work.
    pub(crate) fn pair(net: &Net, options: &Options) -> (Self, Self) {
        Self::pair_with(net, &Keys::new(), options)
    }

    pub(crate) fn pair_with(net: &Net, keys: &Keys, options: &Options) -> (Self, Self) {
        Self::pair_within(net, keys, options, PATIENCE)
    }

    /// The same, for a test in which one of them is not there: the other finds out soon.
    pub(crate) fn pair_that_may_lose_one(net: &Net, options: &Options) -> (Self, Self) {
        Self::pair_within(net, &Keys::new(), options, soon())
    }

    fn pair_within(net: &Net, keys: &Keys, options: &Options, handshake: Duration) -> (Self, Self) {
        let start = |host: &Host, name, own, other, other_name| {
            Self::start(
                host,
                keys.pem(name),
                (own, handshake),
                other,
                other_name,
                options,
            )
        };
        let a = start(&net.a, "host-a", A, B, "host-b");
        let b = start(&net.b, "host-b", B, A, "host-a");
        (a, b)
    }

    pub(crate) fn of_a(net: &Net, keys: &Keys, options: &Options) -> Self {
        let pem = keys.pem("host-a");
        Self::start(&net.a, pem, (A, PATIENCE), B, "host-b", options)
    }

    fn start(
        host: &Host,
        pem: [String; 3],
        (own, handshake): (&str, Duration),
        other: &str,
        other_name: &'static str,
        options: &Options,
    ) -> Self {
        let namespace = Namespace::open(&host.namespace().path()).unwrap();
        let (sender, mut receiver) = tasks::unbounded_channel::<Task>();
        let (own, other) = (own.parse().unwrap(), other.parse().unwrap());
        let options = patient(options);
        let work = move || {
            namespace.enter_permanently().unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let local = LocalSet::new();
            local.block_on(&runtime, async move {
                let locker = Arc::new(tcpmig::locker::nftables().unwrap());
                let here = Rc::new(Here {
                    endpoint: endpoint_within(own, &pem, handshake),
                    locker,
                    options,
                    other,
                    other_name,
                    arrivals: Mutex::default(),
                    kept: RefCell::default(),
                });
                while let Some(task) = receiver.recv().await {
                    task(here.clone());
                }
            });
        };
        let thread = thread::Builder::new().name(host.name().to_owned());
        Self {
            tasks: Some(sender),
            thread: Some(thread.spawn(work).unwrap()),
        }
    }

    /// Begins something on this host.
    pub(crate) fn begin<T, F>(
        &self,
        work: impl FnOnce(Rc<Here>) -> F + Send + 'static,
    ) -> Running<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + 'static,
    {
        let (sender, receiver) = mpsc::channel();
        let task: Task = Box::new(move |here| {
            let work = spawn_local(work(here));
            spawn_local(async move {
                let result = work.await.map_err(tokio::task::JoinError::into_panic);
                // The test may have failed meanwhile.
                let _ = sender.send(result);
            });
        });
        let sent = self.tasks.as_ref().unwrap().send(task);
        assert!(sent.is_ok(), "the host stopped working");
        Running(receiver)
    }

    /// Does something on this host.
    pub(crate) fn call<T, F>(&self, work: impl FnOnce(Rc<Here>) -> F + Send + 'static) -> T
    where
        T: Send + 'static,
        F: Future<Output = T> + 'static,
    {
        self.begin(work).wait()
    }

    /// Takes connections in from now on: on the closed terms that are the default, and with every
    /// layer.
    pub(crate) fn serve(&self) {
        self.serve_by(Policy::new(), Arc::new(NoJournal));
    }

    /// The same with a journal.
    pub(crate) fn serve_with(&self, journal: Arc<dyn Journal>) {
        self.serve_by(Policy::new(), journal);
    }

    /// The same with these rules for everybody.
    pub(crate) fn serve_on(&self, rules: Rules) {
        self.serve_by(Policy::new().others(rules), Arc::new(NoJournal));
    }

    /// The same as the application decides.
    pub(crate) fn serve_if(
        &self,
        accepts: impl Fn(&Offered<'_>) -> Result<(), String> + Send + Sync + 'static,
    ) {
        self.call(|here| async move {
            let (endpoint, locker) = (here.endpoint.clone(), here.locker.clone());
            let arrivals = Acceptor::new(endpoint, locker)
                .options(here.options.clone())
                .accept_if(move |offered| accepts(offered).map_err(Refusal::from))
                .serve();
            here.serves(arrivals).await;
        });
    }

    fn serve_by(&self, policy: Policy, journal: Arc<dyn Journal>) {
        self.call(|here| async move {
            let (endpoint, locker) = (here.endpoint.clone(), here.locker.clone());
            let arrivals = Acceptor::new(endpoint, locker)
                .options(here.options.clone())
                .policy(policy)
                .journal(journal)
                .accept_if(|_| Ok(()))
                .serve();
            here.serves(arrivals).await;
        });
    }

    /// Takes no more connections in.
    pub(crate) fn stop_serving(&self) {
        self.call(|here| async move { here.serves_no_more().await });
    }

    /// The next connection that arrives.
    pub(crate) fn arrival(&self) -> Arrived {
        self.call(|here| async move {
            let mut arrivals = here.arrivals.lock().await;
            let arrivals = arrivals.as_mut().expect("the host serves");
            let next = tokio::time::timeout(PATIENCE, arrivals.next()).await;
            next.expect("a connection arrives").unwrap()
        })
    }

    /// That no connection has arrived until now.
    pub(crate) fn no_arrival(&self) {
        self.call(|here| async move {
            let mut arrivals = here.arrivals.lock().await;
            let arrivals = arrivals.as_mut().expect("the host serves");
            // Polls once: what has arrived is there at once.
            let next = tokio::time::timeout(Duration::ZERO, arrivals.next()).await;
            assert!(next.is_err(), "{next:?} arrived");
        });
    }

    /// Moves a connection to the other host.
    pub(crate) fn move_out(
        &self,
        socket: impl Into<OwnedFd>,
        layers: impl IntoIterator<Item = Layer>,
    ) -> Running<Outcome> {
        let socket = socket.into();
        let layers: Vec<_> = layers.into_iter().collect();
        self.begin(|here| async move { here.mover().move_out(socket, layers, &here.other()).await })
    }

    /// What is locked or redirected for this flow.
    pub(crate) fn entries(&self, flow: FourTuple) -> Vec<Entry> {
        self.call(move |here| async move {
            let mut entries = here.locker.list().unwrap();
            entries.retain(|entry| entry.flow == flow);
            entries
        })
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.tasks = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !thread::panicking()
        {
            panic!("a host's thread failed");
        }
    }
}

/// A connection that was kept: its socket, and why, for a person to read.
pub(crate) fn kept(outcome: Outcome) -> (std::net::TcpStream, String) {
    kept_by(outcome.ending)
}

pub(crate) fn kept_by(ending: Ending) -> (std::net::TcpStream, String) {
    match ending {
        Ending::Kept { socket, reason, .. } => (socket.into(), reason.to_string()),
        other => panic!("not kept: {other:?}"),
    }
}
