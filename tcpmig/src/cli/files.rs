//! Image files.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use tcpmig_format::{Envelope, Image, Limits};

/// An image file that is removed again unless it is kept: nothing half-written stays.
pub(crate) struct NewFile {
    path: PathBuf,
    file: File,
    keep: bool,
}

impl NewFile {
    /// Makes a file that nobody else can read (mode 0600). Never overwrites one.
    pub(crate) fn create(path: &Path) -> anyhow::Result<Self> {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .with_context(|| format!("create {}", path.display()))?;
        Ok(Self {
            path: path.to_owned(),
            file,
            keep: false,
        })
    }

    /// Writes the octets and waits until they are on the disk.
    pub(crate) fn write(&mut self, octets: &[u8]) -> anyhow::Result<()> {
        let written = self
            .file
            .write_all(octets)
            .and_then(|()| self.file.sync_all());
        written.with_context(|| format!("write {}", self.path.display()))
    }

    pub(crate) fn keep(mut self) {
        self.keep = true;
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.keep {
            // It is being left behind because of another error, which is the one to tell.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Reads and checks an image.
pub(crate) fn read(path: &Path) -> anyhow::Result<(Image, Envelope)> {
    let limits = Limits::default();
    let name = path.display();
    let open = || File::open(path).with_context(|| format!("open {name}"));
    let mut octets = Vec::new();
    let limit = limits.max_image as u64;
    let read: io::Result<usize> = open()?.take(limit + 1).read_to_end(&mut octets);
    read.with_context(|| format!("read {name}"))?;
    if octets.is_empty() {
        bail!("{name}: the file is empty");
    }
    let decoded = Envelope::peek(&octets)
        .and_then(|envelope| Ok((Image::decode_shared(octets.into(), &limits)?, envelope)));
    decoded.with_context(|| format!("{name}"))
}
