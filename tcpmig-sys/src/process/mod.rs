//! Processes that have a connection: who they are, their descriptors, and what they do meanwhile.

pub mod descriptors;
pub mod exec;
pub mod following;
pub mod owners;
pub mod packets;
pub mod passing;
pub mod pause;
pub mod signals;
pub mod take;
pub mod users;
