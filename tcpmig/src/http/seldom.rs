//! Futures that wait beside a connection that is busy.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

/// A future that is polled only when it has asked for it: a connection is polled for each packet, and what waits for an order
/// to move or to end is ready once in its life, but takes a lock to say that it is not.
#[derive(Debug)]
pub(super) struct Seldom<F> {
    future: F,
    bell: Arc<Bell>,
    /// Rings the bell.
    rings: Waker,
    /// Whom the bell wakes.
    wakes: Option<Waker>,
}

#[derive(Debug)]
struct Bell {
    /// The future has asked to be polled, or was never polled.
    has_rung: AtomicBool,
    wakes: Mutex<Option<Waker>>,
}

impl Bell {
    fn wakes(&self) -> MutexGuard<'_, Option<Waker>> {
        // Nothing in it can panic half-way.
        self.wakes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Before whoever polls is looked up: one that comes meanwhile sees it.
        self.has_rung.store(true, Ordering::Release);
        let waker = self.wakes().clone();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<F: Future + Unpin> Seldom<F> {
    pub(super) fn new(future: F) -> Self {
        let bell = Arc::new(Bell {
            has_rung: AtomicBool::new(true),
            wakes: Mutex::new(None),
        });
        Self {
            future,
            rings: bell.clone().into(),
            bell,
            wakes: None,
        }
    }
}

impl<F: Future + Unpin> Future for Seldom<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let Self {
            future,
            bell,
            rings,
            wakes,
        } = &mut *self;
        let waker = cx.waker();
        if !wakes.as_ref().is_some_and(|wakes| wakes.will_wake(waker)) {
            *bell.wakes() = Some(waker.clone());
            *wakes = Some(waker.clone());
        }
        // It is read first, because that is much cheaper, and seldom true.
        if !bell.has_rung.load(Ordering::Acquire) || !bell.has_rung.swap(false, Ordering::AcqRel) {
            return Poll::Pending;
        }
        Pin::new(future).poll(&mut Context::from_waker(rings))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;

    use tokio::sync::Notify;

    use super::*;

    /// Counts how often it is woken.
    #[derive(Default)]
    struct Count(Mutex<usize>);

    impl Count {
        fn woken(&self) -> usize {
            *self.0.lock().unwrap()
        }
    }

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            *self.0.lock().unwrap() += 1;
        }
    }

    #[test]
    fn it_is_polled_when_it_has_asked_for_it_and_wakes_whoever_polled_last() {
        let notify = Notify::new();
        let mut polls = 0;
        let mut notified = pin!(notify.notified());
        let counted = poll_fn(|cx| {
            polls += 1;
            notified.as_mut().poll(cx)
        });
        let (first, second) = (Arc::new(Count::default()), Arc::new(Count::default()));
        {
            let counted = pin!(counted);
            let mut seldom = pin!(Seldom::new(counted));
            let mut poll = |count: &Arc<Count>| {
                let waker = count.clone().into();
                seldom.as_mut().poll(&mut Context::from_waker(&waker))
            };
            for _ in 0..10 {
                assert!(poll(&first).is_pending());
            }
            assert!(poll(&second).is_pending());
            notify.notify_one();
            assert_eq!((first.woken(), second.woken()), (0, 1));
            assert!(poll(&second).is_ready());
        }
        assert_eq!(polls, 2);
    }

    #[tokio::test]
    async fn none_that_rings_is_missed() {
        for _ in 0..2000 {
            let notify = Arc::new(Notify::new());
            let rings = notify.clone();
            let ringing = std::thread::spawn(move || rings.notify_one());
            let notified = pin!(notify.notified());
            Seldom::new(notified).await;
            ringing.join().unwrap();
        }
    }
}
