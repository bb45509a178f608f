//! Events of the agent.

use std::ffi::{c_char, c_int};

use super::handle::AgentHandle;
use crate::border::{Failure, enter};
use crate::layer::LayerStruct;
use crate::sessions::EventStruct;
use crate::sized::{self, given};

exported! {
    /// `tcpmig_agent_next_event`.
    fn tcpmig_agent_next_event(
        agent: Option<&mut AgentHandle>,
        event: *mut EventStruct,
    ) -> c_int {
        enter(|| {
            let agent = given(agent, "agent")?;
            // SAFETY: it is as long as it says.
            unsafe { agent.inbox.next(event) }
        })
    }
}

exported! {
    /// `tcpmig_agent_layer`.
    fn tcpmig_agent_layer(
        agent: Option<&AgentHandle>,
        index: usize,
        layer: *mut LayerStruct,
    ) -> c_int {
        enter(|| {
            let agent = given(agent, "agent")?;
            // SAFETY: it is as long as it says.
            unsafe { agent.inbox.layer(index, layer) }
        })
    }
}

exported! {
    /// `tcpmig_agent_take`.
    fn tcpmig_agent_take(agent: Option<&mut AgentHandle>, offer: u64) -> c_int {
        enter(|| given(agent, "agent")?.inbox.answer(offer, Ok(())))
    }
}

exported! {
    /// `tcpmig_agent_refuse`.
    fn tcpmig_agent_refuse(
        agent: Option<&mut AgentHandle>,
        offer: u64,
        reason: *const c_char,
    ) -> c_int {
        enter(|| {
            let agent = given(agent, "agent")?;
            // SAFETY: a string, as the header says.
            let reason = unsafe { sized::text(reason, "reason") }?;
            agent.inbox.answer(offer, Err(reason.to_owned()))
        })
    }
}

exported! {
    /// `tcpmig_agent_drained`.
    fn tcpmig_agent_drained(agent: Option<&mut AgentHandle>, drain: u64, left: u64) -> c_int {
        enter(|| {
            let agent = given(agent, "agent")?;
            let over = || Failure::invalid(format_args!("there is no drain {drain}"));
            agent.inbox.drains.get(&drain).ok_or_else(over)?.left(left);
            if left == 0 {
                agent.inbox.drains.remove(&drain);
            }
            Ok(())
        })
    }
}
