//! The Unix socket that both processes find each other by.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use tcpmig_sys::process::passing;

use super::UpgradeError;

/// The file of a listening Unix socket. Dropping it removes the file, unless another process has put its own there.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    /// Listens at this path, whatever was there: an older process that listens there has its connections still, and new ones
    /// come here.
    pub(super) fn bind(path: &Path) -> Result<(UnixListener, Self), UpgradeError> {
        // Anything else that has the name is somebody's.
        if let Ok(metadata) = fs::symlink_metadata(path)
            && !metadata.file_type().is_socket()
        {
            let error = io::Error::new(io::ErrorKind::AlreadyExists, "it is not a socket");
            return Err(UpgradeError::call("replace the file of that name")(error));
        }
        let own = path.with_extension(format!("{}.new", std::process::id()));
        let cleared = match fs::remove_file(&own) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            cleared => cleared,
        };
        cleared.map_err(UpgradeError::call(
            "remove the socket of an earlier process",
        ))?;
        let listener = UnixListener::bind(&own).map_err(UpgradeError::call("bind the socket"))?;
        let placed = fs::set_permissions(&own, Permissions::from_mode(0o600))
            .and_then(|()| fs::metadata(&own))
            // In one step: at each moment there is one of them.
            .and_then(|metadata| fs::rename(&own, path).map(|()| metadata));
        match placed {
            Ok(metadata) => {
                let file = Self {
                    path: path.to_owned(),
                    device: metadata.dev(),
                    inode: metadata.ino(),
                };
                Ok((listener, file))
            }
            Err(error) => {
                let _ = fs::remove_file(&own);
                Err(UpgradeError::call("give the socket its name")(error))
            }
        }
    }
}

impl SocketFile {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether who connects there comes here.
    pub(super) fn is_there(&self) -> bool {
        fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == (self.device, self.inode))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.is_there() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Makes sure that the other end is a process of this user; which one it is.
pub(super) fn same_user(stream: &UnixStream) -> Result<u32, UpgradeError> {
    let ((user, process), own) = (passing::peer(stream)?, passing::own_user());
    if user == own {
        Ok(process)
    } else {
        Err(UpgradeError::OtherUser { process, user, own })
    }
}
