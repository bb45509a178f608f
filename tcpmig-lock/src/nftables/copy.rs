//! Sets up again what others hold, too: for those who are gone.

use std::time::{Duration, Instant};

use super::batch::{Batch, Op};
use super::connection::Failure;
use super::element::{self, Element, Extra};
use super::lease_class::Class;
use super::names::Set;
use super::shared::{Shared, State};
use crate::{LockError, Owner};

/// How often the tables are read, so that little is missing of what traffic has kept up.
const EVERY: Duration = Duration::from_secs(1);
/// What is copied, the silence first.
const SETS: [Set; 4] = [Set::Locked, Set::Gone, Set::Hop, Set::Device];
/// How many elements go into one batch.
const AT_ONCE: usize = 128;

impl Shared {
    /// Copies what the tables hold, if that is due.
    pub(super) fn copy_all(&self) {
        let now = Instant::now();
        if self.state().care.due.is_none_or(|due| due > now) {
            return;
        }
        let copy = self.read_all();
        let state = &mut *self.state();
        state.care.due = Some(Instant::now() + EVERY);
        // Of a table that somebody removed meanwhile the copy may lack what it had.
        if let (false, Some(elements)) = (self.catch_up(state), copy) {
            state.care.copied = Some(now);
            state.care.elements = elements;
        }
    }

    fn read_all(&self) -> Option<Vec<(Set, Element)>> {
        let mut reader = self.reader.lock().ok()?;
        let mut all = Vec::new();
        for set in SETS {
            for v4 in [true, false] {
                match reader.elements(&self.table, set, v4) {
                    Ok(elements) => {
                        all.extend(elements.into_iter().flatten().map(|found| (set, found)));
                    }
                    Err(_) => return None,
                }
            }
        }
        Some(all)
    }

    /// Puts the copy of what others hold back: what silences if `silence`, or else the rest.
    pub(super) fn put_copy(&self, state: &mut State, silence: bool) -> Result<(), LockError> {
        let Some(copied) = state.care.copied else {
            return Ok(());
        };
        let age = copied.elapsed();
        let mut put: Vec<(Set, Element)> = Vec::new();
        for (set, found) in &state.care.elements {
            let own = state.kept.has(*set, &found.flow);
            let is_silence = matches!(set, Set::Locked | Set::Gone);
            if !own && is_silence == silence && found.remaining > age {
                let mut found = found.clone();
                found.remaining -= age;
                put.push((*set, found));
            }
        }
        for (set, found) in &put {
            let id = found.data.as_deref().and_then(<[u8]>::first_chunk);
            let class = id.and_then(|id| Class::from_id(u32::from_ne_bytes(*id)));
            if let (Set::Gone, Some(class)) = (set, class) {
                // What keeps its lease up: it may be of this handle's past.
                let _ = self.hook_class(state, class);
            }
        }
        for part in put.chunks(AT_ONCE) {
            let mut batch = state.connection.batch(None);
            for (set, found) in part {
                self.put_one(&mut batch, *set, found)?;
            }
            if state.connection.send(batch).is_ok() {
                continue;
            }
            // Whose it is may have been faster, with something newer.
            for (set, found) in part {
                let mut batch = state.connection.batch(None);
                self.put_one(&mut batch, *set, found)?;
                match state.connection.send(batch) {
                    Err(failure) if !Failure::already_there(&failure) => {
                        return Err(failure.into_error(&self.table));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn put_one(&self, batch: &mut Batch, set: Set, found: &Element) -> Result<(), LockError> {
        let comment = match &found.owner {
            Some(owner) => element::owner_comment(owner),
            None => element::owner_comment(&Owner::current()),
        };
        let extra = Extra {
            lease_ms: element::lease_ms(found.remaining)?,
            comment: &comment,
            data: found.data.as_deref(),
        };
        batch.elements(&self.table, set, Op::Keep(extra), &[found.flow]);
        Ok(())
    }
}
