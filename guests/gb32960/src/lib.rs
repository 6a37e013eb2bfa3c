#![doc = include_str!("../README.md")]
//!
//! # The code
//!
//! [`frame`] finds frames in the stream and writes them, [`report`] turns their data into JSON, and [`vehicle`] knows whose they
//! are. Everything but [`vehicle`] is pure.

pub mod frame;
pub mod report;
pub mod vehicle;

polygate_guest::export!(vehicle::Vehicle, migrate);
