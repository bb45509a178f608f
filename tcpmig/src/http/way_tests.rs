//! A server moves its connections by any way: here one that hands them to another server of the same process.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::{Arc, Mutex};

use hyper::service::Service;
use hyper::{Request, Response};
use tcpmig_format::{FourTuple, Layer, LayerReader, SecretBytes};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};

use super::{Movable, NotMoved, RequestBody, Server};
use crate::handover::{Code, Refusal};
use crate::session::{Arrival, Carrier, Carriers, Departed, Parts, Rebuilt, Tcp, Way};

/// Answers with its name.
struct Name(&'static str);

impl Service<Request<RequestBody>> for Name {
    type Response = Response<String>;
    type Error = Infallible;
    type Future = Ready<Result<Response<String>, Infallible>>;

    fn call(&self, _: Request<RequestBody>) -> Self::Future {
        ready(Ok(Response::new(self.0.to_owned())))
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the other server is not there")]
struct NotThere;

/// What becomes of the next connection.
enum Fate {
    Moved,
    Kept,
    Lost,
    /// Until this is dropped; then it was kept.
    InDoubt(oneshot::Receiver<()>),
}

/// A way whose destinations are channels.
#[derive(Clone)]
struct Hand {
    fate: Arc<Mutex<Fate>>,
}

impl Hand {
    fn new(fate: Fate) -> Self {
        let fate = Arc::new(Mutex::new(fate));
        Self { fate }
    }
}

impl Way for Hand {
    type Destination = mpsc::UnboundedSender<Parts>;
    type Report = usize;
    type Cause = NotThere;

    async fn depart(&self, parts: Parts, to: &Self::Destination) -> Departed<usize, NotThere> {
        let kept = |parts| Departed::Kept {
            parts,
            cause: NotThere,
        };
        let fate = std::mem::replace(&mut *self.fate.lock().unwrap(), Fate::Lost);
        match fate {
            Fate::Moved => {
                let layers = parts.layers.len();
                to.send(parts).unwrap();
                Departed::Moved(layers)
            }
            Fate::Kept => kept(parts),
            Fate::Lost => Departed::Lost("it fell".to_owned()),
            Fate::InDoubt(answer) => Departed::InDoubt(Box::pin(async move {
                let _ = answer.await;
                kept(parts)
            })),
        }
    }
}

/// A client's connection that is served by a server with this name, the client's end and the flow that the server sees.
async fn connect<K: Carriers>(server: &Server<Name, K>) -> (TcpStream, FourTuple) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let local = listener.local_addr().unwrap();
    let client = TcpStream::connect(local).await.unwrap();
    let (stream, remote) = listener.accept().await.unwrap();
    let server = server.clone();
    tokio::spawn(async move { server.serve(stream).await.map(drop) });
    (client, FourTuple::new(local, remote).unwrap())
}

/// The body of the answer to the next request.
async fn ask(client: &mut TcpStream) -> String {
    let request = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";
    client.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    // One byte of a body.
    while answer.len() < 5 || &answer[answer.len() - 5..answer.len() - 1] != b"\r\n\r\n" {
        answer.push(client.read_u8().await.unwrap());
    }
    String::from_utf8(answer.split_off(answer.len() - 1)).unwrap()
}

#[tokio::test]
async fn a_connection_moves_by_a_way_of_its_own() {
    let [a, b] = ["a", "b"].map(|name| Server::new(Movable::new(Name(name))));
    let (mut client, flow) = connect(&a).await;
    assert_eq!(ask(&mut client).await, "a");
    let (to, mut arrivals) = mpsc::unbounded_channel();

    let handle = a.connections().remove(0);
    let layers = handle.move_to(&Hand::new(Fate::Moved), &to).await.unwrap();
    assert_eq!((layers, a.count()), (1, 0));
    let parts = arrivals.recv().await.unwrap();
    let mut arrival = Arrival::new(parts, flow);
    // What the socket did not take goes before everything else.
    arrival.unwritten = SecretBytes::from(&b"HTTP/1.1 200 OK\r\n\r\n0"[..]);
    tokio::spawn(async move { b.arrived(arrival).await.map(drop) });
    let mut late = [0; 20];
    client.read_exact(&mut late).await.unwrap();
    assert_eq!(late, *b"HTTP/1.1 200 OK\r\n\r\n0");
    assert_eq!(ask(&mut client).await, "b");
}

#[tokio::test]
async fn a_connection_that_is_kept_goes_on() {
    let server = Server::new(Movable::new(Name("a")));
    let (mut client, _) = connect(&server).await;
    assert_eq!(ask(&mut client).await, "a");
    let (to, _arrivals) = mpsc::unbounded_channel();
    let handle = server.connections().remove(0);

    let kept = handle.move_to(&Hand::new(Fate::Kept), &to).await;
    assert!(matches!(kept, Err(NotMoved::Kept(NotThere))), "{kept:?}");
    assert_eq!(ask(&mut client).await, "a");

    let (answer, asked) = oneshot::channel();
    let doubt = handle.move_to(&Hand::new(Fate::InDoubt(asked)), &to).await;
    assert!(matches!(doubt, Err(NotMoved::InDoubt)), "{doubt:?}");
    drop(answer);
    assert_eq!(ask(&mut client).await, "a");

    let lost = handle.move_to(&Hand::new(Fate::Lost), &to).await;
    assert!(matches!(lost, Err(NotMoved::Lost(_))), "{lost:?}");
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
}

/// Plain TCP with a layer of its own.
struct Labelled(TcpStream);

struct Labels;

const LABEL: &str = "org.example.label";

impl Carrier for Labelled {
    type Facts = Infallible;

    fn tcp(&self) -> &TcpStream {
        &self.0
    }

    fn facts(&self) -> Option<Infallible> {
        None
    }

    fn into_parts(self) -> std::io::Result<Parts> {
        let mut parts = self.0.into_parts()?;
        parts.layers.push(Layer::new(LABEL, 1, &b"label"[..]));
        Ok(parts)
    }
}

impl Carriers for Labels {
    type Carrier = Labelled;

    async fn accept(&self, stream: TcpStream) -> std::io::Result<Labelled> {
        Ok(Labelled(stream))
    }

    fn check(&self, layers: &mut LayerReader<'_>) -> Result<Option<Infallible>, Refusal> {
        let label = layers.next_of(LABEL);
        let refusal = || Refusal::new(Code::Session, "the connection has no label");
        label.map(|_| None).ok_or_else(refusal)
    }

    fn rebuild(
        &self,
        stream: TcpStream,
        unwritten: SecretBytes,
        layers: &mut LayerReader<'_>,
    ) -> Result<Rebuilt<Labelled>, Refusal> {
        self.check(layers)?;
        let Rebuilt { carrier, unwritten } = Tcp.rebuild(stream, unwritten, layers)?;
        Ok(Rebuilt {
            carrier: Labelled(carrier),
            unwritten,
        })
    }
}

mod forward {
    //! A `Labelled` reads and writes as its stream does.

    use std::io;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

    use super::Labelled;

    impl AsyncRead for Labelled {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_read(cx, buffer)
        }
    }

    impl AsyncWrite for Labelled {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.0).poll_write(cx, bytes)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_shutdown(cx)
        }
    }
}

#[tokio::test]
async fn the_layers_of_a_carrier_are_below_the_session() {
    let movable = |name| Movable::new(Name(name)).over(Labels);
    let [a, b] = ["a", "b"].map(|name| Server::new(movable(name)));
    let (mut client, flow) = connect(&a).await;
    assert_eq!(ask(&mut client).await, "a");
    let (to, mut arrivals) = mpsc::unbounded_channel();
    let handle = a.connections().remove(0);
    assert!(handle.move_to(&Hand::new(Fate::Kept), &to).await.is_err());
    assert_eq!(ask(&mut client).await, "a");
    let layers = handle.move_to(&Hand::new(Fate::Moved), &to).await.unwrap();
    assert_eq!(layers, 2);

    let parts = arrivals.recv().await.unwrap();
    let kinds: Vec<_> = parts.layers.iter().map(|layer| &*layer.kind).collect();
    assert_eq!(kinds, [LABEL, super::KIND]);
    movable("b").check(&parts.layers).unwrap();
    for (refusing, layers, reason) in [
        (
            Movable::new(Name("c")).check(&parts.layers),
            "both layers, where connections have no labels",
            LABEL,
        ),
        (
            movable("c").check(&parts.layers[1..]),
            "a session without a label",
            "no label",
        ),
        (
            movable("c").check(&parts.layers[..1]),
            "a label without a session",
            "no session",
        ),
    ] {
        let refusal = Refusal::from(refusing.unwrap_err());
        assert_eq!(refusal.code, Code::Session, "{layers}");
        assert!(refusal.reason.contains(reason), "{layers}: {refusal}");
    }
    let arrival = Arrival::new(parts, flow);
    tokio::spawn(async move { b.arrived(arrival).await.map(drop) });
    assert_eq!(ask(&mut client).await, "b");
}
