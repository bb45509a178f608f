//! A batch: messages that `nf_tables` carries out all or none, in one step.

use nftnl::{MsgType, NlMsg};
use tcpmig_format::FourTuple;

use super::element::{self, Extra};
use super::ffi;
use super::names::{Set, Table};
use crate::netlink::wire;

const SUBSYSTEM: u16 = libc::NFNL_SUBSYS_NFTABLES as u16;
const BEGIN: u16 = libc::NFNL_MSG_BATCH_BEGIN as u16;
const END: u16 = libc::NFNL_MSG_BATCH_END as u16;
const REQUEST: u16 = libc::NLM_F_REQUEST as u16;
const ACK: u16 = libc::NLM_F_ACK as u16;
pub(super) const CREATE: u16 = libc::NLM_F_CREATE as u16;
pub(super) const EXCLUSIVE: u16 = libc::NLM_F_EXCL as u16;
pub(super) const APPEND: u16 = libc::NLM_F_APPEND as u16;

/// `NFNL_BATCH_GENID`: the batch fails with ERESTART if the rules changed since this generation.
const BATCH_GENERATION: u16 = 1;
/// `NFT_MSG_DESTROYSETELEM`, since Linux 6.3; libc does not have it.
const DESTROY_ELEMENT: u16 = 30;

/// The call that kernels before 6.3 do not have.
pub(super) const DESTROY_CALL: &str = "NFT_MSG_DESTROYSETELEM";

pub(super) fn message_type(message: u16) -> u16 {
    (SUBSYSTEM << 8) | message
}

/// What is done with elements.
#[derive(Debug, Clone, Copy)]
pub(super) enum Op<'a> {
    /// Adds them; EEXIST if one is there.
    Add(Extra<'a>),
    /// Adds those that are not there.
    Keep(Extra<'a>),
    /// Removes them; ENOENT if one is not there.
    Delete,
    /// Removes those that are there.
    Destroy,
}

/// What a message of a batch was for: an error names it.
#[derive(Debug, Clone)]
pub(super) struct Part {
    pub(super) call: &'static str,
    pub(super) table: Table,
    /// The set of an element message.
    pub(super) set: Option<Set>,
    /// The flows of an element message, in order.
    pub(super) flows: Vec<FourTuple>,
    /// Where in the message the first element is, and how long each is.
    elements_at: usize,
    element_length: usize,
}

impl Part {
    /// The flow whose element has this offset in the message.
    pub(super) fn flow_at(&self, offset: usize) -> Option<FourTuple> {
        let index = offset
            .checked_sub(self.elements_at)?
            .checked_div(self.element_length)?;
        self.flows.get(index).copied()
    }
}

#[derive(Debug)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    first_seq: u32,
    parts: Vec<Part>,
    last_at: usize,
}

impl Batch {
    /// A batch whose messages are numbered from `first_seq`. With `generation` it is only carried out if nothing has
    /// changed since.
    pub(super) fn new(first_seq: u32, generation: Option<u32>) -> Self {
        let mut bytes = Vec::with_capacity(1024);
        let at = wire::open_message(&mut bytes, BEGIN, REQUEST, first_seq, 0, SUBSYSTEM);
        if let Some(generation) = generation {
            wire::put(&mut bytes, BATCH_GENERATION, &generation.to_be_bytes());
        }
        wire::close_message(&mut bytes, at);
        Self {
            bytes,
            first_seq,
            parts: Vec::new(),
            last_at: at,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// How much of a socket's send buffer it takes, finished.
    pub(super) fn length(&self) -> usize {
        self.bytes.len() + wire::NF_HEADER
    }

    /// The number of the message that opens the batch.
    pub(super) fn first_seq(&self) -> u32 {
        self.first_seq
    }

    /// The number of the last message, whose answer comes last.
    pub(super) fn last_seq(&self) -> u32 {
        self.next_seq().wrapping_sub(1)
    }

    /// The number after all messages, including the one that ends the batch.
    pub(super) fn end_seq(&self) -> u32 {
        self.next_seq().wrapping_add(1)
    }

    fn next_seq(&self) -> u32 {
        let count = u32::try_from(self.parts.len()).unwrap_or(u32::MAX);
        self.first_seq.wrapping_add(count).wrapping_add(1)
    }

    /// What the message with this number was for.
    pub(super) fn part(&self, seq: u32) -> Option<&Part> {
        let index = seq.wrapping_sub(self.first_seq).checked_sub(1)?;
        self.parts.get(usize::try_from(index).ok()?)
    }

    fn push(&mut self, call: &'static str, table: Table, at: usize) {
        self.last_at = at;
        self.parts.push(Part {
            call,
            table,
            set: None,
            flows: Vec::new(),
            elements_at: 0,
            element_length: 0,
        });
    }

    /// Adds a message that nftnl makes, with these flags.
    pub(super) fn object(
        &mut self,
        call: &'static str,
        table: Table,
        message: &impl NlMsg,
        kind: MsgType,
        flags: u16,
    ) {
        let mut encoded = ffi::encode(message, kind);
        let seq = self.next_seq();
        encoded[6..8].copy_from_slice(&(REQUEST | flags).to_ne_bytes());
        encoded[8..12].copy_from_slice(&seq.to_ne_bytes());
        let at = self.bytes.len();
        self.bytes.extend_from_slice(&encoded);
        self.push(call, table, at);
    }

    /// Adds a message made by hand.
    pub(super) fn message(
        &mut self,
        call: &'static str,
        table: Table,
        message: u16,
        flags: u16,
        fill: impl FnOnce(&mut Vec<u8>),
    ) {
        let seq = self.next_seq();
        let at = wire::open_message(
            &mut self.bytes,
            message_type(message),
            REQUEST | flags,
            seq,
            table.family(),
            0,
        );
        fill(&mut self.bytes);
        wire::close_message(&mut self.bytes, at);
        self.push(call, table, at);
    }

    /// Does `op` with the elements of `flows`, which may be of both families.
    pub(super) fn elements(&mut self, table_name: &str, set: Set, op: Op<'_>, flows: &[FourTuple]) {
        for v4 in [true, false] {
            // Most calls are about one family, and then there is nothing to copy here.
            let mine: Vec<FourTuple>;
            let flows = if flows.iter().all(|flow| flow.is_ipv4() == v4) {
                flows
            } else {
                mine = flows
                    .iter()
                    .copied()
                    .filter(|flow| flow.is_ipv4() == v4)
                    .collect();
                &mine
            };
            for chunk in flows.chunks(element::per_message(element::MAX_LENGTH)) {
                self.element_message(table_name, set, v4, op, chunk);
            }
        }
    }

    fn element_message(
        &mut self,
        table_name: &str,
        set: Set,
        v4: bool,
        op: Op<'_>,
        flows: &[FourTuple],
    ) {
        let (call, message, flags, extra) = match op {
            Op::Add(extra) => (
                "NFT_MSG_NEWSETELEM",
                libc::NFT_MSG_NEWSETELEM as u16,
                CREATE | EXCLUSIVE,
                Some(extra),
            ),
            Op::Keep(extra) => (
                "NFT_MSG_NEWSETELEM",
                libc::NFT_MSG_NEWSETELEM as u16,
                CREATE,
                Some(extra),
            ),
            Op::Delete => (
                "NFT_MSG_DELSETELEM",
                libc::NFT_MSG_DELSETELEM as u16,
                0,
                None,
            ),
            Op::Destroy => (DESTROY_CALL, DESTROY_ELEMENT, 0, None),
        };
        let start = self.bytes.len();
        let mut elements_at = 0;
        let mut element_length = 0;
        self.message(call, set.table(), message, flags, |bytes| {
            element::put_set(bytes, table_name, set.name(v4));
            let list = wire::open_nested(bytes, element::NFTA_SET_ELEM_LIST_ELEMENTS);
            let first = bytes.len();
            for flow in flows {
                element::put(bytes, flow, extra);
            }
            elements_at = first - start;
            element_length = (bytes.len() - first) / flows.len();
            wire::close(bytes, list);
        });
        if let Some(part) = self.parts.last_mut() {
            part.set = Some(set);
            part.flows = flows.to_vec();
            part.elements_at = elements_at;
            part.element_length = element_length;
        }
    }

    /// Ends the batch, and gives its bytes.
    pub(super) fn finish(&mut self) -> &[u8] {
        // Errors are always answered; this makes the kernel say that there were none.
        wire::add_flags(&mut self.bytes, self.last_at, ACK);
        self.close()
    }

    /// Like [`finish`](Self::finish), without an answer if all goes well.
    pub(super) fn close(&mut self) -> &[u8] {
        let seq = self.next_seq();
        let at = wire::open_message(&mut self.bytes, END, REQUEST, seq, 0, SUBSYSTEM);
        wire::close_message(&mut self.bytes, at);
        &self.bytes
    }
}

/// The elements in a received element message, after its headers.
pub(super) fn elements_of(payload: &[u8]) -> &[u8] {
    payload
        .get(wire::NF_HEADER - wire::HEADER..)
        .and_then(|attributes| wire::attribute(attributes, element::NFTA_SET_ELEM_LIST_ELEMENTS))
        .unwrap_or_default()
}
