//! Set elements: four-tuples with a lease.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tcpmig_format::FourTuple;

use super::wire;
use crate::{Entry, EntryKind, LockError};

const NFTA_DATA_VALUE: u16 = 1;
const NFTA_LIST_ELEM: u16 = 1;
pub(super) const NFTA_SET_ELEM_KEY: u16 = 1;
pub(super) const NFTA_SET_ELEM_DATA: u16 = 2;
const NFTA_SET_ELEM_TIMEOUT: u16 = 4;
const NFTA_SET_ELEM_EXPIRATION: u16 = 5;
const NFTA_SET_ELEM_USERDATA: u16 = 6;

/// `NFTNL_UDATA_SET_ELEM_COMMENT`: what `nft list` shows as comment.
const UDATA_COMMENT: u8 = 0;
const COMMENT_START: &str = "pid ";

/// A key value is padded to a register: 4 octets.
const PORT_PADDING: [u8; 2] = [0; 2];

/// One jiffy with HZ=100. The kernel rounds a timeout down to jiffies and takes none at all as "for ever".
const MIN_LEASE_MS: u64 = 10;
/// Thirty years; far below the limit of the kernel, 2^64 nanoseconds.
const MAX_LEASE_MS: u64 = 1_000_000_000_000;

/// An element may take more octets than this on no path: IPv6 key, IPv6 data, lease and comment.
pub(super) const MAX_LENGTH: usize = 128;

/// The lease in milliseconds, as the kernel takes it.
pub(super) fn lease_ms(lease: Duration) -> Result<u64, LockError> {
    if lease.is_zero() {
        return Err(LockError::LeaseZero);
    }
    let ms = lease.as_nanos().div_ceil(1_000_000);
    Ok(u64::try_from(ms)
        .unwrap_or(u64::MAX)
        .clamp(MIN_LEASE_MS, MAX_LEASE_MS))
}

/// Says in every element which process made it, for people too: `pid 4242 curl`.
pub(super) fn owner_comment(pid: u32, name: &str) -> Vec<u8> {
    let text = format!("{COMMENT_START}{pid} {name}\0");
    let length = u8::try_from(text.len()).unwrap_or(u8::MAX);
    let mut comment = vec![UDATA_COMMENT, length];
    comment.extend_from_slice(text.as_bytes());
    comment
}

/// The process in a comment, and its name.
fn owner(comment: &[u8]) -> Option<(u32, String)> {
    let [UDATA_COMMENT, _, text @ ..] = comment else {
        return None;
    };
    let text = std::str::from_utf8(text).ok()?.trim_end_matches('\0');
    let (pid, name) = text.strip_prefix(COMMENT_START)?.split_once(' ')?;
    Some((pid.parse().ok()?, name.to_owned()))
}

/// What an element has besides its key.
#[derive(Debug, Clone, Copy)]
pub(super) struct Extra<'a> {
    pub(super) lease_ms: u64,
    pub(super) comment: &'a [u8],
    /// The value, in a map.
    pub(super) data: Option<&'a [u8]>,
}

fn put_end(bytes: &mut Vec<u8>, end: SocketAddr) {
    match end.ip() {
        IpAddr::V4(ip) => bytes.extend_from_slice(&ip.octets()),
        IpAddr::V6(ip) => bytes.extend_from_slice(&ip.octets()),
    }
    bytes.extend_from_slice(&end.port().to_be_bytes());
    bytes.extend_from_slice(&PORT_PADDING);
}

pub(super) fn put_value(bytes: &mut Vec<u8>, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) {
    let nest = wire::open_nested(bytes, kind);
    let value = wire::open(bytes, NFTA_DATA_VALUE);
    fill(bytes);
    wire::close(bytes, value);
    wire::close(bytes, nest);
}

/// Appends one element. All elements of one family with the same kind of extras have the same length.
pub(super) fn put(bytes: &mut Vec<u8>, flow: &FourTuple, extra: Option<Extra<'_>>) {
    let element = wire::open_nested(bytes, NFTA_LIST_ELEM);
    // As in a packet that arrives: the peer is the source.
    put_value(bytes, NFTA_SET_ELEM_KEY, |bytes| {
        put_end(bytes, flow.remote());
        put_end(bytes, flow.local());
    });
    if let Some(extra) = extra {
        if let Some(data) = extra.data {
            put_value(bytes, NFTA_SET_ELEM_DATA, |bytes| {
                bytes.extend_from_slice(data);
            });
        }
        wire::put(bytes, NFTA_SET_ELEM_TIMEOUT, &extra.lease_ms.to_be_bytes());
        wire::put(bytes, NFTA_SET_ELEM_USERDATA, extra.comment);
    }
    wire::close(bytes, element);
}

/// Appends the attributes of a message that adds packet marks to a set.
pub(super) fn put_marks(bytes: &mut Vec<u8>, table: &str, set: &str, marks: &[u32]) {
    super::batch::put_set(bytes, table, set);
    let list = wire::open_nested(bytes, super::batch::NFTA_SET_ELEM_LIST_ELEMENTS);
    for mark in marks {
        let element = wire::open_nested(bytes, NFTA_LIST_ELEM);
        put_value(bytes, NFTA_SET_ELEM_KEY, |bytes| {
            bytes.extend_from_slice(&mark.to_ne_bytes());
        });
        wire::close(bytes, element);
    }
    wire::close(bytes, list);
}

/// Appends the attributes of a message that adds a link-layer address to a set.
pub(super) fn put_link_address(bytes: &mut Vec<u8>, table: &str, set: &str, link: [u8; 6]) {
    put_one(bytes, table, set, |bytes| {
        put_value(bytes, NFTA_SET_ELEM_KEY, |bytes| {
            bytes.extend_from_slice(&link);
        });
    });
}

/// Appends the attributes of a message about one element of a set, whose own attributes `fill` appends.
pub(super) fn put_one(
    bytes: &mut Vec<u8>,
    table: &str,
    set: &str,
    fill: impl FnOnce(&mut Vec<u8>),
) {
    super::batch::put_set(bytes, table, set);
    let list = wire::open_nested(bytes, super::batch::NFTA_SET_ELEM_LIST_ELEMENTS);
    let element = wire::open_nested(bytes, NFTA_LIST_ELEM);
    fill(bytes);
    wire::close(bytes, element);
    wire::close(bytes, list);
}

/// The group of a locked flow, as the kernel compares it.
pub(super) fn group_data(group: u16) -> [u8; 4] {
    u32::from(group).to_ne_bytes()
}

/// How many elements of this length fit into one message: an attribute is shorter than 64 KiB.
pub(super) fn per_message(length: usize) -> usize {
    (usize::from(u16::MAX) - 8) / length
}

/// An element as read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Element {
    pub(super) flow: FourTuple,
    pub(super) remaining: Duration,
    /// How long ago it was made.
    pub(super) age: Option<Duration>,
    /// The process that made it, and its name.
    pub(super) owner: Option<(u32, String)>,
    pub(super) data: Option<Vec<u8>>,
}

impl Element {
    /// The same for those who list.
    pub(super) fn entry(&self, kind: EntryKind) -> Entry {
        let mut entry = Entry::new(self.flow, kind, self.remaining);
        entry.age = self.age;
        if let Some((pid, name)) = &self.owner {
            entry.owner = Some(*pid);
            entry.owner_name = Some(name.clone());
        }
        entry
    }
}

fn ends(key: &[u8]) -> Option<FourTuple> {
    let (remote, local) = key.split_at_checked(key.len() / 2)?;
    let end = |bytes: &[u8]| -> Option<SocketAddr> {
        let (ip, port) = bytes.split_at_checked(bytes.len().checked_sub(4)?)?;
        let port = u16::from_be_bytes(*port.first_chunk()?);
        let ip = match ip.len() {
            4 => IpAddr::from(Ipv4Addr::from(*ip.first_chunk::<4>()?)),
            16 => IpAddr::from(Ipv6Addr::from(*ip.first_chunk::<16>()?)),
            _ => return None,
        };
        Some((ip, port).into())
    };
    FourTuple::new(end(local)?, end(remote)?).ok()
}

/// Reads the elements in an `NFTA_SET_ELEM_LIST_ELEMENTS`. One whose key is no connection, which only another program
/// can have put there, is left out.
pub(super) fn read(list: &[u8]) -> impl Iterator<Item = Element> {
    wire::attributes(list).filter_map(|(_, element)| {
        let value = |kind| wire::attribute(wire::attribute(element, kind)?, NFTA_DATA_VALUE);
        let duration = |kind| {
            let ms = wire::attribute(element, kind)?.first_chunk()?;
            Some(Duration::from_millis(u64::from_be_bytes(*ms)))
        };
        let remaining = duration(NFTA_SET_ELEM_EXPIRATION).unwrap_or_default();
        Some(Element {
            flow: ends(value(NFTA_SET_ELEM_KEY)?)?,
            remaining,
            age: duration(NFTA_SET_ELEM_TIMEOUT).map(|lease| lease.saturating_sub(remaining)),
            owner: wire::attribute(element, NFTA_SET_ELEM_USERDATA).and_then(owner),
            data: value(NFTA_SET_ELEM_DATA).map(<[u8]>::to_vec),
        })
    })
}

/// Reads the groups of NFLOG in an `NFTA_SET_ELEM_LIST_ELEMENTS`.
pub(super) fn read_groups(list: &[u8]) -> Vec<u16> {
    let group = |(_, element)| {
        let key = wire::attribute(element, NFTA_SET_ELEM_KEY)?;
        let value = wire::attribute(key, NFTA_DATA_VALUE)?.first_chunk()?;
        u16::try_from(u32::from_ne_bytes(*value)).ok()
    };
    wire::attributes(list).filter_map(group).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_element_reads_as_written() {
        let comment = owner_comment(4_194_304, "fifteen-letters");
        for flow in [
            "10.0.0.1:80,10.0.0.9:51234",
            "[2001:db8::1]:443,[2001:db8::9]:1025",
        ] {
            let flow: FourTuple = flow.parse().unwrap();
            let mut bytes = Vec::new();
            let data = [7; 16];
            let extra = Extra {
                lease_ms: 1500,
                comment: &comment,
                data: Some(&data),
            };
            put(&mut bytes, &flow, Some(extra));
            assert!(bytes.len() <= MAX_LENGTH);
            let read: Vec<_> = read(&bytes).collect();
            assert_eq!(read.len(), 1);
            assert_eq!(read[0].flow, flow);
            let owner = (4_194_304, "fifteen-letters".to_owned());
            assert_eq!(read[0].owner, Some(owner));
            assert_eq!(read[0].data.as_deref(), Some(&data[..]));
        }
    }

    #[test]
    fn leases_round_up_and_stay_in_the_kernels_range() {
        let ms = |lease| lease_ms(lease).unwrap();
        assert!(matches!(
            lease_ms(Duration::ZERO),
            Err(LockError::LeaseZero)
        ));
        assert_eq!(ms(Duration::from_nanos(1)), 10);
        assert_eq!(ms(Duration::from_micros(20_001)), 21);
        assert_eq!(ms(Duration::MAX), MAX_LEASE_MS);
    }

    #[test]
    fn elements_of_other_programs_are_left_out() {
        let mut bytes = Vec::new();
        let nest = wire::open_nested(&mut bytes, NFTA_LIST_ELEM);
        put_value(&mut bytes, NFTA_SET_ELEM_KEY, |bytes| {
            bytes.extend_from_slice(&[0; 16]);
        });
        wire::close(&mut bytes, nest);
        assert_eq!(read(&bytes).count(), 0);
    }
}
