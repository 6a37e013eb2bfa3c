//! polygate: one gate for every device protocol, in any language.

pub mod conn;
pub mod drain;
pub mod exproto;
pub mod telemetry;
pub mod wit;
