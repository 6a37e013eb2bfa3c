//! polygate: one gate for every device protocol, in any language.

pub mod auth;
pub mod conn;
pub mod drain;
pub mod exproto;
pub mod pubsub;
pub mod telemetry;
pub mod wit;
