//! Why bytes are not what the standard says.

use core::fmt;

/// What was expected, and what came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// A field reaches over the end.
    Short {
        /// The field's name.
        field: &'static str,
        /// Its bytes.
        needed: usize,
        /// The bytes that were left.
        found: usize,
    },
    /// The byte after 0x7D; 0x01 and 0x02 are the only ones. None: the frame ended there.
    Escape(Option<u8>),
    /// The exclusive-or of all bytes before the last, and the last.
    Checksum {
        /// What the bytes come to.
        computed: u8,
        /// What the frame says.
        found: u8,
    },
    /// A sub-package outside of `1..=total`.
    Part {
        /// The number it has.
        index: u16,
        /// The number of them.
        total: u16,
    },
    /// The length in the header, and the length of the body.
    Length {
        /// What the header says.
        declared: usize,
        /// What there is.
        found: usize,
    },
    /// Six bytes that are no time in binary-coded decimals.
    Time([u8; 6]),
    /// Over 90 degrees, in millionths.
    Latitude(u32),
    /// Over 180 degrees, in millionths.
    Longitude(u32),
    /// Bytes after the last field.
    Leftover(usize),
    /// An authentication code that is not GBK, or none at all.
    Code,
    /// A message that nothing here decodes.
    Unknown,
}

impl fmt::Display for Malformed {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short { field, needed, found } => write!(out, "expected {needed} bytes of {field}, found {found}"),
            Self::Escape(Some(found)) => write!(out, "expected 01 or 02 after 7d, found {found:02x}"),
            Self::Escape(None) => write!(out, "expected 01 or 02 after 7d, found the end of the frame"),
            Self::Checksum { computed, found } => write!(out, "expected checksum {computed:02x}, found {found:02x}"),
            Self::Part { index, total } => write!(out, "expected a sub-package of 1 to {total}, found {index}"),
            Self::Length { declared, found } => write!(out, "expected {declared} bytes of body, found {found}"),
            Self::Time(bytes) => {
                write!(out, "expected a time as YYMMDDhhmmss, found ")?;
                bytes.iter().try_for_each(|byte| write!(out, "{byte:02x}"))
            }
            Self::Latitude(found) => write!(out, "expected a latitude of at most 90000000, found {found}"),
            Self::Longitude(found) => write!(out, "expected a longitude of at most 180000000, found {found}"),
            Self::Leftover(found) => write!(out, "expected the end, found {found} more bytes"),
            Self::Code => write!(out, "expected an authentication code in GBK"),
            Self::Unknown => write!(out, "expected a message of the standard, found another one"),
        }
    }
}

impl std::error::Error for Malformed {}
