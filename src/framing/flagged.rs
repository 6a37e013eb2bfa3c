//! Framing by flags, with byte stuffing (HDLC, RFC 1662, JT/T 808).

use bytes::{Buf, Bytes};

use super::{Deliver, Framer, Place, hold};

/// Frames between two flags, as in HDLC and its descendants.
///
/// One flag may end a frame and start the next; so a lost flag costs one frame, and a stream never breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flagged {
    /// Escapes of bytes that must not occur in a frame, the flag among them.
    pub escapes: Escapes,
    /// The longest frame in bytes, with the escapes and without the flags; a longer one is skipped.
    pub max: usize,
    /// The payload is between the flags, unescaped; a frame with an invalid escape is skipped.
    pub deliver: Deliver,
}

/// Escape scheme.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Escapes {
    /// JT/T 808: 0x7D 0x02 is 0x7E, and 0x7D 0x01 is 0x7D.
    Jt808,
    /// HDLC and PPP: the byte behind 0x7D has its sixth bit inverted (RFC 1662 §4.2).
    Hdlc,
}

impl Escapes {
    /// Before and after every frame, and nowhere else.
    pub const FLAG: u8 = 0x7e;
    /// Before an escaped byte.
    pub const ESCAPE: u8 = 0x7d;

    /// Unescapes a payload; `None` for an invalid escape.
    fn read(self, raw: Bytes) -> Option<Bytes> {
        if !raw.contains(&Self::ESCAPE) {
            return Some(raw);
        }
        let mut plain = Vec::with_capacity(raw.len());
        let mut bytes = raw.iter();
        while let Some(&byte) = bytes.next() {
            plain.push(match byte {
                Self::ESCAPE => match (self, *bytes.next()?) {
                    (Self::Jt808, 1) => Self::ESCAPE,
                    (Self::Jt808, 2) => Self::FLAG,
                    (Self::Jt808, _) => return None,
                    (Self::Hdlc, code) => code ^ 0x20,
                },
                _ => byte,
            });
        }
        Some(plain.into())
    }
}

impl Framer {
    /// The held bytes begin with the flag.
    pub(super) fn poll_flagged(&mut self, framing: &Flagged) -> Option<Bytes> {
        let Flagged { escapes, max, deliver } = *framing;
        // With the flag before it; the flag behind it is never held.
        let held_max = max.saturating_add(1);
        while let Some(at) = self.arrived.iter().position(|byte| *byte == Escapes::FLAG) {
            let mut head = self.arrived.split_to(at);
            self.arrived.advance(1);
            if self.place == Place::Outside {
                self.skipped += head.len() as u64;
                self.place = Place::Inside;
                continue;
            }
            let len = self.held.len().saturating_sub(1) + head.len();
            if len > max {
                self.skipped += len as u64;
                self.held = Vec::new();
                continue;
            }
            if !self.held.is_empty() {
                hold(&mut self.held, &head, held_max);
                head = std::mem::take(&mut self.held).into();
                head.advance(1);
            }
            if head.is_empty() {
                // End of a frame and start of the next, or two flags as idle fill.
                continue;
            }
            match deliver {
                Deliver::Wire => return Some([&[Escapes::FLAG], &*head, &[Escapes::FLAG]].concat().into()),
                Deliver::Payload => match escapes.read(head) {
                    Some(payload) => return Some(payload),
                    None => self.skipped += len as u64,
                },
            }
        }
        let rest = std::mem::take(&mut self.arrived);
        let len = self.held.len().saturating_sub(1) + rest.len();
        if self.place == Place::Outside || len > max {
            self.skipped += len as u64;
            self.held = Vec::new();
            self.place = Place::Outside;
        } else if !rest.is_empty() {
            if self.held.is_empty() {
                hold(&mut self.held, &[Escapes::FLAG], held_max);
            }
            hold(&mut self.held, &rest, held_max);
        }
        None
    }
}
