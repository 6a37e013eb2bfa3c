//! Words: free ones, a few known ones, paths, yes and no.

use std::ops::RangeInclusive;

use super::{ValueType, span};
use crate::config::diagnostics::ErrorReported;
use crate::config::fault::Fault;
use crate::config::read::Item;

/// A text in one line.
#[derive(Debug)]
pub(in crate::config) struct Text {
    /// The form with its article.
    pub(in crate::config) expected: &'static str,
    /// Its length, in bytes.
    pub(in crate::config) bytes: RangeInclusive<usize>,
}

impl ValueType for Text {
    type Value = String;

    fn expected(&self) -> String {
        self.expected.to_owned()
    }

    fn name(&self) -> String {
        "string".to_owned()
    }

    fn range(&self) -> String {
        format!("at most {} bytes", self.bytes.end())
    }

    fn show(&self, value: &String) -> String {
        format!("{value:?}")
    }

    fn read(&self, item: &Item<'_>) -> Result<String, ErrorReported> {
        let text = item.text(self.expected)?;
        if !self.bytes.contains(&text.len()) {
            let range = span(self.bytes.start(), self.bytes.end());
            return Err(item.fault(match text.len() {
                0 => Fault::Malformed { found: String::new(), expected: self.expected() },
                bytes => Fault::Length { bytes, range },
            }));
        }
        if text.contains(char::is_control) {
            let expected = "a text without control characters".to_owned();
            return Err(item.fault(Fault::Malformed { found: text.to_owned(), expected }));
        }
        Ok(text.to_owned())
    }
}

/// One of a few words.
#[derive(Debug)]
pub(in crate::config) struct Choice<T: 'static>(pub(in crate::config) &'static [(&'static str, T)]);

impl<T: Copy + PartialEq + Sync> ValueType for Choice<T> {
    type Value = T;

    fn expected(&self) -> String {
        let words: Vec<String> = self.0.iter().map(|(word, _)| format!("\"{word}\"")).collect();
        match words.split_last() {
            Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
            _ => words.concat(),
        }
    }

    fn name(&self) -> String {
        self.expected()
    }

    fn show(&self, value: &T) -> String {
        self.0.iter().find(|(_, known)| known == value).map_or_else(String::new, |(word, _)| format!("\"{word}\""))
    }

    fn read(&self, item: &Item<'_>) -> Result<T, ErrorReported> {
        let text = item.text(&self.expected())?;
        self.0.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).ok_or_else(|| {
            let known = self.0.iter().map(|(word, _)| *word).collect();
            item.fault(Fault::NotOneOf { found: text.to_owned(), known })
        })
    }
}

/// A file or directory, relative to the directory of the configuration file; not looked at yet.
#[derive(Debug)]
pub(in crate::config) struct FilePath;

impl ValueType for FilePath {
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

    fn read(&self, item: &Item<'_>) -> Result<String, ErrorReported> {
        Text { expected: "a path", bytes: 1..=4095 }.read(item)
    }
}

/// Yes or no.
#[derive(Debug)]
pub(in crate::config) struct Flag;

impl ValueType for Flag {
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

    fn read(&self, item: &Item<'_>) -> Result<bool, ErrorReported> {
        item.value().as_bool().ok_or_else(|| item.wrong_type(self.expected()))
    }
}
