//! Two servers, of which one has a connection.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tcpmig::http::{Ended, Movable, Obstacle};
use tcpmig::session::{Arrival, Carriers, Parts};
use tcpmig_format::{FourTuple, Layer};
use tcpmig_sys::lab::PATIENCE;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::timeout;

use crate::app::{App, Slow, app};

/// What became of an order to move: the layers that travelled.
type Moved = Result<Vec<Layer>, Obstacle>;

/// Where connections are served, first here and then there.
pub(crate) struct Hosts {
    pub(crate) address: SocketAddr,
    pub(crate) slow: Arc<Slow>,
    orders: Mutex<mpsc::UnboundedReceiver<mpsc::UnboundedSender<oneshot::Sender<Moved>>>>,
    /// That of the connection that was accepted last.
    current: Mutex<Option<mpsc::UnboundedSender<oneshot::Sender<Moved>>>>,
}

impl Hosts {
    pub(crate) async fn new() -> Self {
        Self::with(|movable| movable).await
    }

    /// Both over these carriers, with these settings.
    pub(crate) async fn with<K: Carriers>(
        configure: impl Fn(Movable<App>) -> Movable<App, K>,
    ) -> Self {
        let slow = Arc::new(Slow::default());
        let hosts = ["a", "b"].map(|name| configure(app(name, slow.clone())));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (begun, orders) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (order, orders) = mpsc::unbounded_channel();
                let _ = begun.send(order);
                tokio::spawn(serve(hosts.clone(), stream, orders));
            }
        });
        Self {
            address,
            slow,
            orders: Mutex::new(orders),
            current: Mutex::default(),
        }
    }

    /// Moves the one connection to the other server.
    pub(crate) async fn try_move(&self) -> Moved {
        self.move_if_alive().await.expect("the connection lives")
    }

    /// The same, for a connection whose client may be done.
    pub(crate) async fn move_if_alive(&self) -> Option<Moved> {
        let mut current = self.current.lock().await;
        if current.is_none() {
            let next = timeout(PATIENCE, async { self.orders.lock().await.recv().await });
            *current = next.await.expect("a connection begins");
        }
        let (answer, answered) = oneshot::channel();
        current.as_ref().unwrap().send(answer).ok()?;
        timeout(PATIENCE, answered).await.expect("in time").ok()
    }

    /// How many slow answers have been asked for, and uploads begun.
    pub(crate) fn begun(&self) -> usize {
        self.slow.begun.load(Ordering::Relaxed)
    }

    pub(crate) async fn hop(&self) -> Vec<Layer> {
        self.try_move().await.expect("it moves")
    }

    /// How many connections were accepted that did not move.
    pub(crate) async fn others(&self) -> usize {
        self.orders.lock().await.len()
    }
}

/// Serves a connection until it is over.
async fn serve<K: Carriers>(
    hosts: [Movable<App, K>; 2],
    stream: tokio::net::TcpStream,
    mut orders: mpsc::UnboundedReceiver<oneshot::Sender<Moved>>,
) {
    let flow = FourTuple::new(stream.local_addr().unwrap(), stream.peer_addr().unwrap()).unwrap();
    let Ok(carrier) = hosts[0].accept(stream).await else {
        return;
    };
    let mut connection = hosts[0].connection(carrier).unwrap();
    let mut at = 0;
    loop {
        let mut order = None;
        let ended = connection.run(async {
            match orders.recv().await {
                Some(next) => order = Some(next),
                None => std::future::pending().await,
            }
        });
        let ended = ended.await;
        connection = match ended {
            Ok(Ended::Drained(drained)) => {
                let Parts { socket, layers } = drained.into_parts().unwrap();
                at = 1 - at;
                let ready = hosts[at].get_ready(&layers).await.expect("it is taken");
                let parts = Parts {
                    socket,
                    layers: layers.clone(),
                };
                let mut arrival = Arrival::new(parts, flow);
                arrival.ready = Some(Box::new(ready));
                let _ = order.unwrap().send(Ok(layers));
                hosts[at].resume_arrived(arrival).expect("it goes on")
            }
            Ok(Ended::Busy(connection, obstacle)) => {
                let _ = order.unwrap().send(Err(obstacle));
                connection
            }
            _ => return,
        };
    }
}

/// As long as a moment may take on a busy machine, and no longer.
pub(crate) async fn in_time<T>(work: impl Future<Output = T>) -> T {
    timeout(PATIENCE, work).await.expect("in time")
}

pub(crate) async fn moment() {
    tokio::time::sleep(Duration::from_millis(5)).await;
}
