//! polygate: one gate for every device protocol, in any language.

pub mod auth;
pub mod conn;
pub mod pubsub;
