//! The guests by themselves: real components in a host that the test scripts, without a gateway around them. Here they are
//! given what no device sends, in every piece.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test that gets something else than it expects fails"
)]

mod host;

mod costs;
mod dist;
mod echo;
mod gt06;
mod lines;
mod migrate;
