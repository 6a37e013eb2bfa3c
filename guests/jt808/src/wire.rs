//! A frame on the wire: flags, escapes and checksum. Pure.
//!
//! JT/T 808 section 4.4.2: between two 0x7E, every 0x7E is written as 0x7D 0x02 and every 0x7D as 0x7D 0x01; the last byte
//! is the exclusive-or of all before it.

use std::borrow::Cow;

use polygate_guest::framing::{Escapes, Flagged};

use crate::malformed::Malformed;

/// Stands before and after every frame, and nowhere else.
pub const FLAG: u8 = 0x7e;

/// The most bytes between two flags, as they arrive.
///
/// The standard needs at most 2,090: 21 bytes of header, 1,023 of body and a checksum, all of them escaped. The rest is for
/// terminals that do not keep to 1,023.
pub const FRAME_MAX: usize = 4096;

/// How the stream is cut.
pub const FRAMES: Flagged = Flagged { flag: FLAG, max: FRAME_MAX };

/// Undoes the escapes of `raw`, the bytes between two flags, checks the checksum, and gives the rest.
///
/// # Errors
///
/// [`Malformed::Escape`], [`Malformed::Checksum`], or [`Malformed::Short`] for no bytes at all.
pub fn open(raw: &[u8]) -> Result<Cow<'_, [u8]>, Malformed> {
    let plain = Escapes::JT808.read(raw).map_err(|wrong| Malformed::Escape(wrong.found))?;
    let (&found, content) = plain.split_last().ok_or(Malformed::Short { field: "frame", needed: 1, found: 0 })?;
    let computed = checksum(content);
    if computed != found {
        return Err(Malformed::Checksum { computed, found });
    }
    Ok(match plain {
        Cow::Borrowed(plain) => Cow::Borrowed(plain.split_last().map_or(plain, |(_, content)| content)),
        Cow::Owned(mut plain) => {
            plain.pop();
            Cow::Owned(plain)
        }
    })
}

/// The frame for `content`, flags included.
#[must_use]
pub fn seal(content: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(content.len() + 8);
    frame.push(FLAG);
    Escapes::JT808.write(content, &mut frame);
    Escapes::JT808.write(&[checksum(content)], &mut frame);
    frame.push(FLAG);
    frame
}

fn checksum(content: &[u8]) -> u8 {
    content.iter().fold(0, |sum, byte| sum ^ byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The standard's own example: 30 7e 08 7d 55 becomes 30 7d 02 08 7d 01 55.
    #[test]
    fn escapes_of_the_standard() {
        let content = [0x30, 0x7e, 0x08, 0x7d, 0x55];
        let sum = checksum(&content);
        assert_eq!(seal(&content), [0x7e, 0x30, 0x7d, 0x02, 0x08, 0x7d, 0x01, 0x55, sum, 0x7e]);
    }

    /// Each fault has its own words.
    #[test]
    fn faults() {
        let fault = |raw: &[u8]| open(raw).unwrap_err().to_string();
        assert_eq!(fault(&[1, 2, 4]), "expected checksum 03, found 04");
        assert_eq!(fault(&[1, 0x7d, 3]), "expected 01 or 02 after 7d, found 03");
        assert_eq!(fault(&[1, 0x7d]), "expected 01 or 02 after 7d, found the end of the frame");
        assert_eq!(fault(&[]), "expected 1 bytes of frame, found 0");
    }

    /// More bytes than the limit between two flags are skipped, and the frame after it is found, in one chunk or in many.
    #[test]
    fn frame_max() {
        use polygate_guest::framing::{Between, Found};

        let found = |chunks: &[&[u8]]| {
            let (mut between, mut lengths) = (Between::default(), Vec::new());
            for chunk in chunks {
                let mut bytes = *chunk;
                while let Some(found) = FRAMES.next(&mut between, &mut bytes) {
                    lengths.push(match found {
                        Found::Frame(frame) => Ok(frame.len()),
                        Found::Skipped(count) => Err(count),
                    });
                }
            }
            lengths
        };
        let stream = |length| [&[FLAG][..], &vec![b'x'; length], &[FLAG], b"next", &[FLAG]].concat();
        assert_eq!(found(&[&stream(FRAME_MAX)]), [Ok(FRAME_MAX), Ok(4)]);
        let long = stream(FRAME_MAX + 1);
        assert_eq!(found(&[&long]), [Err(FRAME_MAX + 1), Ok(4)]);
        assert_eq!(found(&long.chunks(100).collect::<Vec<_>>()), [Err(FRAME_MAX + 1), Ok(4)]);
    }
}
