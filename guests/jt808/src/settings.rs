//! The handler's `settings` table, read once for each connection.

use polygate_guest::{Adapter, Level};

use crate::gbk;

/// What the operator chose. Has no `Debug`: the authentication code is a secret.
pub struct Settings {
    /// `keepalive_s`: the connection ends after 1.5 times as much silence, in seconds.
    pub keepalive_s: u16,
    /// `implicit_authentication`: may a terminal begin without 0x0100 or 0x0102?
    pub implicit_authentication: bool,
    /// `registration`: is a terminal that registers accepted?
    pub registration: bool,
    /// `auth_code`: what a terminal is given when it registers, in GBK; none draws one.
    pub auth_code: Option<Vec<u8>>,
    /// `timezone`: how far the clocks of the terminals are ahead of UTC, in minutes.
    pub timezone_min: i16,
}

/// What holds without a table.
impl Default for Settings {
    fn default() -> Self {
        Self {
            keepalive_s: 180,
            implicit_authentication: true,
            registration: true,
            auth_code: None,
            timezone_min: 8 * 60,
        }
    }
}

impl Settings {
    /// The longest `auth_code`, in bytes of GBK: the form of 2019 counts it in one byte.
    pub const AUTH_CODE_MAX: usize = 255;

    /// Reads all settings; one that is malformed is logged, and its default is used.
    pub fn read(adapter: &mut dyn Adapter) -> Self {
        let allow = |text: &str| match text {
            "allow" => Some(true),
            "deny" => Some(false),
            _ => None,
        };
        let default = Self::default();
        Self {
            keepalive_s: read(adapter, "keepalive_s", "1 to 65535 seconds", default.keepalive_s, |text| {
                text.parse().ok().filter(|seconds| *seconds > 0)
            }),
            implicit_authentication: read(
                adapter,
                "implicit_authentication",
                "\"allow\" or \"deny\"",
                default.implicit_authentication,
                allow,
            ),
            registration: read(adapter, "registration", "\"allow\" or \"deny\"", default.registration, allow),
            // Its value must not reach the log, so it is not read like the others.
            auth_code: adapter.setting("auth_code").and_then(|code| {
                let code = gbk::encode(&code).filter(|code| (1..=Self::AUTH_CODE_MAX).contains(&code.len()));
                if code.is_none() {
                    adapter
                        .log(Level::Error, "setting auth_code: expected 1 to 255 bytes of GBK; drawing codes instead");
                }
                code
            }),
            timezone_min: read(adapter, "timezone", "a form like \"+08:00\", or \"Z\"", default.timezone_min, timezone),
        }
    }
}

fn read<T>(adapter: &mut dyn Adapter, name: &str, expected: &str, default: T, parse: impl Fn(&str) -> Option<T>) -> T {
    let Some(text) = adapter.setting(name) else { return default };
    parse(&text).unwrap_or_else(|| {
        adapter.log(Level::Error, &format!("setting {name}: expected {expected}, found {text:?}; using the default"));
        default
    })
}

/// Minutes ahead of UTC: `Z`, or a sign, two digits of hours to 14, a colon, two digits of minutes.
fn timezone(text: &str) -> Option<i16> {
    if text == "Z" {
        return Some(0);
    }
    let (sign, rest) = match text.as_bytes().first()? {
        b'+' => (1, text.get(1..)?),
        b'-' => (-1, text.get(1..)?),
        _ => return None,
    };
    let (hours, minutes) = rest.split_once(':')?;
    let number = |digits: &str| {
        let two = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_digit());
        two.then(|| digits.parse::<i16>().ok()).flatten()
    };
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    (hours <= 14 && minutes <= 59).then_some(sign * (hours * 60 + minutes))
}

#[cfg(test)]
mod tests {
    use polygate_guest::scripted::Scripted;

    use super::*;

    /// Without a table the documented defaults hold.
    #[test]
    fn defaults() {
        let settings = Settings::read(&mut Scripted::new());
        assert_eq!(settings.keepalive_s, 180);
        assert!(settings.implicit_authentication && settings.registration);
        assert_eq!(settings.auth_code, None);
        assert_eq!(settings.timezone_min, 480);
    }

    /// Values are taken; a malformed one is logged, but never the code.
    #[test]
    fn values() {
        let mut adapter = Scripted::new()
            .with_setting("keepalive_s", "60")
            .with_setting("implicit_authentication", "deny")
            .with_setting("registration", "perhaps")
            .with_setting("auth_code", &"x".repeat(256))
            .with_setting("timezone", "-03:30");
        let settings = Settings::read(&mut adapter);
        assert_eq!(settings.keepalive_s, 60);
        assert!(!settings.implicit_authentication);
        assert_eq!(settings.timezone_min, -210);
        assert_eq!(
            adapter.logged(),
            [
                "setting registration: expected \"allow\" or \"deny\", found \"perhaps\"; using the default",
                "setting auth_code: expected 1 to 255 bytes of GBK; drawing codes instead",
            ]
        );
    }

    /// The forms of a time zone.
    #[test]
    fn timezones() {
        assert_eq!(timezone("Z"), Some(0));
        assert_eq!(timezone("+14:00"), Some(840));
        for wrong in ["", "8", "+8:00", "+08", "+15:00", "+08:60", "++8:00", "08:00", "+０8:00"] {
            assert_eq!(timezone(wrong), None, "{wrong}");
        }
    }
}
