//! Framing by silence (idle time), as in Modbus RTU.

use std::time::Duration;

use super::{Framer, Place, hold};

/// Frames separated by silence, such as those of Modbus RTU behind a serial device server.
///
/// Silence is measured between reads: frames that the network has merged, or that arrived while the gateway did not
/// read, cannot be separated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Silence {
    /// Minimum silence that ends a frame.
    pub silence: Duration,
    /// Maximum size of a frame; a longer one is skipped, up to the next silence.
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
