//! Lockers as moves work best with them.

use tcpmig_lock::{Backend, Event, Flavour, Iptables, LockError, Locker, Nftables};

use crate::restore::INJECT_MARK;

/// How much may wait in the kernel of what arrives for locked connections, in bytes.
const CAPTURED: usize = 8 << 20;

/// nftables in the network namespace of the calling thread, set up: it captures what arrives for locked
/// connections, if the kernel can (`nfnetlink_log`), and lets the packets pass that a restore
/// sends to this host.
///
/// # Errors
///
/// [`LockError::NoPermission`] without `CAP_NET_ADMIN`, [`LockError::NoNftables`], and others as
/// [`Nftables::prepare`].
pub fn nftables() -> Result<Nftables, LockError> {
    let open = || {
        let locker = Nftables::new()?.exempt_mark(INJECT_MARK);
        Ok::<_, LockError>(locker.on_event(log))
    };
    let locker = match open()?.capturing(CAPTURED) {
        // Then the peer sends again what arrives meanwhile.
        Err(LockError::NoNftables { .. }) => open()?,
        other => other?,
    };
    locker.prepare()?;
    Ok(locker)
}

/// What happens to locks between calls is for whoever reads the log.
fn log(event: &Event) {
    tracing::warn!("{event}");
}

fn iptables(flavour: Flavour) -> Result<Iptables, LockError> {
    let open = || {
        let locker = Iptables::with_flavour(flavour)?.exempt_mark(INJECT_MARK);
        Ok::<_, LockError>(locker.on_event(log))
    };
    match open()?.capturing(CAPTURED) {
        Err(LockError::NoNftables { .. }) => open(),
        other => other,
    }
}

/// Any locker by its name, in the network namespace of the calling thread: it captures, and lets a restore's packets
/// pass, as far as it can ([`Locker::features`] tells).
///
/// ```no_run
/// # fn main() -> Result<(), tcpmig_lock::LockError> {
/// let locker = tcpmig::locker::open(&"iptables".parse()?)?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// As for [`nftables`] and [`Backend::open_capturing`].
pub fn open(backend: &Backend) -> Result<Box<dyn Locker>, LockError> {
    match backend {
        Backend::Nftables => Ok(Box::new(nftables()?)),
        Backend::Iptables(flavour) => Ok(Box::new(iptables(*flavour)?)),
        other => other.open_capturing(INJECT_MARK, CAPTURED),
    }
}
