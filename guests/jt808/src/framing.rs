//! Cuts a stream of bytes at its 0x7E. Pure, bounded, and indifferent to how the stream arrives.

use crate::wire::FLAG;

/// The longest stretch between two flags, in bytes as they arrive.
///
/// The standard needs at most 2,090: 21 bytes of header, 1,023 of body and a checksum, all of them escaped. The rest is for
/// terminals that do not keep to 1,023.
pub const FRAME_MAX: usize = 4096;

/// What the stream holds, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found<'a> {
    /// The bytes between two flags, never none.
    Frame(&'a [u8]),
    /// So many bytes are in no frame: before the first flag, or more than [`FRAME_MAX`] without one.
    Skipped(usize),
}

/// Where the stream is.
///
/// A flag may be the end of one frame and the start of the next; so a frame whose end was lost costs that frame alone.
#[derive(Debug)]
pub enum Framer {
    /// Outside of a frame; so many bytes have been skipped.
    Outside(usize),
    /// After a flag; these bytes came since.
    Inside(Vec<u8>),
}

impl Default for Framer {
    fn default() -> Self {
        Self::Outside(0)
    }
}

impl Framer {
    /// Takes the next bytes, and calls `found` for all that they complete.
    pub fn push(&mut self, bytes: &[u8], mut found: impl FnMut(Found<'_>)) {
        let mut rest = bytes;
        while let Some(at) = rest.iter().position(|byte| *byte == FLAG) {
            let (head, tail) = rest.split_at(at);
            match std::mem::replace(self, Self::Inside(Vec::new())) {
                Self::Outside(skipped) => {
                    if skipped + head.len() > 0 {
                        found(Found::Skipped(skipped + head.len()));
                    }
                }
                Self::Inside(held) if held.len() + head.len() > FRAME_MAX => {
                    found(Found::Skipped(held.len() + head.len()));
                }
                // Two flags in a row: the end of a frame and the start of the next.
                Self::Inside(held) if held.is_empty() && head.is_empty() => {}
                Self::Inside(held) if held.is_empty() => found(Found::Frame(head)),
                Self::Inside(mut held) => {
                    held.extend_from_slice(head);
                    found(Found::Frame(&held));
                }
            }
            rest = tail.get(1..).unwrap_or_default();
        }
        match self {
            Self::Outside(skipped) => *skipped += rest.len(),
            Self::Inside(held) if held.len() + rest.len() > FRAME_MAX => *self = Self::Outside(held.len() + rest.len()),
            Self::Inside(held) => held.extend_from_slice(rest),
        }
    }

    /// How many bytes at the end of the stream are in no frame.
    #[must_use]
    pub fn unfinished(&self) -> usize {
        match self {
            Self::Outside(skipped) => *skipped,
            Self::Inside(held) => held.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(chunks: &[&[u8]]) -> (Vec<String>, usize) {
        let mut framer = Framer::default();
        let mut all = Vec::new();
        for chunk in chunks {
            framer.push(chunk, |found| {
                all.push(match found {
                    Found::Frame(frame) => String::from_utf8_lossy(frame).into_owned(),
                    Found::Skipped(count) => format!("{count} skipped"),
                });
            });
        }
        (all, framer.unfinished())
    }

    /// Noise before the first flag is counted; frames may share a flag; what is unfinished stays.
    #[test]
    fn stream() {
        assert_eq!(
            cut(&[b"noise~one~~two~three~rest"]),
            (vec!["5 skipped".into(), "one".into(), "two".into(), "three".into()], 4)
        );
        assert_eq!(cut(&[b"noise", b" only"]), (vec![], 10));
    }

    /// A stretch over the limit is skipped, and the frame after it is found, in one chunk or in many.
    #[test]
    fn frame_max() {
        let longest = [b"~".as_slice(), &[b'x'; FRAME_MAX], b"~"].concat();
        assert_eq!(cut(&[&longest]).0[0].len(), FRAME_MAX);

        let long = [b"~".as_slice(), &[b'x'; FRAME_MAX + 1], b"~next~"].concat();
        let found = vec!["4097 skipped".to_owned(), "next".to_owned()];
        assert_eq!(cut(&[&long]), (found.clone(), 0));
        assert_eq!(cut(&long.chunks(100).collect::<Vec<_>>()), (found, 0));
    }
}
