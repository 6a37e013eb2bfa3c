//! Lists, and tables whose keys the user gives.

use std::collections::BTreeMap;

use super::Form;
use crate::config::fault::Fault;
use crate::config::findings::Told;
use crate::config::place::Place;
use crate::config::read::Item;

/// A value of a list and its own place.
#[derive(Debug)]
pub(in crate::config) struct Placed<T> {
    pub(in crate::config) value: T,
    pub(in crate::config) place: Place,
}

/// A list of at least one. What is read may have fewer, when some were at fault.
#[derive(Debug)]
pub(in crate::config) struct List<F> {
    pub(in crate::config) of: F,
    /// What it lists, in the singular.
    pub(in crate::config) one: &'static str,
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
        // One at fault is recorded and left out: what else is wrong with the others can still be found.
        let placed = |element: &Item<'_>| Some(Placed { value: self.of.read(element).ok()?, place: element.place() });
        Ok(elements.iter().filter_map(placed).collect())
    }
}

/// A table of strings, each of any kind and length.
#[derive(Debug)]
pub(in crate::config) struct Texts;

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
