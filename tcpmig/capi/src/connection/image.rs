//! Images.

use std::ffi::{CString, c_int, c_void};
use std::fs::File;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

use tcpmig_format::{Envelope, FourTuple, Image, Limits, SecretBytes};

use crate::border::{Code, Done, Failure, answer, enter};
use crate::flow::Flow;
use crate::layer::LayerStruct;
use crate::sized::{self, descriptor, given};

/// `struct tcpmig_image`.
#[derive(Debug)]
pub struct ImageHandle {
    pub(crate) image: Image,
    bytes: SecretBytes,
    flow: FourTuple,
    /// Those of its layers.
    kinds: Vec<CString>,
}

/// As much as the kernel has queues for: whoever calls has the bytes, or chose where they come from.
const LIMITS: Limits = {
    let mut limits = Limits::DEFAULT;
    limits.max_queue = i32::MAX as usize;
    // Two queues, which share the sequence numbers of the send direction, and one for the receive direction.
    limits.max_image = 2 * limits.max_queue + limits.max_layers + (1 << 20);
    limits
};

impl ImageHandle {
    fn new(image: Image, bytes: SecretBytes) -> Done<Self> {
        let ip = image.ip().filter(|_| image.tcp().is_some());
        let no_connection = || Failure::new(Code::Image, "the image is not that of a connection");
        let flow = ip.ok_or_else(no_connection)?.flow;
        let kind = |layer: &tcpmig_format::Layer| {
            let no_text = |_| Failure::new(Code::Image, "the kind of a layer has a NUL in it");
            CString::new(layer.kind.as_str()).map_err(no_text)
        };
        let kinds = image.layers.iter().map(kind).collect::<Done<_>>()?;
        Ok(Self {
            image,
            bytes,
            flow,
            kinds,
        })
    }

    pub(crate) fn flow(&self) -> FourTuple {
        self.flow
    }

    pub(crate) fn of(image: Image) -> Done<Self> {
        let bytes = image.encode()?;
        Self::new(image, bytes)
    }

    fn decode(bytes: &[u8]) -> Done<Self> {
        // Its parts share the memory of this copy.
        let mut bytes = SecretBytes::from(bytes);
        let whole = bytes.split_to(bytes.len());
        let image = Image::decode_shared(whole.clone(), &LIMITS)?;
        Self::new(image, whole)
    }
}

/// Reads one image, from where the descriptor is now.
fn read(fd: BorrowedFd<'_>) -> Done<ImageHandle> {
    let failed = Failure::call("read");
    // Its own descriptor, which is closed again and has the same position.
    let file = File::from(fd.try_clone_to_owned().map_err(Failure::call("dup"))?);
    let mut bytes = Vec::new();
    up_to(&file, Envelope::LEN, &mut bytes).map_err(&failed)?;
    if bytes.is_empty() {
        return Err(Failure::new(Code::Image, "there is nothing to read"));
    }
    let envelope = Envelope::peek(&bytes)?;
    let whole = usize::try_from(envelope.image_length()).unwrap_or(usize::MAX);
    if whole > LIMITS.max_image {
        return Err(Failure::new(
            Code::Image,
            format_args!("it says that it has {whole} bytes, more than an image can have"),
        ));
    }
    up_to(&file, whole, &mut bytes).map_err(&failed)?;
    let bytes = SecretBytes::from(bytes);
    ImageHandle::decode(&bytes)
}

fn up_to(file: &File, length: usize, bytes: &mut Vec<u8>) -> io::Result<usize> {
    let rest = length.saturating_sub(bytes.len()) as u64;
    file.take(rest).read_to_end(bytes)
}

fn write(mut bytes: &[u8], fd: BorrowedFd<'_>) -> io::Result<()> {
    let mut is_socket = true;
    while !bytes.is_empty() {
        let (first, count) = (bytes.as_ptr().cast(), bytes.len());
        let written = if is_socket {
            // SAFETY: the pointer is that of so many bytes.
            unsafe { libc::send(fd.as_raw_fd(), first, count, libc::MSG_NOSIGNAL) }
        } else {
            // SAFETY: the same.
            unsafe { libc::write(fd.as_raw_fd(), first, count) }
        };
        match usize::try_from(written) {
            Ok(written) => bytes = &bytes[written..],
            Err(_) => match io::Error::last_os_error() {
                error if error.raw_os_error() == Some(libc::ENOTSOCK) => is_socket = false,
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
    // SAFETY: any descriptor can be given.
    if !is_socket && unsafe { libc::fsync(fd.as_raw_fd()) } < 0 {
        let error = io::Error::last_os_error();
        // Pipes have no disk.
        if !matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EROFS)) {
            return Err(error);
        }
    }
    Ok(())
}

exported! {
    /// `tcpmig_image_decode`.
    fn tcpmig_image_decode(
        bytes: *const c_void,
        length: usize,
        image: Option<&mut MaybeUninit<Option<Box<ImageHandle>>>>,
    ) -> c_int {
        enter(|| {
            let image = given(image, "image")?;
            // SAFETY: so many bytes, as the header says.
            let bytes = unsafe { sized::slice::<u8>(bytes.cast(), length, "bytes") }?;
            image.write(Some(Box::new(ImageHandle::decode(bytes)?)));
            Ok(())
        })
    }
}

exported! {
    /// `tcpmig_image_read`.
    fn tcpmig_image_read(
        fd: c_int,
        image: Option<&mut MaybeUninit<Option<Box<ImageHandle>>>>,
    ) -> c_int {
        enter(|| {
            let image = given(image, "image")?;
            // SAFETY: the caller closes it after the call, if at all.
            let fd = unsafe { descriptor(fd) }?;
            image.write(Some(Box::new(read(fd)?)));
            Ok(())
        })
    }
}

exported! {
    /// `tcpmig_image_write`.
    fn tcpmig_image_write(image: Option<&ImageHandle>, fd: c_int) -> c_int {
        enter(|| {
            let image = given(image, "image")?;
            // SAFETY: the caller closes it after the call, if at all.
            let fd = unsafe { descriptor(fd) }?;
            write(&image.bytes, fd).map_err(Failure::call("write"))
        })
    }
}

exported! {
    /// `tcpmig_image_bytes`.
    fn tcpmig_image_bytes(
        image: Option<&ImageHandle>,
        bytes: Option<&mut MaybeUninit<*const c_void>>,
        length: Option<&mut MaybeUninit<usize>>,
    ) -> c_int {
        enter(|| {
            let image = given(image, "image")?;
            let (bytes, length) = (given(bytes, "bytes")?, given(length, "length")?);
            bytes.write(image.bytes.as_ptr().cast());
            length.write(image.bytes.len());
            Ok(())
        })
    }
}

exported! {
    /// `tcpmig_image_flow`.
    fn tcpmig_image_flow(
        image: Option<&ImageHandle>,
        flow: Option<&mut MaybeUninit<Flow>>,
    ) -> c_int {
        enter(|| {
            let image = given(image, "image")?;
            given(flow, "flow")?.write(image.flow.into());
            Ok(())
        })
    }
}

exported! {
    /// `tcpmig_image_layers`.
    fn tcpmig_image_layers(image: Option<&ImageHandle>) -> usize {
        answer(0, || image.map_or(0, |image| image.kinds.len()))
    }
}

exported! {
    /// `tcpmig_image_layer`.
    fn tcpmig_image_layer(
        image: Option<&ImageHandle>,
        index: usize,
        layer: *mut LayerStruct,
    ) -> c_int {
        enter(|| {
            let image = given(image, "image")?;
            let (Some(found), Some(kind)) = (image.image.layers.get(index), image.kinds.get(index))
            else {
                return Err(Failure::invalid(format_args!(
                    "there is no layer {index}: the image has {}",
                    image.kinds.len()
                )));
            };
            // SAFETY: it is as long as it says.
            unsafe { sized::write(layer, &LayerStruct::borrowed(found, kind), "layer") }
        })
    }
}

exported! {
    /// `tcpmig_image_free`.
    fn tcpmig_image_free(image: Option<&mut Option<Box<ImageHandle>>>) {
        answer((), || drop(image.and_then(Option::take)));
    }
}
