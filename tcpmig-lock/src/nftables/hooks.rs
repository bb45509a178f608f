//! Sets up the rules for redirects, for the devices that there are.

use super::batch::Batch;
use super::connection::Failure;
use super::forward;
use super::lease_class::Class;
use super::shared::{Shared, State, TRIES};
use crate::LockError;

/// The chains of devices that go into one batch.
const AT_ONCE: usize = 8;

impl Shared {
    /// Has packets looked at on all devices but `lo`, and on `wanted`, wherever they come in: routes say only where
    /// they would leave.
    pub(super) fn hook_devices(
        &self,
        state: &mut State,
        wanted: Option<&str>,
    ) -> Result<(), LockError> {
        let has_wanted = wanted.is_none_or(|device| state.frame.has(device));
        if state.frame.ready && !state.frame.stale && has_wanted {
            return Ok(());
        }
        state.has_redirected = true;
        for tries in (0..TRIES).rev() {
            match self.hook_once(state, wanted)? {
                Ok(()) => {
                    state.frame.stale = false;
                    break;
                }
                Err(failure) if failure.is(libc::ENOENT) && tries > 0 => state.frame.forget(),
                Err(failure) => return Err(failure.into_error(&self.table)),
            }
        }
        Ok(())
    }

    /// The inner error is one of the kernel's, which may pass: a device was removed just now.
    fn hook_once(
        &self,
        state: &mut State,
        wanted: Option<&str>,
    ) -> Result<Result<(), Failure>, LockError> {
        let mut devices = self.routes.devices()?;
        devices.retain(|device| !device.loopback || Some(device.name.as_str()) == wanted);
        let mut batch = state.connection.batch(None);
        if !state.frame.ready {
            forward::set_up(&mut batch, &self.table, state.owned, state.closing_ms);
            if let Err(failure) = state.connection.send(batch) {
                return Ok(Err(failure));
            }
            state.frame.ready = true;
        }
        let there = |index: &u32| devices.iter().any(|device| device.index == *index);
        state.frame.hooked.retain(|index, _| there(index));
        devices.retain(|device| !state.frame.hooked.contains_key(&device.index));
        for part in devices.chunks(AT_ONCE) {
            let hook = |batch: &mut Batch| {
                for device in part {
                    forward::hook(batch, &self.table, &device.name, &device.name);
                }
            };
            let mut batch = state.connection.batch(None);
            hook(&mut batch);
            let together = state.connection.send(batch).is_ok();
            for device in part {
                if !together && let Err(failure) = self.hook_one(state, device.index, &device.name)
                {
                    // Without the others the flow may still arrive as it should, and what comes by them is dropped.
                    if Some(device.name.as_str()) == wanted {
                        return Ok(Err(failure));
                    }
                    continue;
                }
                let name = device.name.clone();
                state.frame.hooked.insert(device.index, name);
            }
        }
        Ok(Ok(()))
    }

    fn hook_one(&self, state: &mut State, index: u32, device: &str) -> Result<(), Failure> {
        // A chain of the first name may be that of a device that was called so before.
        let mut result = Ok(());
        for chain in [device.to_owned(), format!("{device}-{index}")] {
            let mut batch = state.connection.batch(None);
            forward::hook(&mut batch, &self.table, &chain, device);
            result = state.connection.send(batch);
            if result.is_ok() {
                break;
            }
        }
        result
    }

    /// Has leases of this class kept up.
    pub(super) fn hook_class(&self, state: &mut State, class: Class) -> Result<(), LockError> {
        if state.frame.classes.contains(&class) {
            return Ok(());
        }
        let mut batch = state.connection.batch(None);
        forward::set_up_class(&mut batch, &self.table, class);
        let sent = state.connection.send(batch);
        sent.map_err(|failure| failure.into_error(&self.table))?;
        state.frame.classes.insert(class);
        Ok(())
    }
}
