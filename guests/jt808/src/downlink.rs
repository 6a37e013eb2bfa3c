//! Frames for the terminal: its form of the header, one serial after the other, sub-packages where they are needed. Pure.

use serde::{Deserialize, Serialize};

use crate::header::{Address, BODY_MAX, Header, Part};
use crate::wire;

/// The longest body of a message to a terminal, in bytes: 65 sub-packages.
pub const MESSAGE_MAX: usize = 64 << 10;

/// What the general answer says of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It was taken.
    Done = 0,
    /// It was not; the terminal should try again.
    Failed = 1,
    /// It cannot be understood.
    Malformed = 2,
    /// It is understood, but nothing comes of it.
    Unsupported = 3,
}

/// Under which serials a message went out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// The serial of its first frame; those of the others follow.
    pub serial: u16,
    /// How many frames there are.
    pub frames: u16,
}

/// Counts the frames to one terminal.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Downlink {
    serial: u16,
}

impl Downlink {
    /// Cuts a message into frames, gives each to `send`, and counts it.
    ///
    /// `body` is at most [`MESSAGE_MAX`] long; what is longer is cut off there, so callers check first.
    pub fn message(&mut self, to: &Address, id: u16, body: &[u8], mut send: impl FnMut(&[u8])) -> Sent {
        let body = body.get(..MESSAGE_MAX).unwrap_or(body);
        let serial = self.serial;
        let total = body.len().div_ceil(BODY_MAX).max(1) as u16;
        for index in 1..=total {
            let start = usize::from(index - 1) * BODY_MAX;
            let piece = body.get(start..body.len().min(start + BODY_MAX)).unwrap_or_default();
            let part = (total > 1).then_some(Part { total, index });
            let mut content = Vec::with_capacity(piece.len() + 21);
            to.write_header(&mut content, id, piece.len() as u16, self.serial, part);
            content.extend_from_slice(piece);
            self.serial = self.serial.wrapping_add(1);
            send(&wire::seal(&content));
        }
        Sent { serial, frames: total }
    }

    /// The general answer, 0x8001, to a message.
    pub fn general_answer(&mut self, to: &Header, verdict: Verdict, send: impl FnMut(&[u8])) -> Sent {
        let [high, low] = to.serial.to_be_bytes();
        let [id_high, id_low] = to.id.to_be_bytes();
        self.message(&to.address, 0x8001, &[high, low, id_high, id_low, verdict as u8], send)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(content: &[u8]) -> Header {
        Header::parse(content).unwrap().0
    }

    /// An answer is a frame of its own, byte for byte.
    #[test]
    fn general_answer() {
        let mut downlink = Downlink::default();
        let to = header(&[0x02, 0, 0, 0, 0x01, 0x38, 0, 0x13, 0x80, 0, 0x12, 0x7e]);
        let mut frames = Vec::new();
        for _ in 0..2 {
            downlink.general_answer(&to, Verdict::Done, |frame| frames.push(frame.to_vec()));
        }
        let first = [0x7e, 0x80, 0x01, 0, 5, 0x01, 0x38, 0, 0x13, 0x80, 0, 0, 0, 0x12, 0x7d, 2, 2, 0, 0, 0x40, 0x7e];
        assert_eq!(frames[0], first);
        assert_eq!(header(&wire::open(&frames[1][1..frames[1].len() - 1]).unwrap()).serial, 1);
    }

    /// A long message is cut into sub-packages with serials in a row, over the end of the count, and nothing is lost.
    #[test]
    fn sub_packages() {
        let mut downlink = Downlink { serial: u16::MAX };
        let to = header(&[0x02, 0, 0x40, 0, 1, 0, 0, 0, 0, 0x01, 0x38, 0, 0x13, 0x80, 0, 0, 0]);
        let body: Vec<u8> = (0..2 * BODY_MAX + 1).map(|n| n as u8).collect();
        let mut joined = Vec::new();
        let mut serials = Vec::new();
        let sent = downlink.message(&to.address, 0x8300, &body, |frame| {
            let content = wire::open(&frame[1..frame.len() - 1]).unwrap().into_owned();
            let (header, piece) = Header::parse(&content).unwrap();
            assert_eq!((header.id, header.body_length, header.address), (0x8300, piece.len(), to.address));
            serials.push((header.serial, header.part));
            joined.extend_from_slice(piece);
        });
        assert_eq!(joined, body);
        assert_eq!(sent, Sent { serial: u16::MAX, frames: 3 });
        let part = |index| Some(Part { total: 3, index });
        assert_eq!(serials, [(u16::MAX, part(1)), (0, part(2)), (1, part(3))]);
    }

    /// A body that just fits is one frame.
    #[test]
    fn body_max() {
        let to = header(&[0; 12]);
        let frames = |length| Downlink::default().message(&to.address, 0x8300, &vec![0; length], |_| {}).frames;
        assert_eq!([frames(0), frames(BODY_MAX), frames(BODY_MAX + 1), frames(MESSAGE_MAX)], [1, 1, 2, 65]);
    }
}
