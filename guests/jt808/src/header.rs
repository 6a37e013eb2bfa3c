//! The header of a message, in the forms of 2013 and 2019. Pure.
//!
//! ```text
//! 2013:  id(2) properties(2)            phone(6 BCD)  serial(2)  [total(2) index(2)]
//! 2019:  id(2) properties(2) version(1) phone(10 BCD) serial(2)  [total(2) index(2)]
//! properties: bits 0-9 length of the body, 10-12 encryption, 13 sub-packages, 14 set in the form of 2019
//! ```

use core::fmt::Write;

use serde::{Deserialize, Serialize};

use crate::malformed::Malformed;
use crate::reader::Reader;

/// The longest body of one frame, in bytes: what ten bits can say.
pub const BODY_MAX: usize = 0x3ff;

const SUB_PACKAGES: u16 = 1 << 13;
const VERSIONED: u16 = 1 << 14;

/// Which form of the header a terminal uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Version {
    /// JT/T 808-2013, and 2011 before it.
    V2013,
    /// JT/T 808-2019, with the version that the terminal counts (1 is the first).
    V2019(u8),
}

impl Version {
    /// The year of the standard.
    #[must_use]
    pub const fn year(self) -> &'static str {
        match self {
            Self::V2013 => "2013",
            Self::V2019(_) => "2019",
        }
    }
}

/// Whom a frame comes from or goes to, in the form that the terminal itself uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// The form of its header.
    pub version: Version,
    /// The phone number in binary-coded decimals; in the form of 2013 only the last six bytes are used.
    bcd: [u8; 10],
}

impl Address {
    /// The terminal's number as the topics name it: its digits without leading zeros, and `0` for no other digits.
    ///
    /// The standard pads a number with zeros on the left, to 12 digits in 2013 and to 20 in 2019: without them a terminal
    /// is the same under both. Some terminals put other things than decimal digits there: they show as `a` to `f`.
    #[must_use]
    pub fn phone(&self) -> String {
        let mut digits = String::with_capacity(20);
        for byte in self.bcd {
            // Writing to a String cannot fail.
            let _ = write!(digits, "{byte:02x}");
        }
        let significant = digits.trim_start_matches('0');
        if significant.is_empty() { "0".to_owned() } else { significant.to_owned() }
    }

    /// Writes the header of a frame for this terminal, of `total` sub-packages the `index`th if there are several.
    ///
    /// `body_length` is in bytes, at most [`BODY_MAX`].
    pub(crate) fn write_header(&self, frame: &mut Vec<u8>, id: u16, body_length: u16, serial: u16, part: Option<Part>) {
        let versioned = match self.version {
            Version::V2013 => 0,
            Version::V2019(_) => VERSIONED,
        };
        let properties = body_length | versioned | if part.is_some() { SUB_PACKAGES } else { 0 };
        frame.extend(id.to_be_bytes());
        frame.extend(properties.to_be_bytes());
        match self.version {
            Version::V2013 => frame.extend(self.bcd.iter().skip(4)),
            Version::V2019(version) => {
                frame.push(version);
                frame.extend(self.bcd);
            }
        }
        frame.extend(serial.to_be_bytes());
        if let Some(Part { total, index }) = part {
            frame.extend(total.to_be_bytes());
            frame.extend(index.to_be_bytes());
        }
    }
}

/// Which sub-package of its message a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// How many there are.
    pub total: u16,
    /// Which one this is, from 1.
    pub index: u16,
}

/// What stands before the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The message's id.
    pub id: u16,
    /// The length of the body that the header promises, in bytes.
    pub body_length: usize,
    /// Bits 10 to 12 of the properties: 0 plain, 1 RSA, others not defined.
    pub encryption: u8,
    /// The terminal.
    pub address: Address,
    /// The terminal's count of its frames, modulo 65,536.
    pub serial: u16,
    /// None for a message in one frame.
    pub part: Option<Part>,
}

impl Header {
    /// Takes the header off `content`, a frame without its checksum, and gives the body beside it.
    ///
    /// Bit 14 says which form the header has; but before 2019 it was reserved, and some terminals set it. So the form counts
    /// with which the body is as long as the header says, and the bit where that is neither or both.
    ///
    /// # Errors
    ///
    /// [`Malformed::Short`] for a header that is cut off, [`Malformed::Part`] for a sub-package that cannot be.
    pub fn parse(content: &[u8]) -> Result<(Self, &[u8]), Malformed> {
        let versioned = content.get(2).is_some_and(|high| u16::from(*high) << 8 & VERSIONED != 0);
        let fits = |(header, body): &(Self, &[u8])| header.body_length == body.len();
        let by_bit = Self::parse_as(content, versioned);
        if by_bit.as_ref().is_ok_and(fits) {
            return by_bit;
        }
        match Self::parse_as(content, !versioned) {
            Ok(other) if fits(&other) && other.0.is_plausible() => Ok(other),
            _ => by_bit,
        }
    }

    /// A header of 2019 has a version that has been counted to, and a number of decimal digits.
    fn is_plausible(&self) -> bool {
        let decimal = |byte: &u8| byte >> 4 <= 9 && byte & 0x0f <= 9;
        match self.address.version {
            Version::V2013 => true,
            Version::V2019(version) => (1..=9).contains(&version) && self.address.bcd.iter().all(decimal),
        }
    }

    fn parse_as(content: &[u8], versioned: bool) -> Result<(Self, &[u8]), Malformed> {
        let mut reader = Reader(content);
        let id = reader.u16("message id")?;
        let properties = reader.u16("properties")?;
        let mut bcd = [0; 10];
        let version = if !versioned {
            let phone: [u8; 6] = reader.array("phone")?;
            bcd.iter_mut().skip(4).zip(phone).for_each(|(to, from)| *to = from);
            Version::V2013
        } else {
            let version = reader.u8("version")?;
            bcd = reader.array("phone")?;
            Version::V2019(version)
        };
        let serial = reader.u16("serial")?;
        let part = if properties & SUB_PACKAGES == 0 {
            None
        } else {
            let (total, index) = (reader.u16("sub-packages")?, reader.u16("sub-packages")?);
            if index == 0 || index > total {
                return Err(Malformed::Part { index, total });
            }
            Some(Part { total, index })
        };
        let header = Self {
            id,
            body_length: usize::from(properties) & BODY_MAX,
            encryption: (properties >> 10 & 0b111) as u8,
            address: Address { version, bcd },
            serial,
            part,
        };
        Ok((header, reader.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(address: Address, part: Option<Part>) -> Vec<u8> {
        let mut frame = Vec::new();
        address.write_header(&mut frame, 0x8001, 5, 7, part);
        frame.extend([1, 2, 3, 4, 5]);
        frame
    }

    /// Both forms are read as they were written, with and without sub-packages.
    #[test]
    fn both_forms() {
        let bcd = [0, 0, 0, 0, 0x01, 0x38, 0x00, 0x13, 0x80, 0x00];
        for version in [Version::V2013, Version::V2019(1)] {
            for part in [None, Some(Part { total: 3, index: 2 })] {
                let address = Address { version, bcd };
                let frame = written(address, part);
                let (header, body) = Header::parse(&frame).unwrap();
                let expected = Header { id: 0x8001, body_length: 5, encryption: 0, address, serial: 7, part };
                assert_eq!((header, body), (expected, [1, 2, 3, 4, 5].as_slice()));
                assert_eq!(header.address.phone(), "13800138000");
                for length in 0..frame.len() - 5 {
                    assert!(Header::parse(&frame[..length]).is_err());
                }
            }
        }
    }

    /// The length decides between the forms, not the bit.
    #[test]
    fn bit_14() {
        let bcd = [0, 0, 0, 0, 0x01, 0x38, 0x00, 0x13, 0x80, 0x00];
        for version in [Version::V2013, Version::V2019(1)] {
            for part in [None, Some(Part { total: 3, index: 2 })] {
                let mut frame = written(Address { version, bcd }, part);
                frame[2] ^= 0x40;
                let (header, body) = Header::parse(&frame).unwrap();
                assert_eq!((header.address.version, body.len()), (version, 5));
                if part.is_none() {
                    // Where neither fits, the bit counts.
                    frame.push(0);
                    assert_ne!(Header::parse(&frame).unwrap().0.address.version, version);
                }
            }
        }
    }

    /// Numbers that are no phone numbers are names all the same.
    #[test]
    fn phones() {
        let phone = |bcd| Address { version: Version::V2013, bcd }.phone();
        assert_eq!(phone([0; 10]), "0");
        assert_eq!(phone([0, 0, 0, 0, 0x4e, 0xb6, 0xfb, 0x4a, 0xd6, 0x28]), "4eb6fb4ad628");
        assert_eq!(phone([0x86; 10]), "86868686868686868686");
    }

    /// A sub-package that cannot be is refused.
    #[test]
    fn impossible_parts() {
        let address = Address { version: Version::V2013, bcd: [0; 10] };
        for (total, index) in [(0, 0), (3, 0), (3, 4)] {
            let frame = written(address, Some(Part { total, index }));
            assert_eq!(Header::parse(&frame), Err(Malformed::Part { index, total }));
        }
    }
}
