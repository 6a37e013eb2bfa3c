#![doc = include_str!("../README.md")]
//!
//! # The code
//!
//! Bytes go up through [`wire`] (frames, escapes, checksum), [`header`], [`assembly`] (sub-packages)
//! to [`terminal`], which knows who the peer is and what its messages ask for. [`location`], [`registration`] and
//! [`message`] turn bodies into JSON; [`command`] turns JSON into bodies, and [`downlink`] those into frames. Everything
//! but [`terminal`] is pure.

pub mod assembly;
pub mod command;
pub mod downlink;
pub mod gbk;
pub mod header;
pub mod location;
pub mod malformed;
pub mod message;
mod reader;
pub mod registration;
pub mod settings;
pub mod terminal;
pub mod time;
pub mod wire;

polygate_guest::export!(terminal::Terminal, migrate);
