//! Framing by a length prefix.

use super::{Broken, Cut, Deliver};

/// Width of a length field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// 8 bits.
    One = 1,
    /// 16 bits.
    Two = 2,
    /// 24 bits.
    Three = 3,
    /// 32 bits.
    Four = 4,
    /// 64 bits.
    Eight = 8,
}

/// Byte order of a length field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Most significant byte first (network byte order).
    Big,
    /// Least significant byte first.
    Little,
}

/// Length-prefixed frames.
///
/// ```text
/// | offset bytes | width bytes: n | n + adjust bytes |
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LengthPrefixed {
    /// Bytes before the length field.
    pub offset: usize,
    pub width: Width,
    pub order: Order,
    /// Bytes after the length field that the length does not count: 2 for a checksum of two bytes behind the counted
    /// body; -6 where a length at offset 4 of 2 bytes counts the whole frame.
    pub adjust: i32,
    /// Maximum size of a frame.
    pub max: usize,
    /// The payload follows the length field.
    pub deliver: Deliver,
}

impl LengthPrefixed {
    /// Size of the header: up to the end of the length field.
    pub fn min(&self) -> usize {
        self.offset.saturating_add(self.width as usize)
    }

    pub(super) fn cut(&self, bytes: &[u8]) -> Result<Option<Cut>, Broken> {
        let Self { offset, order, adjust, max, deliver, .. } = *self;
        let min = self.min();
        if min > max {
            return Err(Broken::TooLong { max, found: Some(min as u64) });
        }
        let Some(length) = bytes.get(offset..min) else { return Ok(None) };
        let append = |length: u64, byte: &u8| length << 8 | u64::from(*byte);
        let counted = match order {
            Order::Big => length.iter().fold(0, append),
            Order::Little => length.iter().rev().fold(0, append),
        };
        // Wide enough for all 64 bits and the adjustment.
        let wire_len = min as i128 + i128::from(counted) + i128::from(adjust);
        if wire_len < min as i128 {
            let found = i64::try_from(wire_len).unwrap_or(i64::MIN);
            return Err(Broken::TooShort { min, found });
        }
        match usize::try_from(wire_len) {
            Ok(wire_len) if wire_len <= max => {
                let from = match deliver {
                    Deliver::Wire => 0,
                    Deliver::Payload => min,
                };
                Ok((bytes.len() >= wire_len).then_some(Cut { frame: from..wire_len, wire_len }))
            }
            _ => Err(Broken::TooLong { max, found: Some(u64::try_from(wire_len).unwrap_or(u64::MAX)) }),
        }
    }
}
