//! Plain hyper and a movable server on one host, and a second host to move to.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body::Body;
use hyper::body::Frame;
use hyper::server::conn::{http1, http2};
use hyper::service::Service;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, SupportedProtocolVersion};
use tcpmig::driver::{Acceptor, Options};
use tcpmig::http::{Movable, Server};
use tcpmig::session::{Carriers, Tcp};
use tcpmig::tls::Tls;
use tcpmig_transport::keys::Authority;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::support::{Net, Site};

#[derive(Clone, Copy)]
pub(crate) enum Which {
    Plain,
    Movable,
}

impl Which {
    pub(crate) fn url(self, over: Over) -> String {
        let scheme = match over {
            Over::Tcp => "http",
            Over::Tls => "https",
        };
        let port = match self {
            Self::Plain => 8081,
            Self::Movable => 8080,
        };
        format!("{scheme}://198.18.0.80:{port}/")
    }
}

/// What HTTP runs over.
#[derive(Clone, Copy)]
pub(crate) enum Over {
    Tcp,
    Tls,
}

/// How a server speaks TLS.
pub(crate) fn config(
    authority: &Authority,
    version: &'static SupportedProtocolVersion,
) -> Arc<ServerConfig> {
    let issued = authority.issue("bench.example").unwrap();
    let chain = CertificateDer::from_pem_slice(issued.cert_pem.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider);
    let config = config.with_protocol_versions(&[version]);
    let config = config.unwrap().with_no_client_auth();
    config.with_single_cert(vec![chain], key).unwrap().into()
}

/// One short frame.
pub(crate) struct Hello(Option<Bytes>);

impl Body for Hello {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        std::task::Poll::Ready(self.0.take().map(|hello| Ok(Frame::data(hello))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        let left = self.0.as_ref().map_or(0, Bytes::len);
        http_body::SizeHint::with_exact(left as u64)
    }
}

/// The application of both.
#[derive(Clone)]
pub(crate) struct Greet;

impl<B> Service<Request<B>> for Greet {
    type Response = Response<Hello>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Hello>, Infallible>>;

    fn call(&self, _: Request<B>) -> Self::Future {
        let hello = Hello(Some(Bytes::from_static(b"hello, world\n")));
        ready(Ok(Response::new(hello)))
    }
}

pub(crate) struct Servers<K> {
    pub(crate) net: Net,
    pub(crate) over: Over,
    /// They speak HTTP/2.
    pub(crate) http2: bool,
    /// Host A has plain hyper as well, on the same thread.
    hosts: [(Site, Server<Greet, K>); 2],
}

impl Servers<Tcp> {
    pub(crate) fn over_tcp(http2: bool) -> Self {
        Self::start(Over::Tcp, Tcp, None, http2)
    }
}

impl Servers<Tls> {
    pub(crate) fn over_tls(http2: bool) -> Self {
        let authority = Authority::create("bench").unwrap();
        let mut config = config(&authority, &rustls::version::TLS13);
        if http2 {
            Arc::make_mut(&mut config).alpn_protocols = vec![b"h2".to_vec()];
        }
        let plain = TlsAcceptor::from(config.clone());
        Self::start(Over::Tls, Tls::new(config), Some(plain), http2)
    }
}

/// What does not move. The load hangs up.
async fn serve_plain(stream: impl AsyncRead + AsyncWrite + Unpin + 'static, http2: bool) {
    let stream = TokioIo::new(stream);
    if http2 {
        let http = http2::Builder::new(TokioExecutor::new());
        drop(http.serve_connection(stream, Greet).await);
    } else {
        let http = http1::Builder::new();
        drop(http.serve_connection(stream, Greet).await);
    }
}

impl<K: Carriers + Clone> Servers<K> {
    /// What does not move has its TLS, if any, from there.
    fn start(over: Over, carriers: K, plain: Option<TlsAcceptor>, http2: bool) -> Self {
        let net = Net::new();
        let mut options = Options::default();
        options.settle = Duration::from_millis(20);
        let (a, b) = Site::pair(&net, &options);
        let on_a = movable(&a, carriers.clone(), http2);
        let on_b = movable(&b, carriers, http2);
        a.call({
            let server = on_a.clone();
            move |_| async move {
                let listener = TcpListener::bind("198.18.0.80:8080").await.unwrap();
                tokio::task::spawn_local(async move {
                    loop {
                        let (stream, _) = listener.accept().await.unwrap();
                        stream.set_nodelay(true).unwrap();
                        let server = server.clone();
                        tokio::task::spawn_local(async move { drop(server.serve(stream).await) });
                    }
                });
                let listener = TcpListener::bind("198.18.0.80:8081").await.unwrap();
                tokio::task::spawn_local(async move {
                    loop {
                        let (stream, _) = listener.accept().await.unwrap();
                        stream.set_nodelay(true).unwrap();
                        let plain = plain.clone();
                        tokio::task::spawn_local(async move {
                            match plain {
                                None => serve_plain(stream, http2).await,
                                // The load hangs up in handshakes as well.
                                Some(tls) => {
                                    if let Ok(stream) = tls.accept(stream).await {
                                        serve_plain(stream, http2).await;
                                    }
                                }
                            }
                        });
                    }
                });
            }
        });
        Self {
            net,
            over,
            http2,
            hosts: [(a, on_a), (b, on_b)],
        }
    }

    /// How many connections live on each host.
    pub(crate) fn counts(&self) -> [usize; 2] {
        [self.hosts[0].1.count(), self.hosts[1].1.count()]
    }

    /// Moves all connections of a host to the other one, one after the other; how many microseconds each stood still.
    pub(crate) fn move_all_from(&self, at: usize) -> Vec<u64> {
        let (site, server) = &self.hosts[at];
        let server = server.clone();
        site.call(|here| async move {
            let (way, to) = (here.mover(), here.other());
            let mut still = Vec::new();
            for handle in server.connections() {
                let report = handle.move_to(&way, &to).await;
                let report = report.expect("the connection moves");
                still.push(report.blackout.as_micros() as u64);
            }
            still
        })
    }

    /// What the thread of host A has used of a processor.
    pub(crate) fn processor_time(&self) -> Duration {
        self.hosts[0].0.call(|_| async { processor_time() })
    }
}

/// What this thread has used of a processor.
pub(crate) fn processor_time() -> Duration {
    let schedstat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    let nanos = schedstat.split_whitespace().next().unwrap();
    Duration::from_nanos(nanos.parse().unwrap())
}

fn movable<K: Carriers>(site: &Site, carriers: K, http2: bool) -> Server<Greet, K> {
    site.call(move |here| async move {
        let (endpoint, locker) = (here.endpoint.clone(), here.locker.clone());
        let movable = Movable::new(Greet).over(carriers);
        let movable = if http2 { movable.with_http2() } else { movable };
        let server = Server::new(movable.clone());
        let mut arrivals = Acceptor::new(endpoint, locker)
            .options(here.options.clone())
            .accept_if(move |offered| Ok(movable.check(offered.layers)?))
            .serve();
        let arriving = server.clone();
        tokio::spawn(async move {
            while let Some(arrived) = arrivals.next().await {
                let server = arriving.clone();
                tokio::spawn(async move { server.arrived(arrived).await.unwrap() });
            }
        });
        server
    })
}
