//! What a locker can do.

/// What a locker can do, and what not.
///
/// The default is a locker that silences single flows, remembers them, and leaves the end of a lease to the kernel,
/// but neither captures nor redirects nor exempts nor takes over nor splits, and whose calls can wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Features {
    /// What falls silent with a lock.
    pub silence: Scope,
    /// What ends a lease whose holder is dead.
    pub lease: LeaseEnd,
    /// Whether a flow that is locked is refused to others, listed, and no longer held once its lease has ended.
    pub remembers: bool,
    /// Whether this handle's guards hand over what arrives.
    pub captures: bool,
    /// Whether a lock can end as a redirect.
    pub redirects: bool,
    /// Whether packets with a mark can be exempted.
    pub exempts: bool,
    /// Whether a lock or redirect that a process left behind can be [taken over](crate::Locker::take_over).
    pub takes_over: bool,
    /// Whether a lock or redirect of many flows can become one of each ([`LockGuard::split`](crate::LockGuard::split)).
    pub splits: bool,
    /// Whether a call of this locker or of its guards can wait: for a program, for a lock that others hold, for a disk. A program
    /// with an event loop calls such a locker from other threads than those of its loop. False means that every call
    /// comes back after a few system calls which wait for nobody.
    pub waits: bool,
}

impl Default for Features {
    fn default() -> Self {
        Self {
            silence: Scope::Flows,
            lease: LeaseEnd::Kernel,
            remembers: true,
            captures: false,
            redirects: false,
            exempts: false,
            takes_over: false,
            splits: false,
            waits: true,
        }
    }
}

/// What falls silent with a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Scope {
    /// The locked flows and nothing else.
    Flows,
    /// Everything on the network device that the flows use, as long as one of them is locked.
    Device,
    /// Nothing: somebody else keeps the packets away.
    Nothing,
}

/// What ends a lease whose holder is dead. A living holder's always ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum LeaseEnd {
    /// The kernel.
    Kernel,
    /// [`Locker::sweep`](crate::Locker::sweep), when somebody calls it after the lease has ended. Until then the
    /// flows stay silent.
    Sweep,
    /// Nothing is held that could end.
    Nothing,
}
