//! What the cases ask a locker for.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};

use super::lab::{eventually, slowed};
use crate::{EntryKind, FourTuple, LeaseEnd, LockError, Locker};

/// Flows of no connection, all of the first family.
pub(super) fn flows(count: u16) -> Vec<FourTuple> {
    let flow = |number: u16| format!("10.0.0.1:80,10.9.{}.{}:1025", number >> 8, number & 255);
    (0..count)
        .map(|number| flow(number).parse().expect("a flow"))
        .collect()
}

pub(super) fn locked(locker: &dyn Locker) -> Vec<FourTuple> {
    let entries = locker.list().expect("list");
    let mut flows: Vec<_> = entries
        .iter()
        .filter(|entry| entry.kind == EntryKind::Lock)
        .map(|entry| entry.flow)
        .collect();
    flows.sort_by_key(ToString::to_string);
    flows
}

/// Asserts what is locked, as far as the locker remembers.
pub(super) fn assert_locked(locker: &dyn Locker, expected: &[FourTuple]) {
    let mut expected = expected.to_vec();
    expected.sort_by_key(ToString::to_string);
    if !locker.features().remembers {
        expected.clear();
    }
    assert_eq!(
        locked(locker),
        expected,
        "Locker::list names other flows (left) than those that are locked (right)"
    );
}

/// The error of a call that has to fail with one of this kind; says what was demanded if it did not.
pub(super) fn refused<T>(
    result: Result<T, LockError>,
    call: &str,
    kind: &str,
    is_of_kind: impl Fn(&LockError) -> bool,
) {
    match result {
        Err(error) if is_of_kind(&error) => {}
        Err(error) => panic!("{call} has to be refused with LockError::{kind}, not with {error:?}"),
        Ok(_) => panic!("{call} has to be refused with LockError::{kind}, and was done"),
    }
}

/// How many times longer than the first one the leases are with which a part is tried again.
const LONGER: [u32; 3] = [1, 3, 9];

/// Does a part of a case that has to be over before its lease is. A machine that is too slow for this lease gets a longer
/// one; whatever fails while the lease still runs fails. Gives the lease as well.
pub(super) fn within_lease<T>(first: Duration, part: impl Fn(Duration) -> T) -> (T, Duration) {
    let mut longer = LONGER.into_iter().peekable();
    loop {
        // INVARIANT: who asks for one more time has seen that there is one.
        let lease = slowed(first) * longer.next().expect("one more time");
        let start = Instant::now();
        match catch_unwind(AssertUnwindSafe(|| part(lease))) {
            Ok(done) => return (done, lease),
            Err(_) if start.elapsed() >= lease && longer.peek().is_some() => {
                println!("the machine is too slow for a lease of {lease:?}");
            }
            Err(panic) => resume_unwind(panic),
        }
    }
}

/// Waits until nothing is locked that an earlier part may have left.
pub(super) fn wait_for_nothing(locker: &dyn Locker) {
    eventually("what was left before goes", || {
        let _ = locker.sweep().expect("sweep");
        locker.list().expect("list").is_empty().then_some(())
    });
}

/// What a lease needs to end when nobody lives who holds it.
pub(super) fn end_of_lease(locker: &dyn Locker, flow: FourTuple) {
    match locker.features().lease {
        LeaseEnd::Nothing => assert_eq!(locked(locker), []),
        LeaseEnd::Kernel => eventually("the kernel ends the lease", || {
            (!locked(locker).contains(&flow)).then_some(())
        }),
        LeaseEnd::Sweep => eventually("the lease is swept", || {
            let swept = locker.sweep().expect("sweep");
            swept.flows.contains(&flow).then_some(())
        }),
    }
}
