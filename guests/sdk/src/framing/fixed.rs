use super::{Broken, Cut, Framing};

/// Frames that all have one length.
#[derive(Clone, Copy, Debug)]
pub struct Fixed {
    /// That length in bytes, from 1.
    pub size: usize,
}

impl Framing for Fixed {
    fn wire_max(&self) -> usize {
        self.size
    }

    fn cut(&self, bytes: &[u8], _seen: usize) -> Result<Option<Cut>, Broken> {
        let Self { size } = *self;
        if size == 0 {
            return Err(Broken::Empty);
        }
        Ok((bytes.len() >= size).then_some(Cut { frame: 0..size, wire_len: size }))
    }
}
