//! What only frames have: the width of a length, the bytes of a delimiter.

use super::ValueType;
use crate::config::diagnostics::ErrorReported;
use crate::config::fault::Fault;
use crate::config::read::Item;
use crate::framing::{DELIMITER_BYTES_MAX, Width};

/// How many bytes a length has.
#[derive(Debug)]
pub(in crate::config) struct WidthForm;

impl ValueType for WidthForm {
    type Value = Width;

    fn expected(&self) -> String {
        "a number of bytes".to_owned()
    }

    fn name(&self) -> String {
        "integer".to_owned()
    }

    fn range(&self) -> String {
        "1, 2, 3, 4 or 8".to_owned()
    }

    fn show(&self, value: &Width) -> String {
        (*value as u8).to_string()
    }

    fn read(&self, item: &Item<'_>) -> Result<Width, ErrorReported> {
        let integer = item.value().as_integer().ok_or_else(|| item.wrong_type(self.expected()))?;
        let known = [Width::One, Width::Two, Width::Three, Width::Four, Width::Eight];
        let written = u8::from_str_radix(integer.as_str(), integer.radix());
        known.into_iter().find(|width| written == Ok(*width as u8)).ok_or_else(|| {
            item.fault(Fault::OutOfRange { found: super::cut(integer.to_string()), range: self.range() })
        })
    }
}

/// Bytes at the end of a frame.
///
/// TOML's own escapes are characters, and a character over 7F is several bytes; so the text is ASCII, and the escapes
/// that stand for bytes are read here.
#[derive(Debug)]
pub(in crate::config) struct DelimiterForm;

impl ValueType for DelimiterForm {
    type Value = Box<[u8]>;

    fn expected(&self) -> String {
        r"ASCII text with \r, \n, \t, \\ or \xHH, such as '\r\n'".to_owned()
    }

    fn name(&self) -> String {
        "string".to_owned()
    }

    fn range(&self) -> String {
        format!("1..={DELIMITER_BYTES_MAX} bytes")
    }

    fn show(&self, value: &Box<[u8]>) -> String {
        let escaped = value.iter().map(|byte| match byte {
            b'\'' | b'\\' => format!("\\x{byte:02x}"),
            b' '..=b'~' => char::from(*byte).to_string(),
            _ => format!("\\x{byte:02x}"),
        });
        format!("'{}'", escaped.collect::<String>())
    }

    fn read(&self, item: &Item<'_>) -> Result<Box<[u8]>, ErrorReported> {
        let text = item.text(&self.expected())?;
        let malformed = || Fault::Malformed { found: text.to_owned(), expected: self.expected() };
        let bytes = unescaped(text).ok_or_else(|| item.fault(malformed()))?;
        if (1..=DELIMITER_BYTES_MAX).contains(&bytes.len()) {
            Ok(bytes.into())
        } else {
            Err(item.fault(Fault::Length { bytes: bytes.len(), range: format!("1..={DELIMITER_BYTES_MAX}") }))
        }
    }
}

/// The bytes that a text stands for.
fn unescaped(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        bytes.push(match char {
            '\\' => match chars.next()? {
                'r' => b'\r',
                'n' => b'\n',
                't' => b'\t',
                '\\' => b'\\',
                'x' => {
                    let digits = [chars.next()?, chars.next()?].map(|digit| digit.to_digit(16));
                    let [Some(high), Some(low)] = digits else { return None };
                    (high << 4 | low) as u8
                }
                _ => return None,
            },
            _ => u8::try_from(char).ok().filter(u8::is_ascii)?,
        });
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delimiters_are_bytes() {
        for (text, bytes) in [
            (r"\r\n", &b"\r\n"[..]),
            ("\r\n", b"\r\n"),
            ("##", b"##"),
            (r"\xfF\x00", b"\xff\x00"),
            (r"\\x\t", b"\\x\t"),
            ("", b""),
        ] {
            assert_eq!(unescaped(text).as_deref(), Some(bytes), "{text:?}");
        }
        for text in ["ÿ", r"\", r"\x", r"\x0", r"\x0g", r"\x+1", r"\q", "\\xÿÿ"] {
            assert_eq!(unescaped(text), None, "{text:?}");
        }
    }

    #[test]
    fn what_is_shown_is_read_back() {
        let all: Box<[u8]> = (0..=255).collect();
        let shown = DelimiterForm.show(&all);
        assert_eq!(unescaped(shown.trim_matches('\'')).as_deref(), Some(&*all));
    }
}
