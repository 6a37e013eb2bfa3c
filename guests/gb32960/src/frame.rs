//! Frames of GB/T 32960.3-2016 on the wire. Pure.
//!
//! ```text
//! 23 23  command(1) response(1) VIN(17) encryption(1) length(2) data(length)  checksum(1)
//! ```
//!
//! The checksum is the exclusive-or of everything from the command to the end of the data.

/// The longest data that is taken, in bytes; the standard allows 65,531, a vehicle with 400 cells sends some 1,200.
pub const DATA_MAX: usize = 16 << 10;
const HEAD: usize = 24;
const VIN: usize = 17;

/// Response of a frame that asks for one.
pub const COMMAND: u8 = 0xfe;
/// Responses.
pub const SUCCESS: u8 = 1;
/// The platform refuses.
pub const FAILURE: u8 = 2;

/// A frame whose checksum holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What it is about.
    pub command: u8,
    /// [`COMMAND`], or the answer to one.
    pub response: u8,
    /// The vehicle, or the platform.
    pub vin: &'a [u8],
    /// 1: none.
    pub encryption: u8,
    /// The data.
    pub data: &'a [u8],
}

/// What stands at the beginning of a stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Found<'a> {
    /// A frame, and its bytes on the wire.
    Frame(Frame<'a>, usize),
    /// So many bytes are in no frame.
    Stray(usize),
    /// A frame with a wrong checksum, and its bytes.
    Corrupt(usize),
    /// More bytes will tell.
    Unfinished,
}

/// Looks at the beginning of `stream`.
#[must_use]
pub fn next(stream: &[u8]) -> Found<'_> {
    match stream {
        [] | [b'#'] => return Found::Unfinished,
        [b'#', b'#', ..] => {}
        _ => return Found::Stray(1),
    }
    // A command and a VIN are soon told from something else.
    let printable = stream.iter().skip(4).take(VIN).all(|byte| byte.is_ascii_graphic() || matches!(byte, 0 | b' '));
    let known = stream.get(2).is_none_or(|command| matches!(command, 1..=8 | 0x80..=0xfe));
    if !printable || !known {
        return Found::Stray(2);
    }
    let Some([high, low]) = stream.get(HEAD - 2..HEAD) else { return Found::Unfinished };
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    if length > DATA_MAX {
        return Found::Stray(2);
    }
    let Some(whole) = stream.get(..HEAD + length + 1) else { return Found::Unfinished };
    let (Some(summed), Some(sum)) = (whole.get(2..HEAD + length), whole.last()) else { return Found::Unfinished };
    if checksum(summed) != *sum {
        return Found::Corrupt(whole.len());
    }
    match whole {
        [_, _, command, response, rest @ ..] => {
            let (vin, rest) = rest.split_at(VIN);
            let [encryption, _, _, data @ .., _] = rest else { return Found::Stray(2) };
            Found::Frame(
                Frame { command: *command, response: *response, vin, encryption: *encryption, data },
                whole.len(),
            )
        }
        _ => Found::Stray(2),
    }
}

/// Puts data into a frame for that vehicle. `data` has at most 65,535 bytes; what is longer is cut off.
#[must_use]
pub fn seal(command: u8, response: u8, vin: &[u8], data: &[u8]) -> Vec<u8> {
    const PLAIN: u8 = 1;
    let data = data.get(..usize::from(u16::MAX)).unwrap_or(data);
    let mut frame = vec![b'#', b'#', command, response];
    frame.extend(vin);
    frame.push(PLAIN);
    frame.extend((data.len() as u16).to_be_bytes());
    frame.extend(data);
    frame.push(checksum(frame.get(2..).unwrap_or_default()));
    frame
}

fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum ^ byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was sealed is found, wherever it is cut, and a changed byte is told.
    #[test]
    fn there_and_back() {
        let vin = b"LTESTVIN000000001";
        let sealed = seal(7, COMMAND, vin, b"data");
        let frame = Frame { command: 7, response: COMMAND, vin, encryption: 1, data: b"data" };
        assert_eq!(next(&sealed), Found::Frame(frame, sealed.len()));
        for length in 0..sealed.len() {
            assert_eq!(next(&sealed[..length]), Found::Unfinished);
        }
        let mut wrong = sealed.clone();
        wrong[26] ^= 1;
        assert_eq!(next(&wrong), Found::Corrupt(sealed.len()));
        assert_eq!(next(b"##,imei:"), Found::Stray(2));
        assert_eq!(next(b"GET /"), Found::Stray(1));
    }
}
