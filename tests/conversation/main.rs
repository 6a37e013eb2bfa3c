//! Conversations on real sockets: the player against a scripted gateway, many of them at once, and with a broker.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test that gets something else than it expects fails"
)]

mod bad_files;
mod broker;
mod examples;
mod gateway;
mod playing;
mod replaying;
mod with_broker;
