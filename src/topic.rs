//! MQTT topic names and topic filters: well-formedness, matching, covering, overlap.
//!
//! Pure: no clock, no task, no lock. Names and filters are plain `&str`; a text from outside is checked once with
//! [`check_name`] or [`parse_filter`], and every other function here requires that. The rules are those of MQTT 3.1.1
//! and 5.0, section 4.7; the limits are the gateway's.

use std::fmt;

mod mountpoint;
mod template;

pub(crate) use mountpoint::{Mount, Mountpoint};
pub(crate) use template::{Identity, Placeholder, Template, TemplateError};

/// Maximum length of a topic name or filter, in bytes: its length is a 16-bit number in MQTT packets.
pub(crate) const TOPIC_BYTES_MAX: usize = 65_535;

/// Maximum number of levels of a topic name or filter.
///
/// MQTT has no such limit. Without one, a single topic of slashes would have 65,536 levels, at the cost of the broker's
/// index and of every look-up in it.
pub(crate) const TOPIC_LEVELS_MAX: usize = 128;

/// Maximum number of `+` in a topic filter.
///
/// MQTT has no such limit. Each `+` can double the number of nodes that the broker's index visits to match a topic name.
pub(crate) const WILDCARD_LEVELS_MAX: usize = 16;

/// First level of a shared subscription.
const SHARE: &str = "$share";

/// Malformed topic name or filter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} {}: {fault}", Excerpt(text))]
pub struct Malformed {
    pub what: What,
    pub text: String,
    pub fault: Fault,
}

/// Expected kind of a malformed text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// A topic name, for publish.
    Name,
    /// A topic filter, for subscribe.
    Filter,
}

impl What {
    pub fn name(self) -> &'static str {
        match self {
            Self::Name => "topic name",
            Self::Filter => "topic filter",
        }
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Malformed {
    /// The error without the expected kind, for callers that name that themselves.
    pub fn why(&self) -> String {
        format!("{}: {}", Excerpt(&self.text), self.fault)
    }
}

/// Fault of a topic name or filter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("at least one character is required")]
    Empty,
    #[error("it has {bytes} bytes, and {TOPIC_BYTES_MAX} are allowed")]
    TooLong { bytes: usize },
    #[error("it has {levels} levels, and {TOPIC_LEVELS_MAX} are allowed")]
    TooDeep { levels: usize },
    #[error("it has {wildcards} levels \"+\", and {WILDCARD_LEVELS_MAX} are allowed")]
    TooManyWildcards { wildcards: usize },
    #[error("the character U+0000 is not allowed")]
    Nul,
    /// A wildcard in a topic name.
    #[error("\"{wildcard}\" is allowed only in a topic filter")]
    Wildcard {
        /// `+` or `#`.
        wildcard: char,
    },
    /// A wildcard beside other characters in its level.
    #[error("\"{wildcard}\" must stand alone in its level")]
    NotAlone {
        /// `+` or `#`.
        wildcard: char,
    },
    /// A `#` with levels after it.
    #[error("\"#\" is allowed only at the end")]
    NotLast,
    /// `$share` without a group and a filter.
    #[error("\"$share\" must be followed by a group and a filter, as in $share/group/filter")]
    Share,
    /// A wildcard in the group of a shared subscription.
    #[error("the group of a shared subscription must not contain \"+\" or \"#\"")]
    ShareGroup,
    /// A nested shared subscription.
    #[error("a shared subscription cannot be shared again")]
    ShareNested,
}

/// A text for an error or a log line: quoted, and shortened.
pub(crate) struct Excerpt<'a>(pub &'a str);

impl fmt::Display for Excerpt<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const CHARS_MAX: usize = 100;
        match self.0.char_indices().nth(CHARS_MAX) {
            None => write!(f, "{:?}", self.0),
            Some((end, _)) => write!(f, "{:?}…", &self.0[..end]),
        }
    }
}

/// Parsed filter of a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Filter<'a> {
    /// The group of a shared subscription (`$share/group/filter`).
    pub group: Option<&'a str>,
    /// The filter to match topic names with; never begins with `$share/`.
    pub filter: &'a str,
}

/// Checks a topic name.
///
/// # Errors
///
/// Empty, longer than [`TOPIC_BYTES_MAX`], deeper than [`TOPIC_LEVELS_MAX`], with U+0000 or a wildcard.
pub(crate) fn check_name(text: &str) -> Result<(), Malformed> {
    let fault = size_fault(text).or_else(|| {
        text.chars().find_map(|char| match char {
            '\0' => Some(Fault::Nul),
            '+' | '#' => Some(Fault::Wildcard { wildcard: char }),
            _ => None,
        })
    });
    match fault {
        None => Ok(()),
        Some(fault) => Err(Malformed { what: What::Name, text: text.to_owned(), fault }),
    }
}

/// Checks and parses a topic filter, which may be a shared subscription.
///
/// # Errors
///
/// Those of [`check_name`], except that wildcards are allowed where MQTT allows them, and those of a malformed
/// `$share`.
pub(crate) fn parse_filter(text: &str) -> Result<Filter<'_>, Malformed> {
    let malformed = |fault| Malformed { what: What::Filter, text: text.to_owned(), fault };
    if let Some(fault) = size_fault(text) {
        return Err(malformed(fault));
    }
    let (group, filter) = match text.split_once('/') {
        Some((SHARE, rest)) => {
            let (group, filter) = rest.split_once('/').ok_or_else(|| malformed(Fault::Share))?;
            if group.is_empty() || filter.is_empty() {
                return Err(malformed(Fault::Share));
            }
            if group.contains(['+', '#']) {
                return Err(malformed(Fault::ShareGroup));
            }
            if filter == SHARE || filter.starts_with("$share/") {
                return Err(malformed(Fault::ShareNested));
            }
            (Some(group), filter)
        }
        None if text == SHARE => return Err(malformed(Fault::Share)),
        _ => (None, text),
    };
    match wildcard_fault(text) {
        None => Ok(Filter { group, filter }),
        Some(fault) => Err(malformed(fault)),
    }
}

fn size_fault(text: &str) -> Option<Fault> {
    if text.is_empty() {
        return Some(Fault::Empty);
    }
    if text.len() > TOPIC_BYTES_MAX {
        return Some(Fault::TooLong { bytes: text.len() });
    }
    let levels = text.bytes().filter(|&byte| byte == b'/').count() + 1;
    (levels > TOPIC_LEVELS_MAX).then_some(Fault::TooDeep { levels })
}

fn wildcard_fault(text: &str) -> Option<Fault> {
    let wildcards = text.split('/').filter(|&level| level == "+").count();
    if wildcards > WILDCARD_LEVELS_MAX {
        return Some(Fault::TooManyWildcards { wildcards });
    }
    let mut levels = text.split('/').peekable();
    while let Some(level) = levels.next() {
        if level == "#" && levels.peek().is_some() {
            return Some(Fault::NotLast);
        }
        if level == "#" || level == "+" {
            continue;
        }
        for char in level.chars() {
            match char {
                '\0' => return Some(Fault::Nul),
                '+' | '#' => return Some(Fault::NotAlone { wildcard: char }),
                _ => {}
            }
        }
    }
    None
}

/// Whether `filter` matches the topic name `name`.
///
/// A wildcard in the first level does not match a level that begins with `$` (MQTT 5.0 §4.7.2).
pub(crate) fn matches(filter: &str, name: &str) -> bool {
    if name.starts_with('$') && starts_with_wildcard(filter) {
        return false;
    }
    let mut names = name.split('/');
    for level in filter.split('/') {
        match (level, names.next()) {
            // Also the parent: "a/#" matches "a" (MQTT 5.0 §4.7.1.2).
            ("#", _) => return true,
            (_, None) => return false,
            ("+", Some(_)) => {}
            (literal, Some(level)) if literal == level => {}
            _ => return false,
        }
    }
    names.next().is_none()
}

/// Whether every topic name that `specific` matches is matched by `general` too.
///
/// Here and in [`overlaps`] the empty text counts as a name, although it cannot be published to: so "/#" and "+"
/// overlap.
pub(crate) fn covers(general: &str, specific: &str) -> bool {
    if specific.starts_with('$') && starts_with_wildcard(general) {
        return false;
    }
    // A name has at least one level, so "#" and "+/#" match the same names, and only the second form
    // lets the levels be compared one by one.
    let specific = if specific == "#" { "+/#" } else { specific };
    let mut specifics = specific.split('/');
    for level in general.split('/') {
        match (level, specifics.next()) {
            ("#", _) => return true,
            (_, None) | ("+", Some("#")) => return false,
            ("+", Some(_)) => {}
            (literal, Some(level)) if literal == level => {}
            _ => return false,
        }
    }
    specifics.next().is_none()
}

/// Whether there is a topic name that both filters match.
pub(crate) fn overlaps(one: &str, other: &str) -> bool {
    if (one.starts_with('$') && starts_with_wildcard(other)) || (other.starts_with('$') && starts_with_wildcard(one)) {
        return false;
    }
    let (mut ones, mut others) = (one.split('/'), other.split('/'));
    loop {
        match (ones.next(), others.next()) {
            (Some("#"), _) | (_, Some("#")) | (None, None) => return true,
            (None, _) | (_, None) => return false,
            (Some("+"), Some(_)) | (Some(_), Some("+")) => {}
            (Some(one), Some(other)) if one == other => {}
            _ => return false,
        }
    }
}

fn starts_with_wildcard(filter: &str) -> bool {
    filter.starts_with(['+', '#'])
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn errors_name_text_and_fault() {
        let filter = |text: &str| parse_filter(text).unwrap_err().to_string();
        assert_eq!(filter("a/#/b"), r##"topic filter "a/#/b": "#" is allowed only at the end"##);
        assert_eq!(filter("a/b#"), r##"topic filter "a/b#": "#" must stand alone in its level"##);
        assert_eq!(filter("a/+b"), r##"topic filter "a/+b": "+" must stand alone in its level"##);
        assert_eq!(filter(""), r##"topic filter "": at least one character is required"##);
        assert_eq!(filter("a\0"), "topic filter \"a\\0\": the character U+0000 is not allowed");
        for text in ["$share", "$share/", "$share/g", "$share/g/", "$share//a"] {
            assert_eq!(parse_filter(text).unwrap_err().fault, Fault::Share, "{text}");
        }
        assert_eq!(parse_filter("$share/+/a").unwrap_err().fault, Fault::ShareGroup);
        assert_eq!(parse_filter("$share/g/$share/h/a").unwrap_err().fault, Fault::ShareNested);

        let name = |text: &str| check_name(text).unwrap_err().to_string();
        assert_eq!(name("a/+"), r##"topic name "a/+": "+" is allowed only in a topic filter"##);
        assert_eq!(
            name(&"x".repeat(65_536)).len(),
            "topic name \"\"…: it has 65536 bytes, and 65535 are allowed".len() + 100
        );
        assert_eq!(check_name(&"/".repeat(128)).unwrap_err().fault, Fault::TooDeep { levels: 129 });
    }

    #[test]
    fn the_limits_themselves_are_allowed() {
        assert_eq!(check_name(&"x".repeat(TOPIC_BYTES_MAX)), Ok(()));
        assert_eq!(check_name(&"/".repeat(TOPIC_LEVELS_MAX - 1)), Ok(()));
    }

    #[test]
    fn a_shared_filter_is_parsed() {
        assert_eq!(parse_filter("$share/g/a/+/#"), Ok(Filter { group: Some("g"), filter: "a/+/#" }));
        assert_eq!(parse_filter("$share/g//"), Ok(Filter { group: Some("g"), filter: "/" }));
        assert_eq!(parse_filter("$shared/g/a"), Ok(Filter { group: None, filter: "$shared/g/a" }));
        assert_eq!(parse_filter("a/$share/g"), Ok(Filter { group: None, filter: "a/$share/g" }));
    }

    #[test]
    fn matching_follows_the_standard() {
        for (filter, name, expected) in [
            ("sport/tennis/player1/#", "sport/tennis/player1", true),
            ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", true),
            ("sport/#", "sport", true),
            ("#", "sport/tennis", true),
            ("sport/+", "sport", false),
            ("sport/+", "sport/", true),
            ("+/+", "/finance", true),
            ("/+", "/finance", true),
            ("+", "/finance", false),
            ("#", "$SYS/uptime", false),
            ("+/uptime", "$SYS/uptime", false),
            ("$SYS/#", "$SYS/uptime", true),
            ("$SYS/+", "$SYS/uptime", true),
            ("a/#", "a/$SYS", true),
            ("ACCOUNTS", "Accounts", false),
        ] {
            assert_eq!(matches(filter, name), expected, "{filter} {name}");
        }
    }

    /// Every name of up to five levels over a small alphabet: enough to distinguish any two filters of up to four
    /// levels, because "c" occurs in no filter. The empty name is among them.
    fn names() -> Vec<String> {
        let mut all: Vec<String> = Vec::new();
        let mut deepest = vec![String::new()];
        for depth in 0..5 {
            let mut next = Vec::new();
            for parent in &deepest {
                for level in ["a", "b", "c", "", "$s"] {
                    let name = if depth == 0 { level.to_owned() } else { format!("{parent}/{level}") };
                    next.push(name);
                }
            }
            all.extend(next.iter().cloned());
            deepest = next;
        }
        all
    }

    /// Filters over a small alphabet, so that many of them have names in common.
    pub(crate) fn filter() -> impl Strategy<Value = String> {
        let level = prop_oneof![3 => Just("a"), 2 => Just("b"), 3 => Just("+"), 1 => Just(""), 1 => Just("$s")];
        (prop::collection::vec(level, 0..4), any::<bool>())
            .prop_map(|(mut levels, open)| {
                if open {
                    levels.push("#");
                }
                levels.join("/")
            })
            .prop_filter("a filter has a character", |filter| !filter.is_empty())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        /// `covers` and `overlaps` agree with a comparison of all names.
        #[test]
        fn covers_and_overlaps_agree_with_matches((one, other) in (filter(), filter())) {
            let names = names();
            let within = names.iter().filter(|name| matches(&other, name)).all(|name| matches(&one, name));
            let common = names.iter().any(|name| matches(&one, name) && matches(&other, name));
            prop_assert_eq!(covers(&one, &other), within, "{} covers {}", one, other);
            prop_assert_eq!(overlaps(&one, &other), common, "{} overlaps {}", one, other);
            prop_assert_eq!(overlaps(&other, &one), common);
        }

        /// Every topic name is a filter that matches itself, and no text causes a panic.
        #[test]
        fn a_name_is_a_filter_for_itself(text in "[a-c/+#$\0é]{0,12}") {
            let parsed = parse_filter(&text);
            if check_name(&text).is_ok() && parsed.is_ok_and(|filter| filter.group.is_none()) {
                prop_assert!(matches(&text, &text));
            }
        }
    }
}
