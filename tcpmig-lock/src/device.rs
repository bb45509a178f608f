//! Names and indexes of devices, by the two calls that cost the kernel the least: asking for a link makes it tell
//! everything about the device, which takes longer than locking a flow.

use std::ffi::CStr;
use std::io;
use std::os::fd::AsRawFd;

use libc::{SIOCGIFINDEX, SIOCGIFNAME, c_char, ifreq};

nix::ioctl_readwrite_bad!(index_of, SIOCGIFINDEX, ifreq);
nix::ioctl_readwrite_bad!(name_of, SIOCGIFNAME, ifreq);

fn request() -> ifreq {
    // SAFETY: it consists of numbers, addresses of numbers and pointers that nobody follows, which may all be zero.
    unsafe { std::mem::zeroed() }
}

/// The index of the device with this name in the network namespace of a socket of any kind.
pub(crate) fn index(socket: &impl AsRawFd, name: &str) -> io::Result<u32> {
    let mut request = request();
    // One octet stays zero: the name's end.
    let room = request.ifr_name.len() - 1;
    if name.is_empty() || name.len() > room || name.contains('\0') {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as c_char;
    }
    // SAFETY: the kernel reads the name in the structure, which ends, and writes the index into it.
    unsafe { index_of(socket.as_raw_fd(), &raw mut request) }?;
    // SAFETY: the call succeeded, so this is the member that was written.
    let index = unsafe { request.ifr_ifru.ifru_ifindex };
    u32::try_from(index).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// The name of the device with this index, likewise.
pub(crate) fn name(socket: &impl AsRawFd, index: u32) -> io::Result<String> {
    let mut request = request();
    request.ifr_ifru.ifru_ifindex =
        i32::try_from(index).map_err(|_| io::Error::from_raw_os_error(libc::ENODEV))?;
    // SAFETY: the kernel reads the index in the structure and writes the name into it.
    unsafe { name_of(socket.as_raw_fd(), &raw mut request) }?;
    let octets = request.ifr_name.map(|octet| octet as u8);
    let name = CStr::from_bytes_until_nul(&octets).map_err(|_| io::ErrorKind::InvalidData)?;
    // Names of devices need not be UTF-8 for the kernel; for the rest of this host's tools they are.
    Ok(name.to_string_lossy().into_owned())
}
