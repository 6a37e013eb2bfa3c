//! polygate: one gate for every device protocol, in any language.

pub mod cli;
pub mod conn;
pub mod conversation;
