//! A client sees the same bytes from a movable connection as from plain hyper, whenever it is drained.
//!
//! No network, no clock and no other thread: a client that follows a script reads and writes when the server
//! has nothing to do, and a drain comes at the nth poll, for every n there is.

mod app;
mod shapes;
mod wire;

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;

use super::connection::{Asked, Ends, Flow, Known};
use super::http1::Left;
use super::{Movable, Session};
use app::App;
use shapes::Shape;
use wire::{Client, Seen, Step, Wire, wire};

struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs a server until neither it nor the client has anything to do.
async fn run(server: impl Future<Output = ()>, client: &mut Client) -> Seen {
    let flag = Arc::new(Flag(AtomicBool::new(true)));
    let waker = Waker::from(flag.clone());
    let mut server = pin!(server);
    let mut quiet = 0;
    let mut ended = false;
    // Whatever waits for time does so for less.
    while quiet < 40 {
        while !ended && flag.0.swap(false, Ordering::Relaxed) {
            ended = server
                .as_mut()
                .poll(&mut Context::from_waker(&waker))
                .is_ready();
            quiet = 0;
        }
        if client.go_on() {
            quiet = 0;
        }
        quiet += 1;
        // Timers fire and other tasks run.
        tokio::time::advance(Duration::from_millis(1)).await;
        tokio::task::yield_now().await;
    }
    client.seen()
}

fn builder(shape: &Shape) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder.auto_date_header(false).half_close(shape.half_close);
    builder
}

async fn plain(shape: &Shape, steps: &[Step]) -> Seen {
    let (wire, mut client) = wire(steps, shape.reads);
    let http = builder(shape).serve_connection(TokioIo::new(wire), App);
    let server = async {
        // Its errors are the client's to see.
        let _ = http.with_upgrades().await;
    };
    run(server, &mut client).await
}

/// When a drain comes.
#[derive(Clone, Copy, Debug)]
enum When {
    Never,
    /// At this poll.
    At(usize),
    /// Again and again, after so many polls each time.
    Every(usize),
}

/// What drains did.
#[derive(Default, Debug)]
struct Drains {
    asked: usize,
    moved: usize,
}

async fn movable(shape: &Shape, steps: &[Step], when: When) -> (Seen, Drains) {
    let (wire, mut client) = wire(steps, shape.reads);
    let movable = Movable::new(App)
        .with_http1(builder(shape))
        .settle(Duration::from_millis(shape.settle))
        .drain_within(Duration::from_millis(shape.drain_within))
        .absorb(shape.absorb);
    let mut drains = Drains::default();
    let seen = run(serve(&movable, wire, when, &mut drains), &mut client).await;
    (seen, drains)
}

async fn serve(movable: &Movable<App>, wire: Wire, when: When, drains: &mut Drains) {
    let known = Known {
        state: None,
        facts: None,
    };
    let about = movable.about(known, Flow::UNKNOWN);
    let mut http = movable.begin_http(wire, &about);
    let mut polls = 0;
    loop {
        let mut here = 0;
        let mut asked = pin!(poll_fn(|_| {
            polls += 1;
            here += 1;
            let now = match when {
                When::Never => false,
                When::At(poll) => polls == poll,
                // Often enough; at rest there would be no end to it.
                When::Every(poll) => here == poll && drains.asked < 60,
            };
            if !now {
                return Poll::Pending;
            }
            drains.asked += 1;
            Poll::Ready(())
        }));
        let left = Box::new(http)
            .run(&mut Asked::new(asked.as_mut()), &mut Ends::never(), &about)
            .await;
        http = match left {
            Left::Over(mut ending) => {
                ending.run().await;
                return;
            }
            Left::Drained(wire, session) => {
                drains.moved += 1;
                // A move takes its time.
                tokio::time::sleep(Duration::from_millis(1)).await;
                let layer = session.to_layer().unwrap();
                let session = Session::from_layers(&[layer]).unwrap();
                movable.resume_http(wire, session, &about, None)
            }
            Left::Busy(http, _) => *http,
            Left::Spoiled(error) => panic!("{error}"),
            Left::Upgraded(upgrade) => {
                let mut upgrade = pin!(upgrade);
                let _ = poll_fn(|cx| Pin::new(&mut *upgrade).poll_use(cx)).await;
                return;
            }
        };
    }
}

/// Compares a shape at every await that a drain can come at.
async fn compare(shape: Shape) -> Drains {
    let name = shape.name;
    let mut all = Drains::default();
    for steps in shape.cuts() {
        let expected = plain(&shape, &steps).await;
        assert!(
            !expected.bytes.is_empty() || shape.silent,
            "{name}: plain hyper says nothing"
        );
        let (seen, _) = movable(&shape, &steps, When::Never).await;
        assert_eq!(seen, expected, "{name}, not drained");
        let mut at = 1;
        loop {
            let (seen, drains) = movable(&shape, &steps, When::At(at)).await;
            if drains.asked == 0 {
                break;
            }
            assert_eq!(seen, expected, "{name}, drained at poll {at}: {drains:?}");
            all.asked += drains.asked;
            all.moved += drains.moved;
            at += 1;
        }
        for every in 1..4 {
            let (seen, drains) = movable(&shape, &steps, When::Every(every)).await;
            assert_eq!(
                seen, expected,
                "{name}, drained every {every} polls: {drains:?}"
            );
            all.asked += drains.asked;
            all.moved += drains.moved;
        }
    }
    eprintln!("{name}: {all:?}");
    assert!(all.moved > 0 || shape.stays, "{name} never moved");
    all
}

fn compare_all(shapes: Vec<Shape>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    for shape in shapes {
        runtime.block_on(compare(shape));
    }
}
