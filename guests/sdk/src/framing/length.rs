use super::{Broken, Cut, Framing};

/// How many bytes a length has.
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
}

/// In which order they come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The most significant one first: network byte order.
    Big,
    /// The least significant one first.
    Little,
}

/// Frames that say how long they are. The handler gets the whole frame, its length included.
///
/// ```text
/// | offset bytes | width bytes: n | n + adjust bytes |
/// ```
#[derive(Clone, Copy, Debug)]
pub struct LengthPrefixed {
    /// How many bytes stand before the length.
    pub offset: usize,
    /// How many bytes the length has.
    pub width: Width,
    /// In which order they come.
    pub order: Order,
    /// What the length does not count of what follows it: 2 for a checksum of two bytes behind the body that is counted;
    /// -6 where a length at offset 4 of 2 bytes counts the whole frame.
    pub adjust: i32,
    /// The longest frame in bytes, with all that stands in it.
    pub max: usize,
}

impl Framing for LengthPrefixed {
    fn wire_max(&self) -> usize {
        self.max
    }

    fn cut(&self, bytes: &[u8], _seen: usize) -> Result<Option<Cut>, Broken> {
        let Self { offset, width, order, adjust, max } = *self;
        let min = offset.saturating_add(width as usize);
        if min > max {
            return Err(Broken::TooLong { max, found: Some(min as u64) });
        }
        let Some(length) = bytes.get(offset..min) else { return Ok(None) };
        let append = |length: u32, byte: &u8| length << 8 | u32::from(*byte);
        let counted = match order {
            Order::Big => length.iter().fold(0, append),
            Order::Little => length.iter().rev().fold(0, append),
        };
        // Nothing overflows: 32 bits, and a minimum under a bound that fits into memory.
        let wire_len = min as i64 + i64::from(counted) + i64::from(adjust);
        if wire_len < min as i64 {
            return Err(Broken::TooShort { min, found: wire_len });
        }
        match usize::try_from(wire_len) {
            Ok(wire_len) if wire_len <= max => {
                Ok((bytes.len() >= wire_len).then_some(Cut { frame: 0..wire_len, wire_len }))
            }
            _ => Err(Broken::TooLong { max, found: Some(wire_len.unsigned_abs()) }),
        }
    }
}
