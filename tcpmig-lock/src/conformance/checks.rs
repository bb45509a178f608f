//! What the cases ask a locker for.

use super::lab::eventually;
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
