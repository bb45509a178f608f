//! The `tcpmig` command.

fn main() {}
