//! The network namespace that a locker was made in.

use std::fs::File;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;

use nix::sched::{CloneFlags, setns};

use crate::LockError;
use crate::netlink::socket::namespace_cookie;

const PATH: &str = "/proc/thread-self/ns/net";

/// A network namespace, for lockers that have no socket in it.
#[derive(Debug)]
pub(crate) struct Namespace {
    file: File,
    inode: u64,
}

impl Namespace {
    /// That of the calling thread.
    pub(crate) fn current() -> Result<Self, LockError> {
        let open = || {
            let file = File::open(PATH)?;
            let inode = file.metadata()?.ino();
            Ok(Self { file, inode })
        };
        open().map_err(LockError::file(PATH))
    }

    /// That of an open file like `/proc/self/ns/net`.
    pub(crate) fn of(file: BorrowedFd<'_>) -> Result<Self, LockError> {
        let open = || {
            let file = File::from(file.try_clone_to_owned()?);
            let inode = file.metadata()?.ino();
            Ok(Self { file, inode })
        };
        open().map_err(|source| LockError::Namespace { source })
    }

    /// A number that no other namespace has while this one exists.
    pub(crate) fn inode(&self) -> u64 {
        self.inode
    }

    /// A number that no other namespace has or will have until the host starts again (Linux 5.14): an inode goes to the
    /// next namespace when this one has ended, and what is kept in a file outlives it.
    pub(crate) fn cookie(&self) -> Result<u64, LockError> {
        self.run(|| {
            let socket = UnixDatagram::unbound();
            let socket = socket.map_err(|source| LockError::Namespace { source })?;
            namespace_cookie(&socket).ok_or_else(|| LockError::Namespace {
                source: std::io::Error::last_os_error(),
            })
        })
    }

    /// Runs something in this namespace: on the calling thread if it is there, or else on one of its own.
    pub(crate) fn run<T: Send>(
        &self,
        call: impl FnOnce() -> Result<T, LockError> + Send,
    ) -> Result<T, LockError> {
        if std::fs::metadata(PATH).is_ok_and(|here| here.ino() == self.inode) {
            return call();
        }
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&self.file, CloneFlags::CLONE_NEWNET).map_err(|errno| {
                    LockError::Namespace {
                        source: errno.into(),
                    }
                })?;
                call()
            });
            match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }
}
