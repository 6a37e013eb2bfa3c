//! A terminal on a scripted adapter: says bytes, and reads what came of them.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::ops::{Deref, DerefMut};

use jt808::header::Header;
use jt808::terminal::Terminal;
use jt808::wire;
use polygate_guest::scripted::{self, Scripted};
use serde_json::Value;

/// 013800138000, as a header of 2013 has it.
pub const PHONE: [u8; 6] = [0x01, 0x38, 0x00, 0x13, 0x80, 0x00];

/// The terminal's end of the connection.
pub struct Device(scripted::Device<Terminal>);

impl Device {
    pub fn new() -> Self {
        Self::with(Scripted::new())
    }

    pub fn with(adapter: Scripted) -> Self {
        Self(scripted::Device::on(adapter))
    }

    /// Somebody publishes a command.
    pub fn is_told(&mut self, payload: &str) {
        self.0.is_told("jt808/13800138000/command", payload.as_bytes());
    }

    /// Its connection is with another version of the handler from now on.
    pub fn swapped(self) -> Self {
        Self(self.0.swapped().unwrap_or_else(|(_, refusal)| panic!("{refusal}")))
    }

    /// What was published below `jt808/<phone>/`, as JSON.
    pub fn published(&self, kind: &str) -> Vec<Value> {
        let published = self.adapter.published().into_iter();
        published
            .filter(|(topic, _)| topic.splitn(3, '/').nth(2) == Some(kind))
            .map(|(_, payload)| serde_json::from_slice(&payload).unwrap())
            .collect()
    }

    /// Id and body of every frame to the terminal.
    pub fn answers(&self) -> Vec<(u16, Vec<u8>)> {
        let frame = |frame: Vec<u8>| {
            let content = wire::open(&frame[1..frame.len() - 1]).unwrap().into_owned();
            let (header, body) = Header::parse(&content).unwrap();
            assert_eq!(header.body_length, body.len());
            (header.id, body.to_vec())
        };
        self.adapter.sends().into_iter().map(frame).collect()
    }
}

impl Deref for Device {
    type Target = scripted::Device<Terminal>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for Device {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

/// A frame of `PHONE` with a header of 2013.
pub fn frame(id: u16, serial: u16, body: &[u8]) -> Vec<u8> {
    frame_of(PHONE, id, serial, body)
}

pub fn frame_of(phone: [u8; 6], id: u16, serial: u16, body: &[u8]) -> Vec<u8> {
    let length = (body.len() as u16).to_be_bytes();
    wire::seal(&[&id.to_be_bytes()[..], &length, &phone, &serial.to_be_bytes(), body].concat())
}

/// Sub-package `index` of `total`.
pub fn part(id: u16, serial: u16, (index, total): (u16, u16), body: &[u8]) -> Vec<u8> {
    let properties = (body.len() as u16 | 1 << 13).to_be_bytes();
    let numbers = [total.to_be_bytes(), index.to_be_bytes()].concat();
    wire::seal(&[&id.to_be_bytes()[..], &properties, &PHONE, &serial.to_be_bytes(), &numbers, body].concat())
}

/// The same terminal with a header of 2019.
pub fn frame_2019(id: u16, serial: u16, body: &[u8]) -> Vec<u8> {
    let properties = (body.len() as u16 | 1 << 14).to_be_bytes();
    let phone = [&[1, 0, 0, 0, 0], &PHONE[..]].concat();
    wire::seal(&[&id.to_be_bytes()[..], &properties, &phone, &serial.to_be_bytes(), body].concat())
}

/// The fixed part of a position: 22.588456 N, 114.123456 E, 2025-11-25 11:41:14 in China.
pub fn position() -> Vec<u8> {
    let fixed = [0, 3, 22_588_456, 114_123_456_u32].map(u32::to_be_bytes).concat();
    [&fixed[..], &[0, 44, 2, 89, 0, 90, 0x25, 0x11, 0x25, 0x11, 0x41, 0x14]].concat()
}

pub fn unhex(digits: &str) -> Vec<u8> {
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}
