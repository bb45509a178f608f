//! Opening a file without waiting, and giving it a name that nothing has.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{CWD, MemfdFlags, RenameFlags, memfd_create, renameat_with};
use rustix::io::Errno;

use crate::error::{Error, Result};

/// `open(path, O_RDONLY | O_NONBLOCK)`: opens a file to read it. A FIFO that nobody writes to is opened too, and not waited for.
///
/// # Errors
///
/// That of `open`.
pub fn open_without_waiting(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_NONBLOCK).open(path)
}

/// `memfd_create(name, MFD_CLOEXEC)`: a file in memory, which lasts as long as somebody has a descriptor of it.
///
/// # Errors
///
/// [`Error::Call`].
#[doc(alias = "memfd_create")]
pub fn in_memory(name: &str) -> Result<File> {
    let made = memfd_create(name, MemfdFlags::CLOEXEC);
    let made = made.map_err(|error| Error::new("memfd_create", error.into()))?;
    Ok(made.into())
}

/// `renameat2(from, to, RENAME_NOREPLACE)` (Linux 3.15): renames a file, but never over another one. Both names have to
/// be in one file system.
///
/// File systems that do not know the flag (NFS among them) get a second name for the file and then lose the first. Whoever looks
/// at the wrong moment sees both.
///
/// # Errors
///
/// [`Error::Call`]; with EEXIST if there is something named `to`, a dangling symbolic link included. The file then has its
/// old name and no other.
#[doc(alias = "renameat2")]
pub fn rename_new(from: &Path, to: &Path) -> Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        Err(Errno::INVAL | Errno::NOSYS) => link_new(from, to),
        Err(error) => Err(Error::new("renameat2(RENAME_NOREPLACE)", error.into())),
    }
}

fn link_new(from: &Path, to: &Path) -> Result<()> {
    let failed = |call| move |error: io::Error| Error::new(call, error);
    std::fs::hard_link(from, to).map_err(failed("link"))?;
    std::fs::remove_file(from).map_err(|error| {
        // Both names would be one too many: the new one is taken back.
        let _ = std::fs::remove_file(to);
        failed("unlink")(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_something_has_is_never_taken() {
        let folder = std::env::temp_dir().join(format!("tcpmig-rename-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        for rename in [rename_new, link_new] {
            let (from, to) = (folder.join("from"), folder.join("to"));
            std::fs::write(&from, "new").unwrap();
            std::os::unix::fs::symlink("nowhere", &to).unwrap();
            let error = rename(&from, &to).expect_err("a dangling link has the name");
            assert_eq!(error.errno(), Some(libc::EEXIST), "{error}");
            assert!(from.exists());
            std::fs::remove_file(&to).unwrap();
            rename(&from, &to).unwrap();
            assert!(!from.exists());
            assert_eq!(std::fs::read(&to).unwrap(), b"new");
            std::fs::remove_file(&to).unwrap();
        }
        std::fs::remove_dir(&folder).unwrap();
    }
}
