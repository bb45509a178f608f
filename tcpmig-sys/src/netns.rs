//! Network namespaces: make, enter, start commands in.

use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::Signal;

use crate::error::{Error, Result};

/// A network namespace, alive as long as this is.
#[derive(Debug)]
pub struct Namespace(OwnedFd);

const THIS_THREAD: &str = "/proc/thread-self/ns/net";

impl Namespace {
    /// The namespace of the calling thread.
    ///
    /// # Errors
    ///
    /// [`Error::Call`] if `/proc` is not there.
    pub fn current() -> Result<Self> {
        Self::open_path(Path::new(THIS_THREAD))
    }

    /// The namespace `name` of `ip netns`, or the one at a path if `name` has a slash
    /// (`/proc/PID/ns/net`).
    ///
    /// # Errors
    ///
    /// [`Error::Call`]: ENOENT if there is none.
    pub fn open(name: &str) -> Result<Self> {
        if name.contains('/') {
            Self::open_path(Path::new(name))
        } else {
            Self::open_path(&Path::new("/run/netns").join(name))
        }
    }

    fn open_path(path: &Path) -> Result<Self> {
        File::open(path)
            .map(|file| Self(file.into()))
            .map_err(|e| Error::new("open(network namespace)", e))
    }

    /// A new namespace with nothing in it but a loopback device that is down. It is
    /// gone when the last descriptor, process and thread in it is.
    ///
    /// Needs `CAP_SYS_ADMIN` in its user namespace.
    ///
    /// # Errors
    ///
    /// [`Error::NoPermission`], [`Error::Call`] of `unshare`.
    pub fn create() -> Result<Self> {
        // A thread of its own, so that the caller's namespace stays as it is.
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)
                .map_err(|e| Error::new("unshare(CLONE_NEWNET)", e.into()))?;
            Self::current()
        });
        made.join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// `ioctl(fd, SIOCGSKNS)`: the namespace that a socket is in.
    ///
    /// Needs `CAP_NET_ADMIN` in the user namespace that owns it.
    ///
    /// # Errors
    ///
    /// [`Error::NoPermission`], [`Error::Call`].
    #[doc(alias = "SIOCGSKNS")]
    pub fn of_socket(socket: BorrowedFd<'_>) -> Result<Self> {
        crate::raw::ioctl_descriptor(socket, libc::SIOCGSKNS, "ioctl(SIOCGSKNS)").map(Self)
    }

    /// Whether this is the namespace of the calling thread.
    ///
    /// # Errors
    ///
    /// [`Error::Call`].
    pub fn is_current(&self) -> Result<bool> {
        let identity = |fd: BorrowedFd<'_>| {
            nix::sys::stat::fstat(fd)
                .map(|stat| (stat.st_dev, stat.st_ino))
                .map_err(|e| Error::new("fstat", e.into()))
        };
        Ok(identity(self.as_fd())? == identity(Self::current()?.as_fd())?)
    }

    /// Moves the calling thread into this namespace until the guard is dropped.
    ///
    /// Sockets keep the namespace that they were made in. The thread needs `CAP_SYS_ADMIN` in the
    /// user namespaces that own both namespaces.
    ///
    /// # Errors
    ///
    /// [`Error::NoPermission`], [`Error::Call`] of `setns`.
    #[doc(alias = "setns")]
    pub fn enter(&self) -> Result<Entered> {
        let before = Self::current()?;
        // A namespace that belongs to others can be left for good only: found out before it is left.
        set(before.as_fd())?;
        set(self.as_fd())?;
        Ok(Entered {
            before,
            _same_thread: PhantomData,
        })
    }

    /// Moves the calling thread into this namespace for good.
    ///
    /// # Errors
    ///
    /// [`Error::NoPermission`], [`Error::Call`] of `setns`.
    pub fn enter_permanently(&self) -> Result<()> {
        set(self.as_fd())
    }

    /// A path that other programs of this user can open as long as this process lives.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}

fn set(fd: BorrowedFd<'_>) -> Result<()> {
    setns(fd, CloneFlags::CLONE_NEWNET).map_err(|e| Error::new("setns", e.into()))
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The calling thread is in another namespace; dropping brings it back.
#[derive(Debug)]
#[must_use = "dropping leaves the namespace"]
pub struct Entered {
    before: Namespace,
    // A namespace belongs to a thread: the guard must be dropped where it was made.
    _same_thread: PhantomData<*const ()>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        // Going on in the wrong namespace would act on the wrong host.
        // INVARIANT: `enter` found that the thread may go there.
        set(self.before.as_fd()).expect("a thread can return to its network namespace");
    }
}

/// Moves this process into a user namespace of its own, in which it is root and has every
/// capability over what it makes from now on, and into an empty network namespace that belongs to
/// it. No privilege needed where the system allows user namespaces.
///
/// # Errors
///
/// [`Error::Call`]: EINVAL if the process has more than one thread, EPERM where user
/// namespaces are forbidden.
pub fn enter_user_namespace() -> Result<()> {
    let (uid, gid) = (nix::unistd::getuid(), nix::unistd::getgid());
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET).map_err(|e| Error::Call {
        call: "unshare(CLONE_NEWUSER)",
        source: e.into(),
    })?;
    let write = |path: &str, text: String| {
        std::fs::write(path, text).map_err(|e| Error::new("write(uid_map, gid_map)", e))
    };
    write("/proc/self/setgroups", "deny".to_owned())?;
    write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    write("/proc/self/gid_map", format!("0 {gid} 1"))
}

/// `if_indextoname`: the name of a network device of the calling thread's namespace.
///
/// # Errors
///
/// [`Error::Call`]: ENXIO if there is none with this index.
#[doc(alias = "if_indextoname")]
pub fn device_name(index: u32) -> Result<String> {
    nix::net::if_::if_indextoname(index)
        .map(|name| name.to_string_lossy().into_owned())
        .map_err(|e| Error::new("if_indextoname", e.into()))
}

/// `if_nametoindex`: the index of a network device of the calling thread's namespace.
///
/// # Errors
///
/// [`Error::Call`]: ENODEV if there is none with this name.
#[doc(alias = "if_nametoindex")]
pub fn device_index(name: &str) -> Result<u32> {
    nix::net::if_::if_nametoindex(name).map_err(|e| Error::new("if_nametoindex", e.into()))
}

/// Whether the calling thread has `CAP_NET_ADMIN` and `CAP_SYS_ADMIN`, which
/// namespaces and repair need.
#[must_use]
pub fn has_capabilities() -> bool {
    const CAP_NET_ADMIN: u64 = 1 << 12;
    const CAP_SYS_ADMIN: u64 = 1 << 21;
    let wanted = CAP_NET_ADMIN | CAP_SYS_ADMIN;
    effective_capabilities().is_some_and(|got| got & wanted == wanted)
}

/// The effective capabilities of this thread as bits, from `/proc/thread-self/status`.
pub(crate) fn effective_capabilities() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/thread-self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// What a child of this process can be born with.
pub trait InNamespace {
    /// The command starts in this network namespace.
    ///
    /// # Errors
    ///
    /// The error of `dup`; the command is then as it was.
    fn in_namespace(&mut self, namespace: &Namespace) -> io::Result<&mut Self>;

    /// The command is killed when the thread that starts it ends, whatever ends it.
    fn die_with_parent(&mut self) -> &mut Self;
}

impl InNamespace for Command {
    fn in_namespace(&mut self, namespace: &Namespace) -> io::Result<&mut Self> {
        let fd = namespace.0.try_clone()?;
        let enter = move || setns(&fd, CloneFlags::CLONE_NEWNET).map_err(io::Error::from);
        // SAFETY: the closure runs between fork and exec and does one system call; it neither
        // allocates nor takes a lock.
        Ok(unsafe { self.pre_exec(enter) })
    }

    fn die_with_parent(&mut self) -> &mut Self {
        let parent = nix::unistd::getpid();
        let ask = move || {
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
            // The parent may have ended before the line above.
            if nix::unistd::getppid() != parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        };
        // SAFETY: as above: two system calls, no allocation, no lock.
        unsafe { self.pre_exec(ask) }
    }
}
