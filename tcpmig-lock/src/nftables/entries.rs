//! What the tables hold, as others are to see it.

use std::collections::hash_map::Entry::{Occupied, Vacant};
use std::collections::{HashMap, HashSet};
use std::mem;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::PoisonError;

use tcpmig_format::FourTuple;

use super::element::Element;
use super::names::Set;
use super::shared::Shared;
use crate::{Entry, EntryKind, LockError};

impl Shared {
    /// All that the tables hold. With very many redirects it takes seconds, and no call but another of these waits for it.
    pub(super) fn list(&self) -> Result<Vec<Entry>, LockError> {
        let table = &self.table;
        let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        let mut locked = Vec::new();
        let mut closing = Vec::new();
        let mut device = Vec::new();
        let mut gone = Vec::new();
        for v4 in [true, false] {
            locked.extend(reader.elements(table, Set::Locked, v4)?.unwrap_or_default());
            closing.extend(
                reader
                    .elements(table, Set::Closing, v4)?
                    .unwrap_or_default(),
            );
            // What is listed of these twice would be by far the most: what one list left out, the other has.
            device.extend(reader.elements_once(table, Set::Device, v4)?);
            gone.extend(reader.elements_once(table, Set::Gone, v4)?);
        }
        let flows = |elements: &[Element]| -> HashSet<FourTuple> {
            elements.iter().map(|element| element.flow).collect()
        };
        let (in_device, in_gone) = (flows(&device), flows(&gone));
        let left_out: Vec<_> = in_gone.difference(&in_device).copied().collect();
        device.extend(reader.elements_of(table, Set::Device, &left_out, usize::MAX)?);
        let left_out: Vec<_> = in_device.difference(&in_gone).copied().collect();
        gone.extend(reader.elements_of(table, Set::Gone, &left_out, usize::MAX)?);
        let redirected: Vec<_> = in_device.union(&in_gone).copied().collect();
        // To ask for each takes as long for the last one as for the first.
        let mut hop = reader.all_elements_of(table, Set::Hop, &redirected, usize::MAX)?;
        drop(reader);
        self.entries(|set| {
            Ok(match set {
                Set::Locked => mem::take(&mut locked),
                Set::Gone => mem::take(&mut gone),
                Set::Device => mem::take(&mut device),
                Set::Hop => mem::take(&mut hop),
                Set::Closing => mem::take(&mut closing),
                Set::Back | Set::Ended => Vec::new(),
            })
        })
    }

    /// Makes entries of what `read` says each set holds.
    pub(super) fn entries(
        &self,
        mut read: impl FnMut(Set) -> Result<Vec<Element>, LockError>,
    ) -> Result<Vec<Entry>, LockError> {
        let mut entries = Vec::new();
        for element in one_each(read(Set::Locked)?) {
            entries.push(element.entry(EntryKind::Lock));
        }
        let devices: HashMap<_, _> = one_each(read(Set::Device)?)
            .into_iter()
            .filter_map(|element| Some((element.flow, *element.data?.first_chunk()?)))
            .collect();
        let closing: HashSet<_> = read(Set::Closing)?
            .into_iter()
            .map(|element| element.flow)
            .collect();
        // Asked for before the redirects: what is redirected meanwhile is not taken for silent only.
        let gone = one_each(read(Set::Gone)?);
        let owners: HashMap<_, _> = gone
            .iter()
            .filter_map(|element| Some((element.flow, element.owner.clone()?)))
            .collect();
        let mut names = HashMap::new();
        let mut redirected: HashSet<FourTuple> = devices.keys().copied().collect();
        for mut element in one_each(read(Set::Hop)?) {
            redirected.insert(element.flow);
            // What packets made hides the one with the owner from who asks for it alone.
            if element.owner.is_none() {
                element.owner = owners.get(&element.flow).cloned();
            }
            let data = element.data.as_deref().unwrap_or_default();
            let address = if let Ok(bytes) = <[u8; 4]>::try_from(data) {
                Ipv4Addr::from(bytes).into()
            } else if let Ok(bytes) = <[u8; 16]>::try_from(data) {
                Ipv6Addr::from(bytes).into()
            } else {
                continue;
            };
            let index = devices
                .get(&element.flow)
                .map_or(0, |index| u32::from_ne_bytes(*index));
            let device = names.entry(index).or_insert_with(|| {
                // The device may be gone; its index is what is left to say.
                let name = self.routes.device_name(index);
                name.unwrap_or_else(|_| index.to_string())
            });
            let kind = EntryKind::Redirect {
                address,
                device: device.clone(),
            };
            let mut entry = element.entry(kind);
            entry.closing = closing.contains(&entry.flow);
            if entry.closing {
                // What is left is no longer the rest of what it was made with.
                entry.age = None;
            }
            entries.push(entry);
        }
        for element in gone {
            if !redirected.contains(&element.flow) {
                entries.push(element.entry(EntryKind::Silent));
            }
        }
        Ok(entries)
    }
}

/// One element for each flow. A packet can have made a second one, which has no owner; and a set that changes while the kernel
/// lists it is listed in part again.
fn one_each(elements: Vec<Element>) -> Vec<Element> {
    let mut places: HashMap<FourTuple, usize> = HashMap::with_capacity(elements.len());
    let mut one: Vec<Element> = Vec::with_capacity(elements.len());
    for element in elements {
        match places.entry(element.flow) {
            Occupied(place) if one[*place.get()].owner.is_none() => one[*place.get()] = element,
            Occupied(_) => {}
            Vacant(place) => {
                place.insert(one.len());
                one.push(element);
            }
        }
    }
    one
}
