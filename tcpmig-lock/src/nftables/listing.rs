//! What sets hold: whole lists, and the elements of some flows.
//!
//! The kernel gives a long list in several parts, and begins each by counting the elements that it gave before. What moves elements
//! between two parts makes it leave some out: the end of a lease, and a table that the kernel makes larger a moment after elements
//! were added. Only a transaction in between is told (`NLM_F_DUMP_INTR`). So a long list is read twice, and whoever concludes
//! something from a flow that is missing asks for that flow alone.

use std::collections::HashSet;
use std::io;
use std::time::{Duration, Instant};

use tcpmig_format::FourTuple;

use super::batch;
use super::connection::Connection;
use super::element::{self, Element};
use super::names::{Set, Table};
use crate::LockError;
use crate::netlink::wire;

/// What kernels answer is named by this request.
const CALL: &str = "NFT_MSG_GETSETELEM";
/// How many elements are asked for at once: each is a datagram of its own, and takes a page of the receive buffer.
const GET_AT_ONCE: usize = 16;
/// How often a list is read because something changed meanwhile, and for how long.
const READ_TRIES: usize = 8;
const READ_FOR: Duration = Duration::from_secs(1);

/// What was read of a set in one go.
struct Read<T> {
    found: Vec<T>,
    /// In how many parts it came.
    parts: usize,
    /// No transaction came in between.
    consistent: bool,
}

impl Connection {
    /// The elements of a set, or None if there is no such set. One that comes or goes meanwhile may be among them or not; all others
    /// are.
    pub(super) fn elements(
        &mut self,
        table: &str,
        set: Set,
        v4: bool,
    ) -> Result<Option<Vec<Element>>, LockError> {
        let name = |bytes: &mut Vec<u8>| element::put_set(bytes, table, set.name(v4));
        let read = |list: &[u8]| element::read(list).collect();
        let begun = Instant::now();
        let mut known: HashSet<FourTuple> = HashSet::new();
        for tries in (0..READ_TRIES).rev() {
            let Some(read) = self.read_once(set.table(), name, read)? else {
                return Ok(None);
            };
            let Read {
                mut found,
                parts,
                consistent,
            } = read;
            if consistent && parts <= 1 {
                return Ok(Some(found));
            }
            let flows: HashSet<FourTuple> = found.iter().map(|element| element.flow).collect();
            let adds_none = !known.is_empty() && flows.is_subset(&known);
            if tries == 0 || (consistent && adds_none) || begun.elapsed() > READ_FOR {
                let left_out: Vec<_> = known.difference(&flows).copied().collect();
                found.extend(self.get_each(table, set, &left_out)?);
                return Ok(Some(found));
            }
            known.extend(flows);
        }
        Ok(None)
    }

    /// Like [`elements`](Self::elements) in half the time, and some may be left out; none if there is no such set.
    pub(super) fn elements_once(
        &mut self,
        table: &str,
        set: Set,
        v4: bool,
    ) -> Result<Vec<Element>, LockError> {
        let name = |bytes: &mut Vec<u8>| element::put_set(bytes, table, set.name(v4));
        let read = |list: &[u8]| element::read(list).collect();
        let read = self.read_once(set.table(), name, read)?;
        Ok(read.map(|read| read.found).unwrap_or_default())
    }

    /// The elements of these flows in a set, of those that have one. `whole` flows and more are sought in the list of all, which
    /// takes longer the more there are.
    pub(super) fn elements_of(
        &mut self,
        table: &str,
        set: Set,
        flows: &[FourTuple],
        whole: usize,
    ) -> Result<Vec<Element>, LockError> {
        if flows.len() < whole {
            return self.get_each(table, set, flows);
        }
        let mut left: HashSet<FourTuple> = flows.iter().copied().collect();
        let mut all = Vec::new();
        let name = |v4| move |bytes: &mut Vec<u8>| element::put_set(bytes, table, set.name(v4));
        for v4 in [true, false] {
            if flows.iter().any(|flow| flow.is_ipv4() == v4) {
                let read = |list: &[u8]| element::read(list).collect();
                let read = self.read_once(set.table(), name(v4), read)?;
                all.extend(read.into_iter().flat_map(|read| read.found));
            }
        }
        all.retain(|element: &Element| left.contains(&element.flow));
        for element in &all {
            left.remove(&element.flow);
        }
        let left: Vec<_> = left.into_iter().collect();
        all.extend(self.get_each(table, set, &left)?);
        Ok(all)
    }

    /// Like [`elements_of`](Self::elements_of), also those that packets hide: who asks for a flow is given the element that a rule made a
    /// moment ago, with the rule's own values, and not the one beside it that has an owner.
    pub(super) fn all_elements_of(
        &mut self,
        table: &str,
        set: Set,
        flows: &[FourTuple],
        whole: usize,
    ) -> Result<Vec<Element>, LockError> {
        let mut found = self.elements_of(table, set, flows, whole)?;
        let made = |element: &&Element| element.owner.is_none();
        let hiding: HashSet<FourTuple> = found.iter().filter(made).map(|made| made.flow).collect();
        for v4 in [true, false] {
            if hiding.iter().any(|flow| flow.is_ipv4() == v4) {
                let all = self.elements_once(table, set, v4)?;
                found.extend(all.into_iter().filter(|one| hiding.contains(&one.flow)));
            }
        }
        Ok(found)
    }

    /// All elements of the set that `name` appends the name of, or None if there is no such set. For sets that are small, or of which
    /// some may be missing.
    pub(super) fn dump<T>(
        &mut self,
        table: Table,
        name: impl Fn(&mut Vec<u8>),
        read: impl Fn(&[u8]) -> Vec<T>,
    ) -> Result<Option<Vec<T>>, LockError> {
        for last in (0..READ_TRIES).rev() {
            match self.read_once(table, &name, &read)? {
                Some(read) if read.consistent || last == 0 => return Ok(Some(read.found)),
                Some(_) => {}
                None => break,
            }
        }
        Ok(None)
    }

    fn read_once<T>(
        &mut self,
        table: Table,
        name: impl Fn(&mut Vec<u8>),
        read: impl Fn(&[u8]) -> Vec<T>,
    ) -> Result<Option<Read<T>>, LockError> {
        let (mut found, mut parts) = (Vec::new(), 0);
        let consistent = self.ask(
            libc::NFT_MSG_GETSETELEM as u16,
            libc::NLM_F_DUMP as u16,
            table.family(),
            &name,
            |payload| {
                found.extend(read(batch::elements_of(payload)));
                parts += 1;
            },
        );
        match consistent {
            Ok(consistent) => Ok(Some(Read {
                found,
                parts,
                consistent,
            })),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(LockError::call(CALL)(error)),
        }
    }

    /// Whether a set has any elements. If so their number does not matter, and the rest of the answer is left in the socket: it is not
    /// to be used again.
    pub(super) fn has_elements(
        &mut self,
        table: &str,
        set: Set,
        v4: bool,
    ) -> Result<bool, LockError> {
        let mut found = false;
        let asked = self.ask_until(
            libc::NFT_MSG_GETSETELEM as u16,
            libc::NLM_F_DUMP as u16,
            set.table().family(),
            |bytes| element::put_set(bytes, table, set.name(v4)),
            |payload| {
                found |= element::read(batch::elements_of(payload)).next().is_some();
                found
            },
        );
        match asked {
            Ok(_) => Ok(found),
            Err(error) if is_missing(&error) => Ok(false),
            Err(error) => Err(LockError::call(CALL)(error)),
        }
    }

    /// The element of a flow in a set; none if there is no such set.
    pub(super) fn get(
        &mut self,
        table: &str,
        set: Set,
        flow: &FourTuple,
    ) -> Result<Option<Element>, LockError> {
        let mut element = None;
        let found = self.ask(
            libc::NFT_MSG_GETSETELEM as u16,
            libc::NLM_F_ACK as u16,
            set.table().family(),
            |bytes| {
                element::put_set(bytes, table, set.name(flow.is_ipv4()));
                let list = wire::open_nested(bytes, element::NFTA_SET_ELEM_LIST_ELEMENTS);
                element::put(bytes, flow, None);
                wire::close(bytes, list);
            },
            |payload| element = element::read(batch::elements_of(payload)).next(),
        );
        match found {
            Ok(_) => Ok(element),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(LockError::call(CALL)(error)),
        }
    }

    /// The elements of these flows in a set, of those that have one, in order. Of IPv4 and of IPv6 apart.
    pub(super) fn get_each(
        &mut self,
        table: &str,
        set: Set,
        flows: &[FourTuple],
    ) -> Result<Vec<Element>, LockError> {
        let mut found = Vec::new();
        for same in flows.chunk_by(|one, next| one.is_ipv4() == next.is_ipv4()) {
            let mut rest = same;
            while let Some(first) = rest.first() {
                let asked = &rest[..rest.len().min(GET_AT_ONCE)];
                let mut answered = 0;
                let answer = self.ask(
                    libc::NFT_MSG_GETSETELEM as u16,
                    libc::NLM_F_ACK as u16,
                    set.table().family(),
                    |bytes| {
                        element::put_set(bytes, table, set.name(first.is_ipv4()));
                        let list = wire::open_nested(bytes, element::NFTA_SET_ELEM_LIST_ELEMENTS);
                        for flow in asked {
                            element::put(bytes, flow, None);
                        }
                        wire::close(bytes, list);
                    },
                    |payload| {
                        answered += 1;
                        found.extend(element::read(batch::elements_of(payload)));
                    },
                );
                match answer {
                    Ok(_) => {}
                    // The kernel stops at the first that is not there.
                    Err(error) if is_missing(&error) => answered += 1,
                    Err(error) => return Err(LockError::call(CALL)(error)),
                }
                rest = &rest[answered.clamp(1, asked.len())..];
            }
        }
        Ok(found)
    }
}

/// Whether the table, the set or the element is not there.
fn is_missing(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOENT)
}
