//! Devices and MQTT clients at the embedded broker: real sessions, real mailboxes, real MQTT clients.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test that gets something else than it expects fails"
)]

mod access;
mod bounds;
mod cost;
mod exchange;
mod harness;
mod sessions;
mod shares;
