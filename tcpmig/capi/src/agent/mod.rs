//! Sessions through the agent.

mod event;
mod handle;
mod service;

pub use event::{
    tcpmig_agent_drained, tcpmig_agent_layer, tcpmig_agent_next_event, tcpmig_agent_refuse,
    tcpmig_agent_take,
};
pub use handle::{
    AgentHandle, tcpmig_agent_connect, tcpmig_agent_fd, tcpmig_agent_free, tcpmig_agent_give,
    tcpmig_agent_host, tcpmig_agent_register,
};
pub use service::{SERVICE_TAKES, ServiceStruct};
