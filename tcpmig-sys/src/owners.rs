//! Which processes have a connection.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::error::{Error, Result};

/// A process and its descriptor of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
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
    let Some(inode) = inode_of(local, remote)? else {
        return Ok(Vec::new());
    };
    let wanted = format!("socket:[{inode}]");
    let mut owners = Vec::new();
    for process in entries("/proc")? {
        let Ok(pid) = process.parse::<u32>() else {
            continue;
        };
        // A process that ended meanwhile, or that is not ours to inspect.
        let Ok(descriptors) = entries(&format!("/proc/{pid}/fd")) else {
            continue;
        };
        for fd in descriptors {
            let target = fs::read_link(format!("/proc/{pid}/fd/{fd}"));
            if target.is_ok_and(|target| target.to_str() == Some(&wanted))
                && let Ok(fd) = fd.parse()
            {
                owners.push(Owner { pid, fd });
            }
        }
    }
    owners.sort_unstable();
    Ok(owners)
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
    let mut octets = Vec::with_capacity(16);
    for word in address.as_bytes().chunks(8) {
        let word = u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
        octets.extend_from_slice(&word.to_ne_bytes());
    }
    let ip = match octets.len() {
        4 => Ipv4Addr::from(<[u8; 4]>::try_from(octets).ok()?).into(),
        16 => Ipv6Addr::from(<[u8; 16]>::try_from(octets).ok()?).to_canonical(),
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
