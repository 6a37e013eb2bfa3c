use super::{Broken, Cut, Framing};

/// Frames that end with certain bytes, which the handler does not get.
#[derive(Clone, Copy, Debug)]
pub struct Delimited {
    /// The bytes at the end of each frame, at least one; they cannot stand in a frame.
    pub delimiter: &'static [u8],
    /// The longest frame in bytes, without its delimiter.
    pub max: usize,
}

impl Framing for Delimited {
    fn wire_max(&self) -> usize {
        self.max.saturating_add(self.delimiter.len())
    }

    fn cut(&self, bytes: &[u8], seen: usize) -> Result<Option<Cut>, Broken> {
        let Self { delimiter, max } = *self;
        if delimiter.is_empty() {
            return Err(Broken::Empty);
        }
        // The delimiter may have been cut in two.
        let from = seen.saturating_sub(delimiter.len() - 1);
        let unseen = bytes.get(from..).unwrap_or_default();
        let Some(at) = unseen.windows(delimiter.len()).position(|window| window == delimiter) else {
            // With so many bytes there is room for nothing but the delimiter.
            return if bytes.len() < self.wire_max() { Ok(None) } else { Err(Broken::TooLong { max, found: None }) };
        };
        let end = from + at;
        Ok(Some(Cut { frame: 0..end, wire_len: end + delimiter.len() }))
    }
}

/// Lines of text: frames that end with a line feed, or with a carriage return and a line feed. The handler gets neither.
#[derive(Clone, Copy, Debug)]
pub struct Lines {
    /// The longest line in bytes, without its line feed.
    pub max: usize,
}

impl Lines {
    const fn delimited(self) -> Delimited {
        Delimited { delimiter: b"\n", max: self.max }
    }
}

impl Framing for Lines {
    fn wire_max(&self) -> usize {
        self.delimited().wire_max()
    }

    fn cut(&self, bytes: &[u8], seen: usize) -> Result<Option<Cut>, Broken> {
        let Some(Cut { frame, wire_len }) = self.delimited().cut(bytes, seen)? else { return Ok(None) };
        let line = bytes.get(frame.clone()).unwrap_or_default();
        let end = line.strip_suffix(b"\r").unwrap_or(line).len();
        Ok(Some(Cut { frame: 0..end, wire_len }))
    }
}
