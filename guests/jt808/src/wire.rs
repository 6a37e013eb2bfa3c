//! The inside of a frame on the wire: escapes and checksum. Pure.
//!
//! JT/T 808 section 4.4.2: between two 0x7E, every 0x7E is written as 0x7D 0x02 and every 0x7D as 0x7D 0x01; the last byte
//! is the exclusive-or of all before it.

use std::borrow::Cow;

use crate::malformed::Malformed;

/// Stands before and after every frame, and nowhere else.
pub const FLAG: u8 = 0x7e;
const ESCAPE: u8 = 0x7d;

/// Undoes the escapes of `raw`, the bytes between two flags, checks the checksum, and gives the rest.
///
/// # Errors
///
/// [`Malformed::Escape`], [`Malformed::Checksum`], or [`Malformed::Short`] for no bytes at all.
pub fn open(raw: &[u8]) -> Result<Cow<'_, [u8]>, Malformed> {
    let plain = unescape(raw)?;
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
    for &byte in content.iter().chain([&checksum(content)]) {
        match byte {
            FLAG => frame.extend([ESCAPE, 2]),
            ESCAPE => frame.extend([ESCAPE, 1]),
            plain => frame.push(plain),
        }
    }
    frame.push(FLAG);
    frame
}

fn unescape(raw: &[u8]) -> Result<Cow<'_, [u8]>, Malformed> {
    if !raw.contains(&ESCAPE) {
        return Ok(Cow::Borrowed(raw));
    }
    let mut plain = Vec::with_capacity(raw.len());
    let mut bytes = raw.iter();
    while let Some(&byte) = bytes.next() {
        plain.push(match byte {
            ESCAPE => match bytes.next() {
                Some(1) => ESCAPE,
                Some(2) => FLAG,
                other => return Err(Malformed::Escape(other.copied())),
            },
            other => other,
        });
    }
    Ok(Cow::Owned(plain))
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
}
