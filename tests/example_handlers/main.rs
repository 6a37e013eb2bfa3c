//! The handlers in examples/ keep the promises of examples/handlers/README.md: each is started as a child process, as its
//! user starts it, before a stand-in for the gateway and before the gateway itself.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test that gets something else than it expects fails"
)]

mod end_to_end;
mod example;
mod promises;

/// The harness of the gateway's own tests.
#[path = "../gateway"]
mod gateway {
    #[allow(dead_code, reason = "other tests use the rest of it")]
    pub mod harness;
}
