//! Framing by a fixed length.

use super::{Broken, Cut};

/// Frames of one fixed length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fixed {
    /// From 1.
    pub size: usize,
}

impl Fixed {
    pub(super) fn cut(self, bytes: &[u8]) -> Result<Option<Cut>, Broken> {
        let Self { size } = self;
        if size == 0 {
            return Err(Broken::Empty);
        }
        Ok((bytes.len() >= size).then_some(Cut { frame: 0..size, wire_len: size }))
    }
}
