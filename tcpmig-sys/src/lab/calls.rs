//! Calls of this crate on sockets, counted, or one of them failing: for tests.

use std::cell::RefCell;
use std::io;

/// What becomes of the calls of a thread.
struct Watch {
    made: Vec<&'static str>,
    /// Which call fails, counted from 0, and with which error.
    failing: Option<(usize, i32)>,
}

thread_local! {
    static WATCH: RefCell<Option<Watch>> = const { RefCell::new(None) };
}

/// The calls on sockets that `work` makes on this thread, by name and in order; those that name processes, files and
/// namespaces are not among them.
pub fn made<T>(work: impl FnOnce() -> T) -> (T, Vec<&'static str>) {
    watch(None, work)
}

/// Does some work of which one call on this thread fails with this error, and is not made: the `nth`, counted from 0. Which
/// one that was; none if the work made fewer.
pub fn failing<T>(nth: usize, errno: i32, work: impl FnOnce() -> T) -> (T, Option<&'static str>) {
    let (done, made) = watch(Some((nth, errno)), work);
    (done, made.get(nth).copied())
}

fn watch<T>(failing: Option<(usize, i32)>, work: impl FnOnce() -> T) -> (T, Vec<&'static str>) {
    let made = Vec::new();
    WATCH.set(Some(Watch { made, failing }));
    let done = work();
    let watch = WATCH.take();
    (done, watch.map(|watch| watch.made).unwrap_or_default())
}

pub(crate) fn announce(call: &'static str) -> io::Result<()> {
    WATCH.with_borrow_mut(|watch| {
        let Some(watch) = watch else { return Ok(()) };
        let nth = watch.made.len();
        watch.made.push(call);
        match watch.failing {
            Some((failing, errno)) if failing == nth => Err(io::Error::from_raw_os_error(errno)),
            _ => Ok(()),
        }
    })
}
