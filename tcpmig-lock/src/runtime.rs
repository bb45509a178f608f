//! The directory in which lockers keep what other processes must know.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::geteuid;

use crate::LockError;
use crate::namespace::Namespace;

/// How long a process waits for the others.
const PATIENCE: Duration = Duration::from_secs(20);

/// How many files to lock there are. Each network namespace has one, by its number; few share theirs.
const LOCKS: u64 = 64;

/// `/run/tcpmig`, or where that cannot be written `$XDG_RUNTIME_DIR/tcpmig`, or else `tcpmig-` and the number of the
/// user in the directory for temporary files. Made if it is not there, for this user only.
pub(crate) fn directory() -> Result<PathBuf, LockError> {
    let mut places = vec![PathBuf::from("/run/tcpmig")];
    if let Some(runtime) = std::env::var_os("XDG_RUNTIME_DIR").filter(|path| !path.is_empty()) {
        places.push(Path::new(&runtime).join("tcpmig"));
    }
    let last = std::env::temp_dir().join(format!("tcpmig-{}", user()));
    for place in &places {
        if make(place).is_ok() {
            return Ok(place.clone());
        }
    }
    make(&last).map_err(LockError::file(&last))?;
    Ok(last)
}

/// The number of this user; in a user namespace, the one that it has outside.
fn user() -> u32 {
    let inside = geteuid().as_raw();
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let outside = map.lines().find_map(|line| {
        let mut numbers = line
            .split_whitespace()
            .map(|number| number.parse::<u32>().ok());
        let [from, to, count] = [numbers.next()??, numbers.next()??, numbers.next()??];
        let at = inside.checked_sub(from).filter(|at| *at < count)?;
        to.checked_add(at)
    });
    outside.unwrap_or(inside)
}

/// Makes a directory that is this user's and nobody else's.
fn make(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let found = std::fs::symlink_metadata(path)?;
    if !found.is_dir() || found.uid() != geteuid().as_raw() || found.mode() & 0o022 != 0 {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    // It may be there and yet on a file system that cannot be written.
    open(&path.join(lock_name(0))).map(drop)
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

fn lock_name(namespace: u64) -> String {
    format!("lock-{}", namespace % LOCKS)
}

/// Keeps other processes away from what is read and then changed in this network namespace, until it is dropped. The
/// kernel ends it when the process dies. Hosts that are namespaces of one machine do not wait for each other.
pub(crate) fn exclusive(namespace: &Namespace) -> Result<(PathBuf, Flock<File>), LockError> {
    let directory = directory()?;
    let path = directory.join(lock_name(namespace.inode()));
    let end = Instant::now() + PATIENCE;
    let mut file = open(&path).map_err(LockError::file(&path))?;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok((directory, lock)),
            Err((back, Errno::EAGAIN | Errno::EINTR)) if Instant::now() < end => file = back,
            Err((_, errno)) => return Err(LockError::file(&path)(errno.into())),
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
