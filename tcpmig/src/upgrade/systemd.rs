//! What a service and systemd tell each other: its state, its listeners, and the descriptors that systemd keeps for it.

use std::ffi::OsStr;
use std::io;
use std::net::TcpListener;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use tcpmig_sys::process::{self, exec, passing};

use super::UpgradeError;

/// Tells systemd about this service (`sd_notify(3)`).
#[derive(Debug)]
pub struct Notify(UnixDatagram);

impl Notify {
    /// To whoever has started this process and wants to know (`NOTIFY_SOCKET`); nobody may want to.
    ///
    /// # Errors
    ///
    /// [`UpgradeError::Call`]: the socket that the variable names is not there.
    pub fn from_environment() -> Result<Option<Self>, UpgradeError> {
        match std::env::var_os("NOTIFY_SOCKET") {
            Some(path) => Self::to(&path).map(Some),
            None => Ok(None),
        }
    }

    /// To this socket: a path, or an abstract name behind `@`.
    ///
    /// # Errors
    ///
    /// [`UpgradeError::Call`].
    pub fn to(path: impl AsRef<OsStr>) -> Result<Self, UpgradeError> {
        let connect = || -> io::Result<UnixDatagram> {
            let path = path.as_ref().as_bytes();
            let address = match path.strip_prefix(b"@") {
                Some(name) => SocketAddr::from_abstract_name(name)?,
                None => SocketAddr::from_pathname(OsStr::from_bytes(path))?,
            };
            let socket = UnixDatagram::unbound()?;
            socket.connect_addr(&address)?;
            Ok(socket)
        };
        let socket = connect().map_err(UpgradeError::call("connect to the service manager"))?;
        Ok(Self(socket))
    }

    fn send(&self, message: &str, descriptors: &[BorrowedFd<'_>]) -> Result<(), UpgradeError> {
        Ok(passing::send_message(
            &self.0,
            message.as_bytes(),
            descriptors,
        )?)
    }

    /// The service serves (`READY=1`): it has started, or its reload is over.
    ///
    /// # Errors
    ///
    /// [`UpgradeError::Passing`], as of all that follow: systemd was told nothing.
    pub fn ready(&self) -> Result<(), UpgradeError> {
        self.send("READY=1", &[])
    }

    /// A reload begins (`RELOADING=1` with the time that `Type=notify-reload` wants): answer each `SIGHUP` with it, and then with
    /// [`Notify::ready`] or [`Notify::replaced_by`].
    ///
    /// # Errors
    ///
    /// As [`Notify::ready`].
    pub fn reloading(&self) -> Result<(), UpgradeError> {
        let now = process::monotonic().as_micros();
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={now}"), &[])
    }

    /// That process serves from now on, and is the service's main one (`MAINPID=`, `READY=1`). Say it when
    /// [`Predecessor::next`](super::Predecessor::next) gives it: before, systemd would take the end of this one for the service's.
    ///
    /// # Errors
    ///
    /// As [`Notify::ready`].
    pub fn replaced_by(&self, process: u32) -> Result<(), UpgradeError> {
        self.send(&format!("MAINPID={process}\nREADY=1"), &[])
    }

    /// The service ends (`STOPPING=1`).
    ///
    /// # Errors
    ///
    /// As [`Notify::ready`].
    pub fn stopping(&self) -> Result<(), UpgradeError> {
        self.send("STOPPING=1", &[])
    }

    /// What a person sees of the service (`STATUS=`): one line.
    ///
    /// # Errors
    ///
    /// As [`Notify::ready`].
    pub fn status(&self, text: &str) -> Result<(), UpgradeError> {
        self.send(&format!("STATUS={}", text.replace('\n', " ")), &[])
    }

    /// Has systemd keep duplicates of these descriptors by this name (`FDSTORE=1`), and pass them to the service when it is started again.
    /// The unit's `FileDescriptorStoreMax=` says how many it keeps; whatever is above is dropped without a word.
    ///
    /// # Errors
    ///
    /// As [`Notify::ready`]. [`UpgradeError::Unexpected`] for a name that systemd does not take: it has up to 255 characters of ASCII, without
    /// control characters and colons.
    pub fn store(&self, name: &str, descriptors: &[BorrowedFd<'_>]) -> Result<(), UpgradeError> {
        check(name)?;
        self.send(&format!("FDSTORE=1\nFDNAME={name}"), descriptors)
    }

    /// Has systemd close what it keeps by this name (`FDSTOREREMOVE=1`).
    ///
    /// # Errors
    ///
    /// As [`Notify::store`].
    pub fn remove(&self, name: &str) -> Result<(), UpgradeError> {
        check(name)?;
        self.send(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), &[])
    }
}

fn check(name: &str) -> Result<(), UpgradeError> {
    let is_taken = |byte: u8| (b' '..0x7f).contains(&byte) && byte != b':';
    if name.is_empty() || name.len() > 255 || !name.bytes().all(is_taken) {
        return Err(UpgradeError::Unexpected(
            "a name that systemd does not take",
        ));
    }
    Ok(())
}

/// What systemd has passed to this process: listeners of its socket units, and what it keeps for the service.
#[derive(Debug, Default)]
pub struct Passed(pub(super) Vec<(String, OwnedFd)>);

impl Passed {
    /// Takes what was passed (`LISTEN_PID`, `LISTEN_FDS`, `LISTEN_FDNAMES`); nothing if this process was not started by systemd, or
    /// if it was taken before.
    ///
    /// # Errors
    ///
    /// [`UpgradeError::Call`]: it is not what the variables say.
    pub fn take() -> Result<Self, UpgradeError> {
        let passed = exec::take_passed();
        passed
            .map(Self)
            .map_err(UpgradeError::call("take what systemd has passed"))
    }

    /// Made by hand, for tests.
    #[must_use]
    pub fn of(descriptors: Vec<(String, OwnedFd)>) -> Self {
        Self(descriptors)
    }

    /// The listener of this name: `FileDescriptorName=` of its socket unit, or that unit's name.
    pub fn listener(&mut self, name: &str) -> Option<TcpListener> {
        self.descriptor(name).map(TcpListener::from)
    }

    /// The descriptor of this name, whatever it is.
    pub fn descriptor(&mut self, name: &str) -> Option<OwnedFd> {
        let at = self.0.iter().position(|(known, _)| known == name)?;
        Some(self.0.swap_remove(at).1)
    }
}
