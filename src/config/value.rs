//! Value types of keys: how a value is written, its name and its range in the reference, how it is read.
//!
//! Nearly all of them are a [`Parsed`]: a name, what is expected, a range, and a function that parses one value.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use secrecy::SecretString;
use toml::de::DeValue;

use super::diagnostics::ErrorReported;
use super::location::{Alternatives, Location, Quoted};
use super::read::{Item, Table};
use super::schema::{Section, secret};
use super::suggest::suggest;
use crate::listener::access::{Network, Rule};
use crate::percent::Percent;
use crate::rate::Rate;

/// How a value of a key is written and read.
pub(super) trait ValueType<T>: Sync {
    fn form(&self) -> Form;

    /// The value as it is written in the file.
    fn show(&self, value: &T) -> String;

    /// Reads a value, or records its fault.
    fn read(&self, item: &Item<'_>) -> Result<T, ErrorReported>;
}

/// A value type in errors and in the reference.
pub(super) struct Form {
    /// The name in the reference.
    pub(super) name: Cow<'static, str>,
    /// The form with its article, for errors: `a duration such as "30s"`.
    pub(super) expected: Cow<'static, str>,
    /// First and last value, for errors and the reference; empty for forms without a range.
    pub(super) range: Cow<'static, str>,
}

impl Form {
    fn new(
        name: impl Into<Cow<'static, str>>,
        expected: impl Into<Cow<'static, str>>,
        range: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self { name: name.into(), expected: expected.into(), range: range.into() }
    }
}

/// A value that is parsed by a function, such as a size or an address.
pub(super) struct Parsed<T: 'static> {
    pub(super) name: &'static str,
    pub(super) expected: &'static str,
    pub(super) range: Range<T>,
    pub(super) parse: fn(&DeValue<'_>) -> Result<T, Rejected>,
    pub(super) show: fn(&T) -> String,
}

/// The values that a [`Parsed`] accepts.
pub(super) enum Range<T> {
    /// All that parse.
    Any,
    /// Those that the parsing function accepts; the words are for errors and the reference.
    Words(&'static str),
    Within(RangeInclusive<T>, fn(&RangeInclusive<T>, &T) -> bool),
}

/// Why a value was not parsed.
pub(super) enum Rejected {
    /// The value has another TOML type.
    Type,
    /// The text is not of the expected form.
    Form,
    /// The value is outside the range.
    Range,
    /// The whole message of the fault.
    Because(String),
}

impl<T: Sync> ValueType<T> for Parsed<T> {
    fn form(&self) -> Form {
        let range = match &self.range {
            Range::Any => "".into(),
            Range::Words(words) => (*words).into(),
            Range::Within(range, _) => {
                let [first, last] = [range.start(), range.end()].map(|bound| (self.show)(bound).replace('"', ""));
                Cow::Owned(span_of(first, last))
            }
        };
        Form::new(self.name, self.expected, range)
    }

    fn show(&self, value: &T) -> String {
        (self.show)(value)
    }

    fn read(&self, item: &Item<'_>) -> Result<T, ErrorReported> {
        let accepts = |value: &T| match &self.range {
            Range::Any | Range::Words(_) => true,
            Range::Within(range, contains) => contains(range, value),
        };
        match (self.parse)(item.value()) {
            Ok(value) if accepts(&value) => Ok(value),
            Ok(_) | Err(Rejected::Range) => {
                // A number may have any count of digits.
                const CHARS_MAX: usize = 40;
                let written = written(item.value());
                Err(item.fault(match written.char_indices().nth(CHARS_MAX) {
                    None => outside(written, self.form().range),
                    Some((end, _)) => outside(format!("{}…", &written[..end]), self.form().range),
                }))
            }
            Err(Rejected::Type) => Err(item.wrong_type(self.expected)),
            Err(Rejected::Form) => Err(item.malformed(self.expected)),
            Err(Rejected::Because(message)) => Err(item.fault(message)),
        }
    }
}

/// The string, for a [`Parsed`].
pub(super) fn string<'v>(value: &'v DeValue<'_>) -> Result<&'v str, Rejected> {
    value.as_str().ok_or(Rejected::Type)
}

fn from_str<T: FromStr>(value: &DeValue<'_>) -> Result<T, Rejected> {
    string(value)?.parse().map_err(|_| Rejected::Form)
}

/// As [`from_str`], for types with errors that say more than the expected form.
fn explained<T: FromStr<Err: Display>>(value: &DeValue<'_>) -> Result<T, Rejected> {
    let text = string(value)?;
    text.parse().map_err(|error| Rejected::Because(format!("{} {error}", Quoted(text))))
}

pub(super) fn quoted(value: &impl Display) -> String {
    format!("\"{value}\"")
}

/// A scalar as it stands in the file.
fn written(value: &DeValue<'_>) -> String {
    match (value.as_str(), value.as_integer()) {
        (Some(text), _) => format!("{text:?}"),
        (None, Some(integer)) => integer.to_string(),
        (None, None) => String::new(),
    }
}

/// First and last value, as errors and the reference write it.
fn span_of(first: impl Display, last: impl Display) -> String {
    format!("{first}..={last}")
}

/// The message for a value outside its range.
pub(super) fn outside(found: impl Display, range: impl Display) -> String {
    format!("{found} is outside {range}")
}

/// The message for a text with a wrong length in bytes.
pub(super) fn wrong_length(bytes: usize, range: &RangeInclusive<usize>) -> String {
    outside(format_args!("has {bytes} bytes, which"), span_of(range.start(), range.end()))
}

pub(super) const ADDRESS: Parsed<SocketAddr> = Parsed {
    name: "IP address and port",
    expected: "an address such as \"127.0.0.1:9100\" or \"[::1]:9100\"",
    range: Range::Any,
    parse: from_str,
    show: quoted,
};

pub(super) const BIND_ADDRESS: Parsed<crate::listener::Bind> = Parsed {
    name: "`tcp://`, `tls://`, `udp://` or `dtls://`, IP address and port",
    expected: "an address such as \"tcp://0.0.0.0:7993\"",
    range: Range::Any,
    parse: explained,
    show: quoted,
};

/// An address or a network.
pub(super) const NETWORK: Parsed<Network> = Parsed {
    name: "IP address or network",
    expected: "an address or a network such as \"10.1.0.0/16\" or \"2001:db8::/32\"",
    range: Range::Any,
    parse: explained,
    show: quoted,
};

/// A rule of an access list.
pub(super) const ACCESS_RULE: Parsed<Rule> = Parsed {
    name: "rule",
    expected: "a rule such as \"deny 10.1.0.0/16\" or \"allow all\"",
    range: Range::Words("`allow` or `deny`, and an IP address, a network or `all`"),
    parse: explained,
    show: quoted,
};

pub(super) const FLAG: Parsed<bool> = Parsed {
    name: "boolean",
    expected: "true or false",
    range: Range::Any,
    parse: |value| value.as_bool().ok_or(Rejected::Type),
    show: bool::to_string,
};

/// A percentage above zero.
pub(super) const PERCENTAGE: Parsed<Percent> = Parsed {
    name: "percentage",
    expected: "a percentage such as \"5%\" or \"0.5%\"",
    range: Range::Words("0.01%..=100%"),
    parse: |value| match Percent::parse(string(value)?) {
        Some(percent) if percent.basis_points() > 0 => Ok(percent),
        Some(_) => Err(Rejected::Range),
        None => Err(Rejected::Form),
    },
    show: quoted,
};

/// A file or directory, relative to the directory of the configuration file. Its existence is not checked here.
pub(super) const PATH: Parsed<String> = Parsed {
    name: "path",
    expected: "a path",
    range: Range::Any,
    parse: |value| one_line(string(value)?, &(1..=4095)),
    show: |path| format!("{path:?}"),
};

/// A whole number.
pub(super) const fn count<T: TryFrom<i128> + PartialOrd + Display>(range: RangeInclusive<T>) -> Parsed<T> {
    Parsed {
        name: "integer",
        expected: "a whole number",
        range: Range::Within(range, RangeInclusive::contains),
        parse: |value| {
            let integer = value.as_integer().ok_or(Rejected::Type)?;
            let number = i128::from_str_radix(integer.as_str(), integer.radix()).map_err(|_| Rejected::Range)?;
            T::try_from(number).map_err(|_| Rejected::Range)
        },
        show: T::to_string,
    }
}

pub(super) const fn duration(range: RangeInclusive<Duration>) -> Parsed<Duration> {
    Parsed {
        name: "duration",
        expected: "a duration such as \"30s\" or \"500ms\"",
        range: Range::Within(range, RangeInclusive::contains),
        parse: |value| {
            // humantime adds the parts up and overflows at the far end of u64, which takes at least 19 characters.
            const BYTES_MAX: usize = 16;
            let text = Some(string(value)?).filter(|text| text.len() <= BYTES_MAX).ok_or(Rejected::Form)?;
            humantime::parse_duration(text).map_err(|_| Rejected::Form)
        },
        show: |duration| quoted(&humantime::format_duration(*duration)),
    }
}

pub(super) const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

pub(super) const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A number of bytes.
pub(super) const fn size(range: RangeInclusive<usize>) -> Parsed<usize> {
    Parsed {
        name: "size",
        expected: "a size such as \"64KiB\" or \"1MB\"",
        range: Range::Within(range, RangeInclusive::contains),
        parse: |value| usize::try_from(from_str::<ByteSize>(value)?.as_u64()).map_err(|_| Rejected::Range),
        show: |bytes| quoted(&in_binary_unit(*bytes as u64)),
    }
}

/// A number of bytes in the largest binary unit that has no fraction.
fn in_binary_unit(bytes: u64) -> String {
    let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.into_iter().find(|(unit, _)| bytes >= *unit && bytes.is_multiple_of(*unit)) {
        Some((unit, name)) => format!("{}{name}", bytes / unit),
        None => format!("{bytes}B"),
    }
}

/// An amount in a second, a minute or an hour, without a burst. Ten million a second are one every 100 ns.
pub(super) const RATE: Parsed<Rate> = Parsed {
    name: "rate",
    expected: "a rate such as \"1000/s\" or \"10/m\"",
    range: Range::Words("1..=10000000 in a second (s), minute (m) or hour (h)"),
    parse: |value| {
        rate(value, 1..=10_000_000, |amount| match !amount.is_empty() && amount.bytes().all(|b| b.is_ascii_digit()) {
            // An amount that is no u64 is above every range.
            true => Some(amount.parse().unwrap_or(u64::MAX)),
            false => None,
        })
    },
    show: |rate| format!("\"{}/{}\"", rate.amount(), period(rate)),
};

/// As [`RATE`], with the amount as a size.
pub(super) const BYTES_RATE: Parsed<Rate> = Parsed {
    name: "rate of bytes",
    expected: "a rate such as \"1MiB/s\" or \"64KB/m\"",
    range: Range::Words("1B..=1024GiB in a second (s), minute (m) or hour (h)"),
    parse: |value| rate(value, 1..=1 << 40, |amount| amount.parse::<ByteSize>().ok().map(|size| size.as_u64())),
    show: |rate| format!("\"{}/{}\"", in_binary_unit(rate.amount()), period(rate)),
};

const PERIODS: [(&str, Duration); 3] = [("s", secs(1)), ("m", secs(60)), ("h", secs(60 * 60))];

fn rate(value: &DeValue<'_>, amounts: RangeInclusive<u64>, amount: fn(&str) -> Option<u64>) -> Result<Rate, Rejected> {
    let (text, period) = string(value)?.split_once('/').ok_or(Rejected::Form)?;
    let (_, period) = PERIODS.iter().find(|(name, _)| *name == period).ok_or(Rejected::Form)?;
    let amount = amount(text).ok_or(Rejected::Form)?;
    let amount = NonZeroU64::new(amount).filter(|amount| amounts.contains(&amount.get())).ok_or(Rejected::Range)?;
    Ok(Rate::smooth(amount, *period))
}

fn period(rate: &Rate) -> &'static str {
    PERIODS.iter().find(|(_, period)| *period == rate.per()).map_or("?", |(name, _)| name)
}

/// A text in one line.
pub(super) struct Text {
    /// The form with its article.
    expected: &'static str,
    bytes: RangeInclusive<usize>,
}

pub(super) const fn text(expected: &'static str, bytes: RangeInclusive<usize>) -> Text {
    Text { expected, bytes }
}

impl ValueType<String> for Text {
    fn form(&self) -> Form {
        Form::new("string", self.expected, format!("at most {} bytes", self.bytes.end()))
    }

    fn show(&self, value: &String) -> String {
        format!("{value:?}")
    }

    fn read(&self, item: &Item<'_>) -> Result<String, ErrorReported> {
        one_line(item.text(self.expected)?, &self.bytes).map_err(|rejected| match rejected {
            Rejected::Because(message) => item.fault(message),
            Rejected::Type | Rejected::Form | Rejected::Range => item.malformed(self.expected),
        })
    }
}

fn one_line(text: &str, bytes: &RangeInclusive<usize>) -> Result<String, Rejected> {
    match text.len() {
        len if bytes.contains(&len) && !text.contains(char::is_control) => Ok(text.to_owned()),
        len if bytes.contains(&len) => {
            Err(Rejected::Because(format!("{} is not a text without control characters", Quoted(text))))
        }
        0 => Err(Rejected::Form),
        len => Err(Rejected::Because(wrong_length(len, bytes))),
    }
}

/// One of a few words.
pub(super) struct Choice<T: 'static>(pub(super) &'static [(&'static str, T)]);

impl<T: Copy + PartialEq + Sync> ValueType<T> for Choice<T> {
    fn form(&self) -> Form {
        let words: Vec<String> = self.0.iter().map(|(word, _)| quoted(word)).collect();
        let either = match words.split_last() {
            Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
            _ => words.concat(),
        };
        Form::new(either.clone(), either, "")
    }

    fn show(&self, value: &T) -> String {
        self.0.iter().find(|(_, known)| known == value).map_or_else(String::new, |(word, _)| quoted(word))
    }

    fn read(&self, item: &Item<'_>) -> Result<T, ErrorReported> {
        let text = item.text(&self.form().expected)?;
        self.0.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).ok_or_else(|| {
            let known: Vec<&str> = self.0.iter().map(|(word, _)| *word).collect();
            item.fault(format!("{} is not known here; {}", Quoted(text), did_you_mean(text, &known)))
        })
    }
}

/// The known word that was probably meant, or all of them.
pub(super) fn did_you_mean(written: &str, known: &[&str]) -> String {
    match suggest(written, known.iter().copied()) {
        Some(suggestion) => format!("did you mean {suggestion:?}?"),
        None => Alternatives(known).to_string(),
    }
}

/// A value of a list and its own location.
#[derive(Debug)]
pub(super) struct Located<T> {
    pub(super) value: T,
    pub(super) location: Location,
}

/// The values without their locations.
pub(super) fn values<T, C: FromIterator<T>>(list: Vec<Located<T>>) -> C {
    list.into_iter().map(|located| located.value).collect()
}

/// A list of at least one value. Elements with faults are left out of what is read.
pub(super) struct List<T: 'static> {
    pub(super) of: &'static dyn ValueType<T>,
    /// What it lists, in the singular.
    pub(super) one: &'static str,
}

impl<T> ValueType<Vec<Located<T>>> for List<T> {
    fn form(&self) -> Form {
        let Form { name, range, .. } = self.of.form();
        // The words of a choice have no plural.
        let plural = if name.ends_with('"') { "" } else { "s" };
        let each = if range.is_empty() { String::new() } else { format!(", each {range}") };
        let expected = format!("an array with at least one {}", self.one);
        Form::new(format!("array of {name}{plural}"), expected, format!("at least one{each}"))
    }

    fn show(&self, values: &Vec<Located<T>>) -> String {
        let values: Vec<String> = values.iter().map(|located| self.of.show(&located.value)).collect();
        format!("[{}]", values.join(", "))
    }

    fn read(&self, item: &Item<'_>) -> Result<Vec<Located<T>>, ErrorReported> {
        let elements = item.elements(&self.form().expected)?;
        if elements.is_empty() {
            return Err(item.fault(format!("is empty; expected at least one {}", self.one)));
        }
        // Later checks, such as those for duplicates, still find faults of the elements that could be read.
        let read =
            |element: &Item<'_>| Some(Located { value: self.of.read(element).ok()?, location: element.location() });
        Ok(elements.iter().filter_map(read).collect())
    }
}

/// One path or a list of paths.
pub(super) struct Paths;

const PATH_LIST: List<String> = List { of: &PATH, one: "path" };

impl ValueType<Vec<Located<String>>> for Paths {
    fn form(&self) -> Form {
        Form::new("path or array of paths", "a path or an array of paths", PATH_LIST.form().range)
    }

    fn show(&self, values: &Vec<Located<String>>) -> String {
        PATH_LIST.show(values)
    }

    fn read(&self, item: &Item<'_>) -> Result<Vec<Located<String>>, ErrorReported> {
        if item.value().is_array() {
            return PATH_LIST.read(item);
        }
        item.text(&self.form().expected)?;
        Ok(vec![Located { value: PATH.read(item)?, location: item.location() }])
    }
}

/// A table of strings, with keys that the user chooses.
pub(super) struct Strings;

impl ValueType<BTreeMap<String, String>> for Strings {
    fn form(&self) -> Form {
        Form::new("table of strings", "a table of strings", "")
    }

    fn show(&self, _: &BTreeMap<String, String>) -> String {
        "{}".to_owned()
    }

    fn read(&self, item: &Item<'_>) -> Result<BTreeMap<String, String>, ErrorReported> {
        let items = item.table()?.items();
        super::read::all(items.iter().map(|(key, item)| Ok(((*key).to_owned(), item.text("a string")?.to_owned()))))
    }
}

/// A word, a string or a flag; or a table of one section for more. The value is not shown in errors.
pub(super) struct OrTable<T: 'static> {
    pub(super) name: &'static str,
    pub(super) expected: &'static str,
    pub(super) range: fn() -> String,
    /// Reads the value where it is no table; none: the type is wrong.
    pub(super) scalar: fn(&Item<'_>) -> Option<Result<T, ErrorReported>>,
    pub(super) section: &'static Section,
    pub(super) table: fn(&Table<'_>) -> Result<T, ErrorReported>,
    pub(super) show: fn(&T) -> String,
}

impl<T> ValueType<T> for OrTable<T> {
    fn form(&self) -> Form {
        Form::new(self.name, self.expected, (self.range)())
    }

    fn show(&self, value: &T) -> String {
        (self.show)(value)
    }

    fn read(&self, item: &Item<'_>) -> Result<T, ErrorReported> {
        if let Some(read) = (self.scalar)(item) {
            return read;
        }
        if !item.value().is_table() {
            // A number may be a secret, written without its quotes.
            return Err(item.wrong_type_unshown(self.expected));
        }
        let table = item.table()?;
        let admitted = table.admit(self.section.title, &[self.section], &[]);
        // Without any key of the section, a fault of a missing key would only repeat the fault of the unknown one.
        if !self.section.names().any(|name| table.has(name)) {
            admitted?;
        }
        let value = (self.table)(&table);
        admitted.and(value)
    }
}

/// Where a secret is.
#[derive(Debug)]
pub(super) enum SecretSource {
    /// In the configuration file.
    Inline(SecretString),
    /// In an environment variable.
    Env(String),
    /// In a file, relative to the directory of the configuration file.
    File(String),
}

/// A text that is never shown.
pub(super) const SECRET: OrTable<SecretSource> = OrTable {
    name: "secret",
    expected: "a string, { env = \"NAME\" } or { file = \"PATH\" }",
    range: String::new,
    scalar: |item| item.value().as_str().map(|text| Ok(SecretSource::Inline(text.into()))),
    section: &secret::SECTION,
    table: |table| match (table.get(&secret::ENV)?, table.get(&secret::FILE)?) {
        (Some(name), None) => Ok(SecretSource::Env(name)),
        (None, Some(path)) => Ok(SecretSource::File(path)),
        (None, None) => Err(table.has_neither("env", "file")),
        (Some(_), Some(_)) => Err(table.excludes("env", "file")),
    },
    show: |_| String::new(),
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_written_in_the_unit_that_fits() {
        for (bytes, written) in [(0, "0B"), (1000, "1000B"), (1024, "1KiB"), (65536, "64KiB"), (1 << 32, "4GiB")] {
            assert_eq!(in_binary_unit(bytes), written);
            assert_eq!(written.parse::<ByteSize>().unwrap().as_u64(), bytes);
        }
    }
}
