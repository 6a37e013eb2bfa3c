//! Dates of the Gregorian calendar and seconds since the Unix epoch, and back. Pure; there is no clock here.

const DAY_S: i64 = 86_400;

/// Year, month and day, the latter two from 1.
pub type Date = (i64, i64, i64);
/// Hour, minute and second.
pub type TimeOfDay = (i64, i64, i64);

/// Seconds since the Unix epoch; none for a day or a time of day that does not exist.
#[must_use]
pub fn epoch_s((year, month, day): Date, (hour, minute, second): TimeOfDay) -> Option<i64> {
    if !(1..=12).contains(&month)
        || !(0..24).contains(&hour)
        || !(0..60).contains(&minute)
        || !(0..60).contains(&second)
    {
        return None;
    }
    let days = days(year, month, day);
    // A day that does not exist is another one: the 31st of June is the 1st of July.
    (date(days) == (year, month, day)).then_some(days * DAY_S + hour * 3600 + minute * 60 + second)
}

/// Date and time of day in UTC.
#[must_use]
pub fn civil(epoch_s: i64) -> (Date, TimeOfDay) {
    let second = epoch_s.rem_euclid(DAY_S);
    (date(epoch_s.div_euclid(DAY_S)), (second / 3600, second / 60 % 60, second % 60))
}

/// As RFC 3339 in UTC, for example `2025-11-25T03:41:14Z`.
#[must_use]
pub fn rfc3339(epoch_s: i64) -> String {
    let ((year, month, day), (hour, minute, second)) = civil(epoch_s);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Days from 1970-01-01 to a date of the Gregorian calendar.
///
/// Years are counted from March, so that the leap day is the last day of its year.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let month = (month + 9) % 12;
    let before_month = (153 * month + 2) / 5;
    365 * year + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + before_month + day - 1 - 719_468
}

/// The date that lies `days` after 1970-01-01: year, month, day.
fn date(days: i64) -> (i64, i64, i64) {
    const DAYS_400: i64 = 146_097;
    let days = days + 719_468;
    let (cycle, day) = (days.div_euclid(DAYS_400), days.rem_euclid(DAYS_400));
    let year = (day - day / 1460 + day / 36_524 - day / (DAYS_400 - 1)) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = (month + 2) % 12 + 1;
    (400 * cycle + year + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Days that exist come back, and others are none.
    #[test]
    fn days_that_exist() {
        assert_eq!(epoch_s((1970, 1, 1), (0, 0, 0)), Some(0));
        assert_eq!(epoch_s((2024, 2, 29), (23, 59, 59)).map(rfc3339).as_deref(), Some("2024-02-29T23:59:59Z"));
        for wrong in [(2025, 2, 29), (2025, 13, 1), (2025, 0, 1), (2025, 4, 31), (2025, 1, 0)] {
            assert_eq!(epoch_s(wrong, (0, 0, 0)), None, "{wrong:?}");
        }
        assert_eq!(epoch_s((2025, 1, 1), (24, 0, 0)), None);
    }
}
