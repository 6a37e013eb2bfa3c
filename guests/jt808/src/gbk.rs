//! GBK, which the standard has for every text. Pure.
//!
//! A whole table would have 47 KiB, and every connection a copy of it. But of GBK's 21,003 Chinese characters 14,139 are those
//! that GB 2312 lacks, in the order of Unicode; so a table of GB 2312 and of 190 others is enough (17 KiB). `scripts/gbk-table`
//! writes both; the tests compare them with what browsers do.

const GB2312: &[u8; 87 * COLUMNS * 2] = include_bytes!("gbk/gb2312.bin");
const OTHERS: &[u8] = include_bytes!("gbk/others.bin");

/// Columns of a row of GB 2312.
const COLUMNS: usize = 94;
const FIRST_IDEOGRAPH: u16 = 0x4e00;
/// U+4E00 to U+9FA5.
const IDEOGRAPHS: usize = 0x9fa5 - 0x4e00 + 1;
/// Trails 0x40 to 0x7E and 0x80 to 0xFE, and those of them up to 0xA0.
const TRAILS: usize = 190;
const LOW_TRAILS: usize = 96;

/// The text; none for bytes that are not GBK.
#[must_use]
pub fn decode(bytes: &[u8]) -> Option<String> {
    let mut text = String::with_capacity(bytes.len());
    let mut rest = bytes;
    loop {
        rest = match rest {
            [] => return Some(text),
            [ascii @ ..0x80, rest @ ..] => {
                text.push(char::from(*ascii));
                rest
            }
            [0x80, rest @ ..] => {
                text.push('€');
                rest
            }
            [lead, trail, rest @ ..] => {
                text.push(char::from_u32(character(*lead, *trail)?.into())?);
                rest
            }
            [_] => return None,
        }
    }
}

/// The bytes of a text; none when GBK lacks one of its characters.
#[must_use]
pub fn encode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\0'..='\x7f' => bytes.push(character as u8),
            '€' => bytes.push(0x80),
            other => bytes.extend(code(u16::try_from(u32::from(other)).ok()?)?),
        }
    }
    Some(bytes)
}

fn character(lead: u8, trail: u8) -> Option<u16> {
    let (row, low) = (usize::from(lead), usize::from(trail));
    if !matches!(lead, 0x81..=0xfe) || !matches!(trail, 0x40..=0x7e | 0x80..=0xfe) {
        return None;
    }
    if matches!(lead, 0xa1..=0xf7) && trail >= 0xa1 {
        return pairs(GB2312).nth((row - 0xa1) * COLUMNS + (low - 0xa1)).filter(|found| *found != 0);
    }
    let code = u16::from_be_bytes([lead, trail]);
    let mut others = OTHERS.as_chunks::<4>().0.iter();
    if let Some([_, _, high, low]) = others.find(|[high, low, ..]| u16::from_be_bytes([*high, *low]) == code) {
        return Some(u16::from_be_bytes([*high, *low]));
    }
    let column = low - if trail < 0x7f { 0x40 } else { 0x41 };
    let rank = match lead {
        0x81..=0xa0 => (row - 0x81) * TRAILS + column,
        0xaa..=0xfe if trail <= 0xa0 => 32 * TRAILS + (row - 0xaa) * LOW_TRAILS + column,
        _ => return None,
    };
    let lacking = Lacking::new();
    (0..IDEOGRAPHS).filter(|at| lacking.has(*at)).nth(rank).map(|at| FIRST_IDEOGRAPH + at as u16)
}

fn code(character: u16) -> Option<[u8; 2]> {
    if let Some(at) = pairs(GB2312).position(|found| found == character) {
        return Some([(0xa1 + at / COLUMNS) as u8, (0xa1 + at % COLUMNS) as u8]);
    }
    let mut others = OTHERS.as_chunks::<4>().0.iter();
    if let Some([high, low, ..]) = others.find(|[_, _, high, low]| u16::from_be_bytes([*high, *low]) == character) {
        return Some([*high, *low]);
    }
    let at = usize::from(character.checked_sub(FIRST_IDEOGRAPH)?);
    let lacking = Lacking::new();
    if at >= IDEOGRAPHS || !lacking.has(at) {
        return None;
    }
    let rank = (0..at).filter(|at| lacking.has(*at)).count();
    let (lead, column) = if rank < 32 * TRAILS {
        (0x81 + rank / TRAILS, rank % TRAILS)
    } else {
        let rank = rank - 32 * TRAILS;
        (0xaa + rank / LOW_TRAILS, rank % LOW_TRAILS)
    };
    Some([lead as u8, (column + if column < 0x3f { 0x40 } else { 0x41 }) as u8])
}

fn pairs(table: &[u8]) -> impl Iterator<Item = u16> {
    table.as_chunks::<2>().0.iter().map(|pair| u16::from_be_bytes(*pair))
}

/// Which of the Chinese characters GB 2312 lacks. Made when it is needed: as a constant it would be a part of every instance.
struct Lacking([u8; IDEOGRAPHS.div_ceil(8)]);

impl Lacking {
    fn new() -> Self {
        let mut bits = [0xff; IDEOGRAPHS.div_ceil(8)];
        for character in pairs(GB2312) {
            let at = usize::from(character.wrapping_sub(FIRST_IDEOGRAPH));
            if let Some(byte) = bits.get_mut(at / 8) {
                *byte &= !(1 << (at % 8));
            }
        }
        Self(bits)
    }

    fn has(&self, at: usize) -> bool {
        self.0.get(at / 8).is_some_and(|byte| byte >> (at % 8) & 1 == 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every code of two bytes is what a browser reads, and is written as it was. Left out: characters of private use, and
    /// a3 a0, which browsers take for a space.
    #[test]
    fn every_code() {
        let (mut known, mut differing) = (0, Vec::new());
        for lead in 0x81..=0xfe {
            for trail in (0x40..=0x7e).chain(0x80..=0xfe) {
                let bytes = [lead, trail];
                let (expected, _, wrong) = encoding_rs::GBK.decode(&bytes);
                let private = expected.chars().any(|character| matches!(character, '\u{e000}'..='\u{f8ff}'));
                let Some(text) = decode(&bytes) else {
                    if !(wrong || private || bytes == [0xa3, 0xa0]) {
                        differing.push(format!("{bytes:02x?} is {expected}"));
                    }
                    continue;
                };
                if text != expected {
                    differing.push(format!("{bytes:02x?} is {expected}, found {text}"));
                }
                let written = if text == "€" { &[0x80][..] } else { &bytes };
                assert_eq!(encode(&text).as_deref(), Some(written), "{text}");
                known += 1;
            }
        }
        assert_eq!(differing, [""; 0]);
        assert!(known > 21_600, "{known}");
    }

    /// Texts, and what is none.
    #[test]
    fn texts() {
        assert_eq!(decode(b"\xb2\xe2A1234").as_deref(), Some("测A1234"));
        assert_eq!(encode("鉴权码A1").as_deref(), Some(&b"\xbc\xf8\xc8\xa8\xc2\xeb\x41\x31"[..]));
        assert_eq!(decode(b""), Some(String::new()));
        for wrong in [&b"\xff"[..], b"A\xb2", b"\xb2\x30", b"\xb2\x7f"] {
            assert_eq!(decode(wrong), None, "{wrong:02x?}");
        }
        assert_eq!(encode("😀"), None);
    }
}
