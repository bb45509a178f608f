//! Sessions through the agent.
//!
//! The client of the crate `tcpmig` runs on a thread of its own; what it hears is queued for the thread of the caller.

mod buffers;
mod event;
mod handle;
mod queue;
mod structs;

pub use event::{
    tcpmig_agent_drained, tcpmig_agent_layer, tcpmig_agent_next_event, tcpmig_agent_refuse,
    tcpmig_agent_take,
};
pub use handle::{
    AgentHandle, tcpmig_agent_connect, tcpmig_agent_fd, tcpmig_agent_free, tcpmig_agent_give,
    tcpmig_agent_host, tcpmig_agent_register,
};
pub use structs::{EventKind, EventStruct, SERVICE_TAKES, ServiceStruct, SessionStruct};
