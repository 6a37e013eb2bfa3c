use core::error::Error;
use core::fmt;
use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// Frames between two flags, as HDLC and its descendants have them.
///
/// A flag may be the end of one frame and the start of the next; so a frame whose end was lost costs that frame alone, and a
/// stream is never broken.
#[derive(Clone, Copy, Debug)]
pub struct Flagged {
    /// Stands before and after every frame, and nowhere else.
    pub flag: u8,
    /// The most bytes between two flags, as they arrive; more are skipped.
    pub max: usize,
}

/// What a stream holds, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found<'b> {
    /// The bytes between two flags, never none, still escaped.
    Frame(Cow<'b, [u8]>),
    /// So many bytes are in no frame: before the first flag, or more than the bound without one.
    Skipped(usize),
}

/// Where the stream is between two events.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Between {
    /// Outside of a frame; so many bytes have been skipped.
    Outside(usize),
    /// After a flag; these bytes came since.
    Inside(Vec<u8>),
}

impl Default for Between {
    fn default() -> Self {
        Self::Outside(0)
    }
}

impl Between {
    /// How many bytes at the end of the stream are in no frame.
    #[must_use]
    pub const fn unfinished(&self) -> usize {
        match self {
            Self::Outside(skipped) => *skipped,
            Self::Inside(held) => held.len(),
        }
    }
}

impl Flagged {
    /// Takes what comes next from the front of `bytes`, the latest to arrive; none when they are used up. A frame that came
    /// in one piece is borrowed from them.
    pub fn next<'b>(&self, between: &mut Between, bytes: &mut &'b [u8]) -> Option<Found<'b>> {
        let Self { flag, max } = *self;
        while let Some(at) = bytes.iter().position(|byte| *byte == flag) {
            let (head, tail) = bytes.split_at(at);
            *bytes = tail.get(1..).unwrap_or_default();
            match core::mem::replace(between, Between::Inside(Vec::new())) {
                Between::Outside(skipped) if skipped + head.len() == 0 => {}
                Between::Outside(skipped) => return Some(Found::Skipped(skipped.saturating_add(head.len()))),
                Between::Inside(held) if held.len() + head.len() > max => {
                    return Some(Found::Skipped(held.len() + head.len()));
                }
                // Two flags in a row: the end of a frame and the start of the next.
                Between::Inside(held) if held.is_empty() && head.is_empty() => {}
                Between::Inside(held) if held.is_empty() => return Some(Found::Frame(Cow::Borrowed(head))),
                Between::Inside(mut held) => {
                    held.extend_from_slice(head);
                    return Some(Found::Frame(Cow::Owned(held)));
                }
            }
        }
        match between {
            Between::Outside(skipped) => *skipped = skipped.saturating_add(bytes.len()),
            Between::Inside(held) if held.len() + bytes.len() > max => {
                *between = Between::Outside(held.len() + bytes.len());
            }
            Between::Inside(held) => held.extend_from_slice(bytes),
        }
        *bytes = &[];
        None
    }
}

/// How bytes that may not stand in a frame are written all the same.
#[derive(Clone, Copy, Debug)]
pub struct Escapes {
    /// Stands before each code, and for nothing else.
    pub escape: u8,
    /// A code, and the byte that it and the escape before it stand for. The escape itself is one of these bytes.
    pub codes: &'static [(u8, u8)],
}

impl Escapes {
    /// JT/T 808: 0x7D 0x02 is 0x7E, and 0x7D 0x01 is 0x7D.
    pub const JT808: Self = Self { escape: 0x7d, codes: &[(1, 0x7d), (2, 0x7e)] };
    /// HDLC and PPP: 0x7D 0x5E is 0x7E, and 0x7D 0x5D is 0x7D.
    pub const HDLC: Self = Self { escape: 0x7d, codes: &[(0x5d, 0x7d), (0x5e, 0x7e)] };
    /// SLIP, whose flag is 0xC0: 0xDB 0xDC is 0xC0, and 0xDB 0xDD is 0xDB.
    pub const SLIP: Self = Self { escape: 0xdb, codes: &[(0xdd, 0xdb), (0xdc, 0xc0)] };

    /// Appends `plain` to `out`, escaped.
    pub fn write(&self, plain: &[u8], out: &mut Vec<u8>) {
        for &byte in plain {
            match self.codes.iter().find(|(_, meant)| *meant == byte) {
                Some((code, _)) => out.extend([self.escape, *code]),
                None => out.push(byte),
            }
        }
    }

    /// Undoes the escapes. Without any, it is the same bytes.
    ///
    /// # Errors
    ///
    /// [`WrongEscape`], for a code that stands for nothing.
    pub fn read<'r>(&self, raw: &'r [u8]) -> Result<Cow<'r, [u8]>, WrongEscape> {
        if !raw.contains(&self.escape) {
            return Ok(Cow::Borrowed(raw));
        }
        let mut plain = Vec::with_capacity(raw.len());
        let mut bytes = raw.iter();
        while let Some(&byte) = bytes.next() {
            plain.push(if byte == self.escape {
                let found = bytes.next().copied();
                let meant = self.codes.iter().find(|(code, _)| Some(*code) == found);
                meant.map(|(_, meant)| *meant).ok_or(WrongEscape { found })?
            } else {
                byte
            });
        }
        Ok(Cow::Owned(plain))
    }
}

/// What follows an escape is no code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrongEscape {
    /// The byte; none: the frame ended there.
    pub found: Option<u8>,
}

impl fmt::Display for WrongEscape {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.found {
            Some(found) => write!(out, "expected a code after an escape, found {found:02x}"),
            None => write!(out, "expected a code after an escape, found the end of the frame"),
        }
    }
}

impl Error for WrongEscape {}
