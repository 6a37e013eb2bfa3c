//! Lists, and tables whose keys the user gives.

use std::collections::BTreeMap;

use super::{FilePath, ValueType};
use crate::config::diagnostics::ErrorReported;
use crate::config::fault::Fault;
use crate::config::location::Location;
use crate::config::read::Item;

/// A value of a list and its own place.
#[derive(Debug)]
pub(in crate::config) struct Located<T> {
    pub(in crate::config) value: T,
    pub(in crate::config) location: Location,
}

/// A list of at least one. What is read may have fewer, when some were at fault.
#[derive(Debug)]
pub(in crate::config) struct List<F> {
    pub(in crate::config) of: F,
    /// What it lists, in the singular.
    pub(in crate::config) one: &'static str,
}

impl<F: ValueType> ValueType for List<F> {
    type Value = Vec<Located<F::Value>>;

    fn expected(&self) -> String {
        format!("an array with at least one {}", self.one)
    }

    fn name(&self) -> String {
        match self.of.name() {
            // The words that each of them may be.
            words if words.ends_with('"') => format!("array of {words}"),
            name => format!("array of {name}s"),
        }
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

    fn read(&self, item: &Item<'_>) -> Result<Self::Value, ErrorReported> {
        let elements = item.elements(&self.expected())?;
        if elements.is_empty() {
            return Err(item.fault(Fault::Empty { of: self.one }));
        }
        // One at fault is recorded and left out: what else is wrong with the others can still be found.
        let placed =
            |element: &Item<'_>| Some(Located { value: self.of.read(element).ok()?, location: element.location() });
        Ok(elements.iter().filter_map(placed).collect())
    }
}

/// A path, or a list of them.
#[derive(Debug)]
pub(in crate::config) struct Paths;

impl Paths {
    const SEVERAL: List<FilePath> = List { of: FilePath, one: "path" };
}

impl ValueType for Paths {
    type Value = Vec<Located<String>>;

    fn expected(&self) -> String {
        "a path or an array of paths".to_owned()
    }

    fn name(&self) -> String {
        "path or array of paths".to_owned()
    }

    fn range(&self) -> String {
        Self::SEVERAL.range()
    }

    fn show(&self, values: &Self::Value) -> String {
        Self::SEVERAL.show(values)
    }

    fn read(&self, item: &Item<'_>) -> Result<Self::Value, ErrorReported> {
        if item.value().is_array() {
            return Self::SEVERAL.read(item);
        }
        if !item.value().is_str() {
            return Err(item.wrong_type(self.expected()));
        }
        Ok(vec![Located { value: FilePath.read(item)?, location: item.location() }])
    }
}

/// A table of strings, each of any kind and length.
#[derive(Debug)]
pub(in crate::config) struct Texts;

impl ValueType for Texts {
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

    fn read(&self, item: &Item<'_>) -> Result<Self::Value, ErrorReported> {
        let items = item.table()?.items();
        let texts = items.iter().map(|named| Ok((named.key.to_owned(), named.item.text("a string")?.to_owned())));
        // All are read before the first fault ends it.
        let texts: Vec<Result<_, ErrorReported>> = texts.collect();
        texts.into_iter().collect()
    }
}
