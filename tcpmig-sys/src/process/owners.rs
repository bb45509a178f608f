//! Which processes have a connection.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::BorrowedFd;

use crate::error::{Error, Result};
use crate::sockets::diag;

/// A process and its descriptor of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub struct Owner {
    /// The process.
    pub pid: u32,
    /// Its descriptor.
    pub fd: i32,
}

/// The processes that have the connection with these ends, from `/proc`.
///
/// Looks at the connections of the calling thread's network namespace, and at the descriptors
/// of the processes that the caller may inspect; others are passed over. Empty if there is no
/// such connection, or nobody that can be seen has it.
///
/// # Errors
///
/// [`Error::Call`] if `/proc` cannot be read.
pub fn find(local: SocketAddr, remote: SocketAddr) -> Result<Vec<Owner>> {
    match inode_of(local, remote)? {
        Some(inode) => with(inode),
        None => Ok(Vec::new()),
    }
}

/// Whether this socket is the one that the calling thread's network namespace knows by these ends: its inode and, where the
/// kernel tells (`CONFIG_INET_DIAG`), its cookie, which no other socket ever has.
///
/// # Errors
///
/// [`Error::Call`].
pub fn is_connection(
    socket: BorrowedFd<'_>,
    local: SocketAddr,
    remote: SocketAddr,
) -> Result<bool> {
    if inode_of(local, remote)? != Some(inode(socket)?) {
        return Ok(false);
    }
    Ok(diag::is_found_by_its_addresses(socket)?.unwrap_or(true))
}

/// The number of a socket in `/proc`: its inode.
pub(crate) fn inode(socket: BorrowedFd<'_>) -> Result<u64> {
    let stat = nix::sys::stat::fstat(socket).map_err(|e| Error::new("fstat", e.into()))?;
    Ok(stat.st_ino)
}

/// All processes that `/proc` shows.
///
/// # Errors
///
/// [`Error::Call`] if `/proc` cannot be read.
pub fn processes() -> Result<Vec<u32>> {
    let names = entries("/proc")?;
    Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
}

/// Who has which socket, by the sockets' inodes ([`Listed::inode`](crate::sockets::Listed::inode)): one walk through `/proc` for all of
/// them. Processes that the caller may not inspect are passed over.
///
/// # Errors
///
/// [`Error::Call`] if `/proc` cannot be read.
pub fn all() -> Result<HashMap<u64, Vec<Owner>>> {
    let mut owners: HashMap<u64, Vec<Owner>> = HashMap::new();
    for pid in processes()? {
        // One that ended meanwhile, or that is not ours to inspect.
        let Ok(descriptors) = entries(&format!("/proc/{pid}/fd")) else {
            continue;
        };
        for fd in descriptors {
            let target = fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap_or_default();
            let inode = target.to_str().and_then(inode_in);
            if let (Some(inode), Ok(fd)) = (inode, fd.parse()) {
                owners.entry(inode).or_default().push(Owner { pid, fd });
            }
        }
    }
    Ok(owners)
}

/// The inode in what a descriptor of a socket leads to: `socket:[17]`.
fn inode_in(target: &str) -> Option<u64> {
    let inode = target.strip_prefix("socket:[")?.strip_suffix(']')?;
    inode.parse().ok()
}

/// The descriptors of a process that are sockets, of whatever kind.
///
/// # Errors
///
/// [`Error::Call`] if there is no such process, or it is not the caller's to inspect.
pub fn sockets_of(pid: u32) -> Result<Vec<(u32, i32)>> {
    let folder = format!("/proc/{pid}/fd");
    let is_socket = |fd: &String| {
        let target = fs::read_link(format!("{folder}/{fd}"));
        target.is_ok_and(|target| target.to_string_lossy().starts_with("socket:["))
    };
    let sockets = entries(&folder)?.into_iter().filter(is_socket);
    Ok(sockets
        .filter_map(|fd| Some((pid, fd.parse().ok()?)))
        .collect())
}

/// Whether a process has the socket.
pub(crate) fn has(pid: u32, inode: u64) -> bool {
    !descriptors(pid, &link(inode)).is_empty()
}

/// The processes that have the socket.
pub(crate) fn with(inode: u64) -> Result<Vec<Owner>> {
    let wanted = link(inode);
    let mut owners = Vec::new();
    for pid in processes()? {
        owners.extend(descriptors(pid, &wanted));
    }
    owners.sort_unstable();
    Ok(owners)
}

fn link(inode: u64) -> String {
    format!("socket:[{inode}]")
}

/// The descriptors of a process that lead there.
fn descriptors(pid: u32, wanted: &str) -> Vec<Owner> {
    // A process that ended meanwhile, or that is not ours to inspect.
    let Ok(descriptors) = entries(&format!("/proc/{pid}/fd")) else {
        return Vec::new();
    };
    let leads_there = |fd: &String| {
        let target = fs::read_link(format!("/proc/{pid}/fd/{fd}"));
        target.is_ok_and(|target| target.to_str() == Some(wanted))
    };
    let found = descriptors.into_iter().filter(leads_there);
    found
        .filter_map(|fd| {
            Some(Owner {
                pid,
                fd: fd.parse().ok()?,
            })
        })
        .collect()
}

fn entries(folder: &str) -> Result<Vec<String>> {
    let read = |e: io::Error| Error::new("read(/proc)", e);
    let names = fs::read_dir(folder)
        .map_err(read)?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Ok(names.collect())
}

fn inode_of(local: SocketAddr, remote: SocketAddr) -> Result<Option<u64>> {
    let canonical = |a: SocketAddr| (a.ip().to_canonical(), a.port());
    let wanted = Some((canonical(local), canonical(remote)));
    for table in ["tcp", "tcp6"] {
        let path = format!("/proc/thread-self/net/{table}");
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound && table == "tcp6" => continue,
            Err(error) => return Err(Error::new("read(/proc/net/tcp)", error)),
        };
        for line in text.lines().skip(1) {
            let mut fields = line.split_whitespace().skip(1);
            let ends = fields.next().zip(fields.next());
            let ends = ends.and_then(|(local, remote)| Some((end(local)?, end(remote)?)));
            if ends.is_some() && ends == wanted {
                return Ok(fields.nth(6).and_then(|inode| inode.parse().ok()));
            }
        }
    }
    Ok(None)
}

/// An end as `/proc/net/tcp` has it: the address as words of 32 bits in host order, and the port.
fn end(text: &str) -> Option<(IpAddr, u16)> {
    let (address, port) = text.split_once(':')?;
    let mut bytes = Vec::with_capacity(16);
    for word in address.as_bytes().chunks(8) {
        let word = u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
    let ip = match bytes.len() {
        4 => Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into(),
        16 => Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).to_canonical(),
        _ => return None,
    };
    Some((ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;

    #[test]
    fn a_process_finds_its_own_connections() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (local, remote) = (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
            let owner = Owner {
                pid: std::process::id(),
                fd: stream.as_raw_fd(),
            };
            assert!(find(local, remote).unwrap().contains(&owner));
            drop(stream);
            assert!(!find(local, remote).unwrap().contains(&owner));
        }
    }
}
