//! Image files.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use tcpmig::tls;
use tcpmig_format::{Envelope, Image, Layer, Limits, SecretBytes};
use tcpmig_sys::files::{open_without_waiting, rename_new};

/// A new file for an image. It has its name only when it is complete, and is removed again unless it is kept.
///
/// Until then it has another name in the same folder, which begins with `.tcpmig-`. Only a tool that is killed
/// leaves that behind.
#[derive(Debug)]
pub(crate) struct NewFile {
    path: PathBuf,
    /// The name that it has now.
    at: PathBuf,
    file: File,
    keep: bool,
}

/// Names that are tried before it is given up: others are left behind by tools that were killed.
const NAMES: u32 = 100;

impl NewFile {
    /// Makes a file that nobody else can read (mode 0600) in the folder of `path`.
    ///
    /// Fails if there is something named `path`, so that it is found out before a connection is touched.
    pub(crate) fn create(path: &Path) -> anyhow::Result<Self> {
        let create = || format!("create {}", path.display());
        match path.symlink_metadata() {
            Ok(_) => bail!("{}: File exists", create()),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(create),
        }
        Self::unnamed(path)
    }

    /// Makes the file under its first name.
    fn unnamed(path: &Path) -> anyhow::Result<Self> {
        let create = || format!("create {}", path.display());
        if path.file_name().is_none() || path.as_os_str().as_encoded_bytes().ends_with(b"/") {
            bail!("{} is not the name of a file", path.display());
        }
        for n in 0.. {
            let at = partial(path, std::process::id(), n);
            let mut options = OpenOptions::new();
            match options.write(true).create_new(true).mode(0o600).open(&at) {
                Ok(file) => {
                    return Ok(Self {
                        path: path.to_owned(),
                        at,
                        file,
                        keep: false,
                    });
                }
                Err(error) if error.kind() == ErrorKind::AlreadyExists && n < NAMES => {}
                Err(error) => return Err(error).with_context(create),
            }
        }
        unreachable!("the loop ends with a file or an error")
    }

    /// Makes these bytes all that is in it, and waits until they are on the disk, under the name that
    /// the file has until it is complete.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        let written = self
            .file
            .rewind()
            .and_then(|()| self.file.write_all(bytes))
            .and_then(|()| self.file.set_len(bytes.len() as u64))
            .and_then(|()| self.file.sync_all())
            .and_then(|()| self.sync_folder());
        written.with_context(|| format!("write {}", self.path.display()))
    }

    /// Gives it its name, and never replaces a file that has it. Waits for no disk.
    pub(crate) fn publish(&mut self) -> anyhow::Result<()> {
        rename_new(&self.at, &self.path)
            .with_context(|| format!("create {}", self.path.display()))?;
        self.at.clone_from(&self.path);
        Ok(())
    }

    /// Lets it stay. An error says that its name may not outlive a power failure; the file does, under another one.
    pub(crate) fn keep(mut self) -> io::Result<()> {
        self.keep = true;
        self.sync_folder()
    }

    fn sync_folder(&self) -> io::Result<()> {
        let folder = match self.path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        match File::open(folder).and_then(|folder| folder.sync_all()) {
            // A folder that may be written and not read, and file systems that know no such thing.
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::PermissionDenied | ErrorKind::InvalidInput
                ) =>
            {
                Ok(())
            }
            other => other,
        }
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.keep {
            // It is being left behind because of another error, which is the one to tell.
            let _ = std::fs::remove_file(&self.at);
        }
    }
}

/// Makes these bytes all that is in a file, which has either all of them or what it had before, and waits until they are on
/// the disk.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let mut file = NewFile::unnamed(path)?;
    file.write(bytes)?;
    let replaced = || format!("replace {}", path.display());
    std::fs::rename(&file.at, path).with_context(replaced)?;
    file.at.clone_from(&file.path);
    file.keep().with_context(replaced)
}

/// Does work that may wait for a disk on a thread of its own, and `meanwhile` on this one: at once, and then as
/// often as that.
pub(crate) fn beside_the_disk<T: Send>(
    often: Duration,
    work: impl FnOnce() -> T + Send,
    mut meanwhile: impl FnMut(),
) -> T {
    thread::scope(|scope| {
        let (done, ended) = mpsc::channel::<()>();
        let worker = scope.spawn(move || {
            // Dropped at the end of the thread, also by a panic.
            let _done = done;
            work()
        });
        meanwhile();
        while ended.recv_timeout(often) == Err(RecvTimeoutError::Timeout) {
            meanwhile();
        }
        worker
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// What an image in a file may have: as much as the kernel has queues for, since nobody but the user of this command chose it.
pub(crate) const LIMITS: Limits = {
    let mut limits = Limits::DEFAULT;
    limits.max_queue = i32::MAX as usize;
    // Two queues, which share the sequence numbers of the send direction, and one for the receive direction.
    limits.max_image = 2 * limits.max_queue + limits.max_layers + (1 << 20);
    limits
};

/// Whether [`read`] would take an image.
pub(crate) fn check(bytes: &[u8]) -> anyhow::Result<()> {
    Image::decode(bytes, &LIMITS)?;
    Ok(())
}

/// Fails if an image has the secrets of a TLS session: they are taken from no file, as none is written.
pub(crate) fn refuse_secrets(image: &Image) -> anyhow::Result<()> {
    let is_secret = |layer: &&Layer| [tls::KIND, tls::CLIENT_KIND].contains(&&*layer.kind);
    if let Some(layer) = image.layers.iter().find(is_secret) {
        bail!(
            "it has the secrets of a TLS session (the layer {layer}), which are not taken from a file"
        );
    }
    Ok(())
}

/// Removes what a process that was killed has left of a file for `path` without its name; whether there was something.
pub(crate) fn remove_partial(path: &Path, process: u32) -> bool {
    (0..NAMES).any(|n| std::fs::remove_file(partial(path, process, n)).is_ok())
}

fn partial(path: &Path, process: u32, n: u32) -> PathBuf {
    path.with_file_name(format!(".tcpmig-{process}-{n}.partial"))
}

/// Reads and checks an image.
pub(crate) fn read(path: &Path) -> anyhow::Result<(Image, Envelope)> {
    let name = path.display();
    let file = open(path)?;
    let mut bytes = Vec::new();
    // What is not an image is told by its beginning, however long it is.
    read_up_to(&file, Envelope::LEN, &mut bytes).with_context(|| format!("read {name}"))?;
    if bytes.is_empty() {
        bail!("{name}: the file is empty");
    }
    let envelope = Envelope::peek(&bytes).with_context(|| format!("{name}"))?;
    // One byte more tells that the file is longer than the image.
    let whole = usize::try_from(envelope.image_length()).unwrap_or(usize::MAX);
    if whole > LIMITS.max_image {
        bail!(
            "{name}: it says that it has {whole} bytes, more than the {} that an image can have",
            LIMITS.max_image
        );
    }
    let limit = whole.saturating_add(1);
    read_up_to(&file, limit, &mut bytes).with_context(|| format!("read {name}"))?;
    let image = Image::decode_shared(bytes.into(), &LIMITS).with_context(|| format!("{name}"))?;
    Ok((image, envelope))
}

/// The beginning of a file, at most so many bytes.
pub(crate) fn read_beginning(path: &Path, most: usize) -> anyhow::Result<SecretBytes> {
    let mut bytes = Vec::new();
    let read = read_up_to(&open(path)?, most, &mut bytes);
    read.with_context(|| format!("read {}", path.display()))?;
    Ok(bytes.into())
}

fn open(path: &Path) -> anyhow::Result<File> {
    let name = path.display();
    let file = open_without_waiting(path).with_context(|| format!("open {name}"))?;
    let kind = file.metadata().with_context(|| format!("open {name}"))?;
    if !kind.is_file() {
        bail!("{name} is not a file: an image is read from one");
    }
    Ok(file)
}

fn read_up_to(file: &File, upto: usize, bytes: &mut Vec<u8>) -> io::Result<usize> {
    let rest = upto.saturating_sub(bytes.len()) as u64;
    file.take(rest).read_to_end(bytes)
}
