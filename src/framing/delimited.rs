//! Framing by delimiter and by line end.

use super::{Broken, Cut, Deliver};

/// Frames that end with a delimiter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delimited {
    /// The delimiter, at least one byte; it cannot occur in a frame.
    pub delimiter: Box<[u8]>,
    /// The longest frame in bytes, without its delimiter.
    pub max: usize,
    /// The payload precedes the delimiter.
    pub deliver: Deliver,
}

impl Delimited {
    pub(super) fn cut(&self, bytes: &[u8], seen: usize) -> Result<Option<Cut>, Broken> {
        let delimiter = &*self.delimiter;
        if delimiter.is_empty() {
            return Err(Broken::Empty);
        }
        Ok(end_of(delimiter, bytes, seen).map(|wire_len| {
            let end = match self.deliver {
                Deliver::Wire => wire_len,
                Deliver::Payload => wire_len - delimiter.len(),
            };
            Cut { frame: 0..end, wire_len }
        }))
    }
}

/// Lines of text: frames that end with a line feed, or with a carriage return and a line feed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lines {
    /// The longest line in bytes, without its line feed.
    pub max: usize,
    /// The payload precedes the line end.
    pub deliver: Deliver,
}

impl Lines {
    pub(super) fn cut(self, bytes: &[u8], seen: usize) -> Option<Cut> {
        let wire_len = end_of(b"\n", bytes, seen)?;
        let line = &bytes[..wire_len - 1];
        let end = match self.deliver {
            Deliver::Wire => wire_len,
            Deliver::Payload => line.strip_suffix(b"\r").unwrap_or(line).len(),
        };
        Some(Cut { frame: 0..end, wire_len })
    }
}

/// End of the first delimiter, which does not end within the first `seen` bytes.
fn end_of(delimiter: &[u8], bytes: &[u8], seen: usize) -> Option<usize> {
    let last = *delimiter.last()?;
    // It may have been split between two reads.
    let mut from = seen.max(delimiter.len() - 1);
    loop {
        let at = from + bytes.get(from..)?.iter().position(|byte| *byte == last)?;
        if bytes[..=at].ends_with(delimiter) {
            return Some(at + 1);
        }
        from = at + 1;
    }
}
