//! Files with private keys.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Others may do nothing with it, and the group may not write it.
const FORBIDDEN: u32 = 0o027;

/// Reads a file that is to be secret, and refuses one that is not: whoever can read the key can be this host, and whoever can
/// write it decides who this host is.
///
/// Its group may read it. Its owner has to be root or the user of this process.
pub(crate) fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let about = file.metadata()?;
    let exposed = |why: String| Err(io::Error::new(ErrorKind::PermissionDenied, why));
    if about.is_file() && about.mode() & FORBIDDEN != 0 {
        let mode = about.mode() & 0o7777;
        return exposed(format!(
            "a private key that others can read or write (mode {mode:04o}): make it yours alone with chmod 600"
        ));
    }
    // Without `/proc` the owner is not looked at.
    let own = fs::metadata("/proc/self").map_or(about.uid(), |own| own.uid());
    if about.uid() != own && about.uid() != 0 {
        return exposed(format!(
            "a private key that belongs to user {}, who can change it: make it root's or yours with chown",
            about.uid()
        ));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_key_that_others_can_read_or_write_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        fs::write(&path, "secret").unwrap();
        for (mode, taken) in [
            (0o600, true),
            (0o400, true),
            (0o640, true),
            (0o440, true),
            (0o644, false),
            (0o604, false),
            (0o660, false),
            (0o602, false),
            (0o601, false),
        ] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            match read(&path) {
                Ok(bytes) => assert!(taken && bytes == b"secret", "{mode:o}"),
                Err(error) => {
                    assert!(!taken, "{mode:o}: {error}");
                    assert!(
                        error.to_string().contains(&format!("{mode:04o}")),
                        "{error}"
                    );
                }
            }
        }
    }

    #[test]
    fn nor_is_one_of_another_user() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        fs::write(&path, "secret").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        // Only root can give a file away; everybody else has none of another user that could be opened.
        if std::os::unix::fs::chown(&path, Some(4711), None).is_ok() {
            let error = read(&path).unwrap_err();
            assert!(error.to_string().contains("user 4711"), "{error}");
        }
    }
}
