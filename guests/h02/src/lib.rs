#![doc = include_str!("../README.md")]
//!
//! # The code
//!
//! [`frame`] finds sentences and records in the stream, [`report`] turns them into JSON and answers, and [`tracker`] knows whose
//! they are. Everything but [`tracker`] is pure.

pub mod frame;
pub mod report;
pub mod tracker;

polygate_guest::export!(tracker::Tracker, migrate);
