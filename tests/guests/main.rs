//! Guests in a scripted host, without a gateway: real components, with input that no device sends, split at every
//! position.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test that gets something else than it expects fails"
)]

mod host;

mod catalogue;
mod costs;
mod dist;
mod echo;
mod gt06;
mod lines;
mod migrate;
