//! The program as a child process: exit codes, output, log, and signals.
//!
//! Every gateway runs on ports that the system chose and its log names. It is killed with the test
//! that started it.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test that gets something else than it expects fails"
)]

mod fixture;
mod program;

mod checking;
mod compiling;
mod config;
mod conversation;
mod demo;
mod guests;
mod helping;
mod hostile_admin;
mod killing;
mod replaying;
mod secrets;
mod serving;
mod starting;
mod stopping;
mod swapping;
mod tapping;
