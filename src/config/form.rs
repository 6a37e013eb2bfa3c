//! How the values of keys are written: each form says what it expects, in errors and in the reference,
//! and reads a value.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use bytesize::ByteSize;
use secrecy::SecretString;

use super::fault::Fault;
use super::file;
use super::findings::Told;
use super::place::Place;
use super::read::{Item, kind};
use crate::listener::Bind;

/// A way to write a value.
pub(super) trait Form: Sync {
    /// What is read.
    type Value;

    /// The form with its article, for errors: `a duration such as "30s"`.
    fn expected(&self) -> String;

    /// The form's name, for the reference.
    fn name(&self) -> String;

    /// First and last value, for errors and the reference; empty where there is no such thing.
    fn range(&self) -> String {
        String::new()
    }

    /// A value as it is written in the file.
    fn show(&self, value: &Self::Value) -> String;

    /// Reads a value, or records what is wrong with it.
    fn read(&self, item: &Item<'_>) -> Result<Self::Value, Told>;
}

/// A key, its form, and what it means.
#[derive(Debug)]
pub(super) struct Key<F, P> {
    pub(super) name: &'static str,
    pub(super) form: F,
    pub(super) presence: P,
    pub(super) about: &'static str,
}

/// What it means that a key is absent.
pub(super) trait Presence<F: Form>: Sync {
    /// What a key of this presence has.
    type Value;

    fn present(value: F::Value) -> Self::Value;

    /// What an absent key has; `None` where it must be there.
    fn absent(&self) -> Option<Self::Value>;

    /// For the reference.
    fn describe(&self, form: &F) -> String;
}

/// The key must be there.
#[derive(Debug)]
pub(super) struct Required;

/// Without the key, its value is this.
#[derive(Debug)]
pub(super) struct Default<V>(pub(super) fn() -> V);

/// Without the key, something else happens, which the words tell.
#[derive(Debug)]
pub(super) struct Optional(pub(super) &'static str);

impl<F: Form> Presence<F> for Required {
    type Value = F::Value;

    fn present(value: F::Value) -> F::Value {
        value
    }

    fn absent(&self) -> Option<F::Value> {
        None
    }

    fn describe(&self, _: &F) -> String {
        "required".to_owned()
    }
}

impl<F: Form<Value = V>, V> Presence<F> for Default<V> {
    type Value = V;

    fn present(value: V) -> V {
        value
    }

    fn absent(&self) -> Option<V> {
        Some(self.0())
    }

    fn describe(&self, form: &F) -> String {
        format!("`{}`", form.show(&self.0()))
    }
}

impl<F: Form> Presence<F> for Optional {
    type Value = Option<F::Value>;

    fn present(value: F::Value) -> Option<F::Value> {
        Some(value)
    }

    fn absent(&self) -> Option<Option<F::Value>> {
        Some(None)
    }

    fn describe(&self, _: &F) -> String {
        self.0.to_owned()
    }
}

/// A text in one line.
#[derive(Debug)]
pub(super) struct Text {
    /// The form with its article.
    pub(super) expected: &'static str,
    /// Its length, in bytes.
    pub(super) bytes: RangeInclusive<usize>,
}

impl Form for Text {
    type Value = String;

    fn expected(&self) -> String {
        self.expected.to_owned()
    }

    fn name(&self) -> String {
        "string".to_owned()
    }

    fn range(&self) -> String {
        format!("{} bytes", span(*self.bytes.start(), *self.bytes.end()))
    }

    fn show(&self, value: &String) -> String {
        format!("{value:?}")
    }

    fn read(&self, item: &Item<'_>) -> Result<String, Told> {
        let text = item.text(self.expected)?;
        if !self.bytes.contains(&text.len()) {
            return Err(item.fault(Fault::Length { bytes: text.len(), range: span(*self.bytes.start(), *self.bytes.end()) }));
        }
        if text.contains(char::is_control) {
            let expected = "a text without control characters".to_owned();
            return Err(item.fault(Fault::Malformed { found: text.to_owned(), expected }));
        }
        Ok(text.to_owned())
    }
}

/// Yes or no.
#[derive(Debug)]
pub(super) struct Flag;

impl Form for Flag {
    type Value = bool;

    fn expected(&self) -> String {
        "true or false".to_owned()
    }

    fn name(&self) -> String {
        "boolean".to_owned()
    }

    fn show(&self, value: &bool) -> String {
        value.to_string()
    }

    fn read(&self, item: &Item<'_>) -> Result<bool, Told> {
        item.value().as_bool().ok_or_else(|| item.wrong_type(self.expected()))
    }
}

/// A whole number.
#[derive(Debug)]
pub(super) struct Count(pub(super) RangeInclusive<u32>);

impl Form for Count {
    type Value = u32;

    fn expected(&self) -> String {
        "a whole number".to_owned()
    }

    fn name(&self) -> String {
        "integer".to_owned()
    }

    fn range(&self) -> String {
        span(self.0.start(), self.0.end())
    }

    fn show(&self, value: &u32) -> String {
        value.to_string()
    }

    fn read(&self, item: &Item<'_>) -> Result<u32, Told> {
        let integer = item.value().as_integer().ok_or_else(|| item.wrong_type(self.expected()))?;
        // A number that is no u32 is out of every range.
        match u32::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(number) if self.0.contains(&number) => Ok(number),
            _ => Err(item.fault(Fault::OutOfRange { found: cut(integer.to_string()), range: self.range() })),
        }
    }
}

/// A span of time.
#[derive(Debug)]
pub(super) struct Span(pub(super) RangeInclusive<Duration>);

impl Form for Span {
    type Value = Duration;

    fn expected(&self) -> String {
        "a duration such as \"30s\" or \"500ms\"".to_owned()
    }

    fn name(&self) -> String {
        "duration".to_owned()
    }

    fn range(&self) -> String {
        let written = |span: &Duration| humantime::format_duration(*span).to_string();
        span(written(self.0.start()), written(self.0.end()))
    }

    fn show(&self, value: &Duration) -> String {
        format!("\"{}\"", humantime::format_duration(*value))
    }

    fn read(&self, item: &Item<'_>) -> Result<Duration, Told> {
        // humantime adds the parts up and overflows at the far end of u64, which takes at least 19 characters.
        const BYTES_MAX: usize = 16;
        let text = item.text(&self.expected())?;
        let malformed = || Fault::Malformed { found: text.to_owned(), expected: self.expected() };
        let parsed = match text.len() {
            ..=BYTES_MAX => humantime::parse_duration(text).ok(),
            _ => None,
        };
        let duration = parsed.ok_or_else(|| item.fault(malformed()))?;
        if self.0.contains(&duration) {
            Ok(duration)
        } else {
            Err(item.fault(Fault::OutOfRange { found: format!("{text:?}"), range: self.range() }))
        }
    }
}

/// A number of bytes.
#[derive(Debug)]
pub(super) struct Size(pub(super) RangeInclusive<u64>);

impl Form for Size {
    type Value = usize;

    fn expected(&self) -> String {
        "a size such as \"64KiB\" or \"1MB\"".to_owned()
    }

    fn name(&self) -> String {
        "size".to_owned()
    }

    fn range(&self) -> String {
        span(size(*self.0.start()), size(*self.0.end()))
    }

    fn show(&self, value: &usize) -> String {
        format!("\"{}\"", size(*value as u64))
    }

    fn read(&self, item: &Item<'_>) -> Result<usize, Told> {
        let text = item.text(&self.expected())?;
        let malformed = || Fault::Malformed { found: text.to_owned(), expected: self.expected() };
        let bytes = text.parse::<ByteSize>().map_err(|_| item.fault(malformed()))?.as_u64();
        match usize::try_from(bytes) {
            Ok(fits) if self.0.contains(&bytes) => Ok(fits),
            _ => Err(item.fault(Fault::OutOfRange { found: cut(format!("{text:?}")), range: self.range() })),
        }
    }
}

/// An address and port of this machine.
#[derive(Debug)]
pub(super) struct Address;

impl Form for Address {
    type Value = SocketAddr;

    fn expected(&self) -> String {
        "an address such as \"127.0.0.1:9100\" or \"[::1]:9100\"".to_owned()
    }

    fn name(&self) -> String {
        "IP address and port".to_owned()
    }

    fn show(&self, value: &SocketAddr) -> String {
        format!("\"{value}\"")
    }

    fn read(&self, item: &Item<'_>) -> Result<SocketAddr, Told> {
        let text = item.text(&self.expected())?;
        text.parse().map_err(|_| item.fault(Fault::Malformed { found: text.to_owned(), expected: self.expected() }))
    }
}

/// A transport and an address of this machine.
#[derive(Debug)]
pub(super) struct BindForm;

impl Form for BindForm {
    type Value = Bind;

    fn expected(&self) -> String {
        "an address such as \"tcp://0.0.0.0:7993\"".to_owned()
    }

    fn name(&self) -> String {
        "`tcp://`, IP address and port".to_owned()
    }

    fn show(&self, value: &Bind) -> String {
        format!("\"{value}\"")
    }

    fn read(&self, item: &Item<'_>) -> Result<Bind, Told> {
        let text = item.text(&self.expected())?;
        text.parse().map_err(|why| item.fault(Fault::Bind { found: text.to_owned(), why }))
    }
}

/// One of a few words.
#[derive(Debug)]
pub(super) struct Choice<T: 'static>(pub(super) &'static [(&'static str, T)]);

impl<T: Copy + PartialEq + Sync> Form for Choice<T> {
    type Value = T;

    fn expected(&self) -> String {
        let words: Vec<String> = self.0.iter().map(|(word, _)| format!("\"{word}\"")).collect();
        words.join(" or ")
    }

    fn name(&self) -> String {
        self.expected()
    }

    fn show(&self, value: &T) -> String {
        self.0.iter().find(|(_, known)| known == value).map_or_else(String::new, |(word, _)| format!("\"{word}\""))
    }

    fn read(&self, item: &Item<'_>) -> Result<T, Told> {
        let text = item.text(&self.expected())?;
        self.0.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).ok_or_else(|| {
            let known = self.0.iter().map(|(word, _)| *word).collect();
            item.fault(Fault::NotOneOf { found: text.to_owned(), known })
        })
    }
}

/// A file or directory, relative to the directory of the configuration file; not looked at yet.
#[derive(Debug)]
pub(super) struct FilePath;

impl Form for FilePath {
    type Value = String;

    fn expected(&self) -> String {
        "a path".to_owned()
    }

    fn name(&self) -> String {
        "path".to_owned()
    }

    fn show(&self, value: &String) -> String {
        format!("{value:?}")
    }

    fn read(&self, item: &Item<'_>) -> Result<String, Told> {
        Text { expected: "a path", bytes: 1..=4095 }.read(item)
    }
}

/// Where a secret is.
#[derive(Debug)]
pub(super) enum SecretSource {
    /// Here.
    Written(SecretString),
    /// In an environment variable.
    Env(String),
    /// In a file, relative to the directory of the configuration file.
    File(String),
}

/// A text that is never shown.
#[derive(Debug)]
pub(super) struct Secret;

impl Form for Secret {
    type Value = SecretSource;

    fn expected(&self) -> String {
        "a string, { env = \"NAME\" } or { file = \"PATH\" }".to_owned()
    }

    fn name(&self) -> String {
        "secret".to_owned()
    }

    fn show(&self, _: &SecretSource) -> String {
        String::new()
    }

    fn read(&self, item: &Item<'_>) -> Result<SecretSource, Told> {
        if let Some(text) = item.value().as_str() {
            return Ok(SecretSource::Written(text.into()));
        }
        if !item.value().is_table() {
            // A number may be the secret, written without its quotes.
            let found = kind(item.value()).to_owned();
            return Err(item.fault(Fault::WrongType { expected: self.expected(), found }));
        }
        let table = item.section(&file::secret::SECTION)?;
        match (table.get(&file::secret::ENV)?, table.get(&file::secret::FILE)?) {
            (Some(name), None) => Ok(SecretSource::Env(name)),
            (None, Some(path)) => Ok(SecretSource::File(path)),
            (None, None) => Err(table.fault(Fault::Neither { one: "env", other: "file" })),
            (Some(_), Some(_)) => Err(table.fault_at("env", Fault::Both { other: "file" })),
        }
    }
}

/// A value of a list and its own place.
#[derive(Debug)]
pub(super) struct Placed<T> {
    pub(super) value: T,
    pub(super) place: Place,
}

/// A list of at least one.
#[derive(Debug)]
pub(super) struct List<F> {
    pub(super) of: F,
    /// What it lists, in the singular.
    pub(super) one: &'static str,
}

impl<F: Form> Form for List<F> {
    type Value = Vec<Placed<F::Value>>;

    fn expected(&self) -> String {
        format!("an array with at least one {}", self.one)
    }

    fn name(&self) -> String {
        format!("array of {}s", self.of.name())
    }

    fn range(&self) -> String {
        match self.of.range() {
            none if none.is_empty() => "at least one".to_owned(),
            range => format!("at least one, each {range}"),
        }
    }

    fn show(&self, values: &Self::Value) -> String {
        let values: Vec<String> = values.iter().map(|placed| self.of.show(&placed.value)).collect();
        format!("[{}]", values.join(", "))
    }

    fn read(&self, item: &Item<'_>) -> Result<Self::Value, Told> {
        let elements = item.elements(&self.expected())?;
        if elements.is_empty() {
            return Err(item.fault(Fault::Empty { of: self.one }));
        }
        let placed = |element: &Item<'_>| Ok(Placed { value: self.of.read(element)?, place: element.place() });
        let values: Vec<Result<_, Told>> = elements.iter().map(placed).collect();
        values.into_iter().collect()
    }
}

/// A table of strings, each of any kind and length.
#[derive(Debug)]
pub(super) struct Texts;

impl Form for Texts {
    type Value = BTreeMap<String, String>;

    fn expected(&self) -> String {
        "a table of strings".to_owned()
    }

    fn name(&self) -> String {
        "table of strings".to_owned()
    }

    fn show(&self, _: &Self::Value) -> String {
        "{}".to_owned()
    }

    fn read(&self, item: &Item<'_>) -> Result<Self::Value, Told> {
        let items = item.table()?.items();
        let texts = items.iter().map(|named| Ok((named.key.to_owned(), named.item.text("a string")?.to_owned())));
        // All are read before the first fault ends it.
        let texts: Vec<Result<_, Told>> = texts.collect();
        texts.into_iter().collect()
    }
}

fn span(first: impl Display, last: impl Display) -> String {
    format!("{first}..={last}")
}

/// A number of bytes in the largest binary unit that has no fraction.
fn size(bytes: u64) -> String {
    let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.into_iter().find(|(unit, _)| bytes >= *unit && bytes % unit == 0) {
        Some((unit, name)) => format!("{}{name}", bytes / unit),
        None => format!("{bytes}B"),
    }
}

/// A number that may have as many digits as the user likes.
fn cut(number: String) -> String {
    match number.char_indices().nth(40) {
        None => number,
        Some((end, _)) => format!("{}…", &number[..end]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_written_in_the_unit_that_fits() {
        for (bytes, written) in [(0, "0B"), (1000, "1000B"), (1024, "1KiB"), (65536, "64KiB"), (1 << 32, "4GiB")] {
            assert_eq!(size(bytes), written);
            assert_eq!(written.parse::<ByteSize>().unwrap().as_u64(), bytes);
        }
    }
}
