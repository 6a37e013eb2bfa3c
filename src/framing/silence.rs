use std::time::Duration;

use super::{Framer, Place, hold};

/// Frames with silence between them, such as those of Modbus RTU behind a serial device server.
///
/// The silence is that of the reads: bytes that the network has brought together, or that came while the gateway did not
/// read, cannot be told apart any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Silence {
    /// The shortest silence that ends a frame.
    pub silence: Duration,
    /// The longest frame; a longer one is skipped, up to the next silence.
    pub max: usize,
}

impl Framer {
    pub(super) fn hold_until_silence(&mut self, bytes: &[u8], max: usize) {
        let len = self.held.len() + bytes.len();
        if self.place == Place::Outside || len > max {
            self.skipped += len as u64;
            self.held = Vec::new();
            self.place = Place::Outside;
        } else {
            hold(&mut self.held, bytes, max);
        }
    }
}
