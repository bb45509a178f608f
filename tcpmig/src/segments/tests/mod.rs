pub(super) mod build;
mod merging;
mod parsing;
mod streams;
