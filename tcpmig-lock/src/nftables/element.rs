//! Set elements: four-tuples with a lease.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tcpmig_format::FourTuple;

use crate::netlink::wire;
use crate::{Entry, EntryKind, LockError, Owner};

const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
pub(super) const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_LIST_ELEM: u16 = 1;
pub(super) const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_DATA: u16 = 2;
const NFTA_SET_ELEM_TIMEOUT: u16 = 4;
const NFTA_SET_ELEM_EXPIRATION: u16 = 5;
const NFTA_SET_ELEM_USERDATA: u16 = 6;

/// `NFTNL_UDATA_SET_ELEM_COMMENT`: what `nft list` shows as comment.
const UDATA_COMMENT: u8 = 0;
const COMMENT_START: &str = "pid ";
/// Which start of a process with this number it was, and in which pid namespace: `nft` passes over types that it does not
/// know.
const UDATA_START: u8 = 0x74;

/// A key value is padded to a register: 4 bytes.
const PORT_PADDING: [u8; 2] = [0; 2];

/// One jiffy with HZ=100. The kernel rounds a timeout down to jiffies and takes none at all as "for ever".
const MIN_LEASE_MS: u64 = 10;
/// Thirty years; far below the limit of the kernel, 2^64 nanoseconds.
const MAX_LEASE_MS: u64 = 1_000_000_000_000;

/// An element may take more bytes than this on no path: IPv6 key, IPv6 data, lease and comment.
pub(super) const MAX_LENGTH: usize = 144;

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
pub(super) fn owner_comment(owner: &Owner) -> Vec<u8> {
    let text = format!("{COMMENT_START}{} {}\0", owner.pid, owner.name);
    let length = u8::try_from(text.len()).unwrap_or(u8::MAX);
    let mut comment = vec![UDATA_COMMENT, length];
    comment.extend_from_slice(text.as_bytes());
    if let (Some(started), Some(namespace)) = (owner.started, owner.namespace) {
        comment.extend_from_slice(&[UDATA_START, 16]);
        comment.extend_from_slice(&started.to_be_bytes());
        comment.extend_from_slice(&namespace.to_be_bytes());
    }
    comment
}

/// The process in a comment.
fn owner(mut comment: &[u8]) -> Option<Owner> {
    let mut owner = None;
    let mut start = None;
    while let [kind, length, rest @ ..] = comment {
        let (value, rest) = rest.split_at_checked(usize::from(*length))?;
        comment = rest;
        match *kind {
            UDATA_COMMENT => owner = named(value),
            UDATA_START => start = value.split_first_chunk::<8>(),
            _ => {}
        }
    }
    let mut owner = owner?;
    if let Some((started, namespace)) = start {
        owner.started = Some(u64::from_be_bytes(*started));
        owner.namespace = namespace
            .first_chunk()
            .map(|inode| u64::from_be_bytes(*inode));
    }
    Some(owner)
}

/// The process in the text of a comment.
fn named(text: &[u8]) -> Option<Owner> {
    let text = std::str::from_utf8(text).ok()?.trim_end_matches('\0');
    let (pid, name) = text.strip_prefix(COMMENT_START)?.split_once(' ')?;
    Some(Owner::new(pid.parse().ok()?, name.to_owned()))
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

/// Appends the value of an element in a map of verdicts: what is to be done, and with which chain.
pub(super) fn put_chain(bytes: &mut Vec<u8>, verdict: libc::c_int, chain: &str) {
    const NFTA_DATA_VERDICT: u16 = 2;
    const NFTA_VERDICT_CODE: u16 = 1;
    const NFTA_VERDICT_CHAIN: u16 = 2;
    let data = wire::open_nested(bytes, NFTA_SET_ELEM_DATA);
    let nest = wire::open_nested(bytes, NFTA_DATA_VERDICT);
    wire::put(bytes, NFTA_VERDICT_CODE, &verdict.to_be_bytes());
    wire::put_str(bytes, NFTA_VERDICT_CHAIN, chain);
    wire::close(bytes, nest);
    wire::close(bytes, data);
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

/// Names a set in an element message.
pub(super) fn put_set(bytes: &mut Vec<u8>, table: &str, set: &str) {
    wire::put_str(bytes, NFTA_SET_ELEM_LIST_TABLE, table);
    wire::put_str(bytes, NFTA_SET_ELEM_LIST_SET, set);
}

/// Appends the attributes of a message that adds packet marks to a set.
pub(super) fn put_marks(bytes: &mut Vec<u8>, table: &str, set: &str, marks: &[u32]) {
    put_set(bytes, table, set);
    let list = wire::open_nested(bytes, NFTA_SET_ELEM_LIST_ELEMENTS);
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
    put_set(bytes, table, set);
    let list = wire::open_nested(bytes, NFTA_SET_ELEM_LIST_ELEMENTS);
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
    /// The process that made it.
    pub(super) owner: Option<Owner>,
    pub(super) data: Option<Vec<u8>>,
}

impl Element {
    /// The same for those who list.
    pub(super) fn entry(&self, kind: EntryKind) -> Entry {
        let mut entry = Entry::new(self.flow, kind, self.remaining);
        entry.age = self.age;
        match &self.owner {
            Some(owner) => entry.owned_by(owner),
            None => entry,
        }
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

/// Reads the elements in an `NFTA_SET_ELEM_LIST_ELEMENTS`. One whose key is not a connection, which only another program
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
        let mut owner = Owner::new(4_194_304, "fifteen-letters".to_owned());
        // A rule set that was loaded from its text does not have the rest.
        assert_eq!(super::owner(&owner_comment(&owner)), Some(owner.clone()));
        owner.started = Some(u64::MAX);
        owner.namespace = Some(u64::MAX - 1);
        let comment = owner_comment(&owner);
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
            assert_eq!(read[0].owner.as_ref(), Some(&owner));
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
