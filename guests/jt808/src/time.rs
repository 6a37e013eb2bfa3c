//! Times as terminals write them (YYMMDDhhmmss in binary-coded decimals) and as we do (RFC 3339, UTC). Pure.

use polygate_guest::calendar;
pub use polygate_guest::calendar::rfc3339;

use crate::malformed::Malformed;

#[cfg(test)]
const DAY_S: i64 = 86_400;

/// Seconds since the Unix epoch of six BCD bytes, which are `offset_min` minutes ahead of UTC. Years are 2000 to 2099.
///
/// # Errors
///
/// [`Malformed::Time`] for digits over 9, and for days and hours that do not exist.
pub fn from_bcd(bcd: [u8; 6], offset_min: i16) -> Result<i64, Malformed> {
    let malformed = Malformed::Time(bcd);
    let number = |byte: u8| {
        let (tens, ones) = (byte >> 4, byte & 0x0f);
        if tens > 9 || ones > 9 { Err(malformed) } else { Ok(i64::from(tens * 10 + ones)) }
    };
    let [year, month, day, hour, minute, second] = bcd;
    let (year, month, day) = (2000 + number(year)?, number(month)?, number(day)?);
    let (hour, minute, second) = (number(hour)?, number(minute)?, number(second)?);
    let epoch_s = calendar::epoch_s((year, month, day), (hour, minute, second)).ok_or(malformed)?;
    Ok(epoch_s - i64::from(offset_min) * 60)
}

/// Six BCD bytes of a time in UTC; of the year only the last two digits.
#[must_use]
pub fn to_bcd(epoch_s: i64) -> [u8; 6] {
    let ((year, month, day), (hour, minute, second)) = calendar::civil(epoch_s);
    // Each number is below 100, so both digits fit.
    [year.rem_euclid(100), month, day, hour, minute, second].map(|n| (n / 10 * 16 + n % 10) as u8)
}

/// The year in two bytes, then month, day, hour, minute and second, of a time in UTC.
#[must_use]
pub fn to_numbers(epoch_s: i64) -> [u8; 7] {
    let ((year, month, day), (hour, minute, second)) = calendar::civil(epoch_s);
    let [high, low] = (year as u16).to_be_bytes();
    [high, low, month as u8, day as u8, hour as u8, minute as u8, second as u8]
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHINA: i16 = 8 * 60;

    /// A time in China is eight hours earlier in UTC, also over the turn of a year.
    #[test]
    fn offsets() {
        let shown = |bcd, offset| rfc3339(from_bcd(bcd, offset).unwrap());
        assert_eq!(shown([0x25, 0x11, 0x25, 0x11, 0x41, 0x14], CHINA), "2025-11-25T03:41:14Z");
        assert_eq!(shown([0x25, 0x01, 0x01, 0x07, 0x59, 0x59], CHINA), "2024-12-31T23:59:59Z");
        assert_eq!(shown([0x24, 0x02, 0x29, 0x20, 0x00, 0x00], -5 * 60), "2024-03-01T01:00:00Z");
    }

    /// What no clock shows is refused.
    #[test]
    fn malformed() {
        for bcd in [
            [0; 6],
            [0x25, 0x02, 0x29, 0, 0, 0],
            [0x25, 0x13, 0x01, 0, 0, 0],
            [0x25, 0x12, 0x01, 0x24, 0, 0],
            [0x25, 0x12, 0x01, 0, 0x60, 0],
            [0x25, 0x12, 0x01, 0, 0, 0x60],
            [0x2a, 0x12, 0x01, 0, 0, 0],
        ] {
            assert_eq!(from_bcd(bcd, 0), Err(Malformed::Time(bcd)));
        }
        assert_eq!(
            Malformed::Time([0x2a, 0, 0, 0, 0, 1]).to_string(),
            "expected a time as YYMMDDhhmmss, found 2a0000000001"
        );
    }

    /// Every day of the century, and back.
    #[test]
    fn every_day() {
        let mut midnight = from_bcd([0x00, 0x01, 0x01, 0, 0, 0], 0).unwrap();
        assert_eq!(midnight, 946_684_800);
        for _ in 0..36_525 {
            assert_eq!(from_bcd(to_bcd(midnight + 5), 0), Ok(midnight + 5));
            midnight += DAY_S;
        }
        assert_eq!(rfc3339(midnight), "2100-01-01T00:00:00Z");
    }
}
