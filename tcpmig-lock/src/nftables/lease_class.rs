//! Classes of leases, by which rules prolong what they look at.
//!
//! A rule can only set a lease to a time that stands in the rule. So leases that differ little are of one class, which
//! has a chain of its own that prolongs by the longest of them: by the lease, or up to a quarter more. The map `keep`
//! leads from a class to its chain.

use nftnl::nftnl_sys as sys;
use nftnl::{MsgType, Table as NftTable};

use super::batch::{Batch, CREATE};
use super::ffi::{self, Expr};
use super::names::{Table, c_string};
use super::object::{self, Mark};
use super::{element, expression};

/// The map from classes to chains.
const KEEP: &str = "keep";
/// In no map: nothing prolongs what has it.
pub(super) const NO_CLASS: u32 = 0;
/// Above the marks that people choose.
const FIRST: u32 = 0x7463_0000;
/// How many bits of a lease in milliseconds count.
const BITS: u32 = 3;

/// Leases that are prolonged by the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Class {
    ms: u64,
}

impl Class {
    /// That of a lease.
    pub(super) fn of(lease_ms: u64) -> Self {
        let shift = (u64::BITS - lease_ms.leading_zeros()).saturating_sub(BITS);
        Self {
            ms: lease_ms.div_ceil(1 << shift) << shift,
        }
    }

    /// By how much it prolongs.
    pub(super) fn ms(self) -> u64 {
        self.ms
    }

    /// The number by which rules know it: no other class has it.
    pub(super) fn id(self) -> u32 {
        let shift = (u64::BITS - self.ms.leading_zeros()).saturating_sub(BITS);
        // Three bits and the place where they stand, below 64.
        FIRST | u32::try_from(self.ms >> shift).unwrap_or(0) << 8 | shift
    }

    /// The class with this number.
    pub(super) fn from_id(id: u32) -> Option<Self> {
        let (bits, shift) = (id >> 8 & 0xff, id & 0xff);
        let ms = u64::from(bits).checked_shl(shift)?;
        let class = Self { ms };
        (ms > 0 && class.id() == id).then_some(class)
    }

    pub(super) fn chain_name(self) -> String {
        format!("keep-{}", self.ms)
    }

    /// Adds its entry to the map of a table: its chain has to be there.
    pub(super) fn add_to_map(self, batch: &mut Batch, which: Table, name: &str) {
        let chain = self.chain_name();
        let message = libc::NFT_MSG_NEWSETELEM as u16;
        batch.message("NFT_MSG_NEWSETELEM", which, message, CREATE, |bytes| {
            element::put_one(bytes, name, KEEP, |bytes| {
                element::put_value(bytes, element::NFTA_SET_ELEM_KEY, |bytes| {
                    bytes.extend_from_slice(&self.id().to_ne_bytes());
                });
                element::put_chain(bytes, libc::NFT_JUMP, &chain);
            });
        });
    }
}

/// Adds the map of a table.
pub(super) fn set_up(batch: &mut Batch, which: Table, table: &NftTable) {
    let name = c_string(KEEP);
    let id = object::set_id(batch);
    let mut map = nftnl::set::Set::<Mark>::new_named(&name, id, table, table.get_family());
    ffi::set_u32(&mut map, sys::NFTNL_SET_FLAGS, libc::NFT_SET_MAP as u32);
    ffi::set_u32(&mut map, sys::NFTNL_SET_DATA_TYPE, libc::NFT_DATA_VERDICT);
    object::host_order(&mut map, sys::NFTNL_UDATA_SET_KEYBYTEORDER);
    batch.object("NFT_MSG_NEWSET", which, &map, MsgType::Add, CREATE);
}

/// Goes to the chain of the class in the first register, and comes back.
pub(super) fn classes() -> Expr {
    let verdict = Some(libc::NFT_REG_VERDICT as u32);
    expression::lookup(c_string(KEEP), verdict)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_is_at_most_a_quarter_longer_and_has_its_own_number() {
        let mut known = std::collections::HashMap::new();
        let leases = (0..1000).chain((0..40).flat_map(|bit| {
            let lease = 1_u64 << bit;
            [lease - 1, lease, lease + 1, lease * 5 / 4, lease * 3 / 2]
        }));
        for lease in leases.filter(|lease| *lease > 0) {
            let class = Class::of(lease);
            assert!(class.ms() >= lease, "{lease}: {class:?}");
            assert!(class.ms() <= lease + lease / 4 + 1, "{lease}: {class:?}");
            assert_eq!(Class::of(class.ms()), class);
            assert_eq!(Class::from_id(class.id()), Some(class));
            let same = *known.entry(class.id()).or_insert(class.ms());
            assert_eq!(same, class.ms(), "of {lease}");
            assert_ne!(class.id(), NO_CLASS);
        }
        assert!(known.len() < 200, "{} classes", known.len());
    }
}
