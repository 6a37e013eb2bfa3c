//! A walk through the parsed file that knows its location at each step.
//!
//! Unlike a deserializer it does not stop at the first fault: every getter records its own fault and returns
//! [`ErrorReported`] in place of the value. So all values are read before the first `?`; [`read_all!`] does that for the
//! fields of a struct, and [`all`] for the elements of a list.

use std::fmt;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostics::{Advice, Diagnostics, ErrorReported};
use super::location::{Location, Position, Quoted, join};
use super::schema::{Key, Presence, Section};
use super::value::did_you_mean;

/// Builds a struct from results. Every field is evaluated before the first error returns, so that all faults are
/// recorded; a base after `..` is a plain value.
macro_rules! read_all {
    ($($struct:ident)::+ { $($field:ident: $read:expr),* $(, ..$base:expr)? $(,)? }) => {{
        let ($($field,)*) = ($($read,)*);
        $crate::config::read::build(move || Ok($($struct)::+ { $($field: $field?,)* $(..$base)? }))
    }};
}
pub(super) use read_all;

/// Gives the closure of [`read_all!`] its type.
pub(super) fn build<T>(build: impl FnOnce() -> Result<T, ErrorReported>) -> Result<T, ErrorReported> {
    build()
}

/// All values of an iterator. Each is read before the first error returns, so that all faults are recorded.
pub(super) fn all<T, C: FromIterator<T>>(
    results: impl Iterator<Item = Result<T, ErrorReported>>,
) -> Result<C, ErrorReported> {
    let results: Vec<Result<T, ErrorReported>> = results.collect();
    results.into_iter().collect()
}

/// A value and its location.
#[derive(Clone)]
pub(super) struct Item<'t> {
    diagnostics: &'t Diagnostics<'t>,
    path: String,
    line: usize,
    value: &'t DeValue<'t>,
}

impl<'t> Item<'t> {
    pub(super) fn value(&self) -> &'t DeValue<'t> {
        self.value
    }

    pub(super) fn location(&self) -> Location {
        Location { line: Some(self.line), position: Position::Key(self.path.clone()) }
    }

    pub(super) fn fault(&self, message: impl fmt::Display) -> ErrorReported {
        self.diagnostics.fault(self.location(), message)
    }

    pub(super) fn warn(&self, advice: Advice) {
        self.diagnostics.warn(self.location(), advice);
    }

    /// Records that the value has the wrong type.
    pub(super) fn wrong_type(&self, expected: &str) -> ErrorReported {
        self.fault(format_args!("expected {expected}, found {}", shown(self.value)))
    }

    /// As [`wrong_type`](Self::wrong_type), without the value, which may be a secret.
    pub(super) fn wrong_type_unshown(&self, expected: &str) -> ErrorReported {
        self.fault(format_args!("expected {expected}, found {}", kind(self.value)))
    }

    /// Records that a string is not of the expected form.
    pub(super) fn malformed(&self, expected: &str) -> ErrorReported {
        self.fault(format_args!("{} is not {expected}", Quoted(self.value.as_str().unwrap_or_default())))
    }

    /// The value, which must be a string.
    pub(super) fn text(&self, expected: &str) -> Result<&'t str, ErrorReported> {
        self.value.as_str().ok_or_else(|| self.wrong_type(expected))
    }

    /// The elements, each with its own location.
    pub(super) fn elements(&self, expected: &str) -> Result<Vec<Self>, ErrorReported> {
        let array = self.value.as_array().ok_or_else(|| self.wrong_type(expected))?;
        let element = |(index, element): (usize, &'t Spanned<DeValue<'t>>)| Self {
            diagnostics: self.diagnostics,
            path: format!("{}[{index}]", self.path),
            line: self.diagnostics.line(element.span().start),
            value: element.get_ref(),
        };
        Ok(array.iter().enumerate().map(element).collect())
    }

    /// The value, which must be a table. Its keys are not checked; see [`Table::admit`].
    pub(super) fn table(&self) -> Result<Table<'t>, ErrorReported> {
        let table = self.value.as_table().ok_or_else(|| self.wrong_type("a table"))?;
        Ok(Table { diagnostics: self.diagnostics, path: self.path.clone(), line: Some(self.line), table })
    }

    /// The value, which must be a table with these keys only.
    pub(super) fn section(&self, section: &'static Section) -> Result<Table<'t>, ErrorReported> {
        let table = self.table()?;
        // The other keys are read all the same.
        let _recorded = table.admit(section.title, &[section], &[]);
        Ok(table)
    }
}

/// A table and its location.
#[derive(Clone)]
pub(super) struct Table<'t> {
    diagnostics: &'t Diagnostics<'t>,
    path: String,
    line: Option<usize>,
    table: &'t DeTable<'t>,
}

impl<'t> Table<'t> {
    /// The file itself.
    pub(super) fn root(diagnostics: &'t Diagnostics<'t>, table: &'t DeTable<'t>) -> Self {
        Self { diagnostics, path: String::new(), line: None, table }
    }

    /// Records each key that is in none of `sections`, which errors call `title`. For a key of one of `elsewhere`, the
    /// message names that section.
    pub(super) fn admit(
        &self,
        title: &str,
        sections: &[&'static Section],
        elsewhere: &[&'static Section],
    ) -> Result<(), ErrorReported> {
        let mut known: Vec<&'static str> = Vec::new();
        for name in sections.iter().flat_map(|section| section.names()) {
            // Handlers of both kinds have some keys in common.
            if !known.contains(&name) {
                known.push(name);
            }
        }
        let unknown = self.items().into_iter().filter(|(key, _)| !known.contains(key));
        all(unknown.map(|(key, item)| {
            let mut others = elsewhere.iter().filter(|section| section.names().any(|name| name == key));
            Err(match (others.next(), others.next()) {
                (Some(only), None) => item.fault(format_args!("is a key of {} only", only.title)),
                _ => item.fault(format_args!("is not a key of {title}; {}", did_you_mean(key, &known))),
            })
        }))
    }

    /// The value of a key, or what its absence means.
    pub(super) fn get<T, P: Presence<T>>(&self, key: &Key<T, P>) -> Result<P::Value, ErrorReported> {
        let read = self.item(key.name).map(|item| key.form.read(&item)).transpose()?;
        let missing = || self.fault_at(key.name, format_args!("is missing; expected {}", key.form.form().expected));
        key.presence.value(read).ok_or_else(missing)
    }

    /// As [`get`](Self::get), with a further check of the value, whose message is recorded at the key.
    pub(super) fn get_with<T, P: Presence<T>, V, E: fmt::Display>(
        &self,
        key: &Key<T, P>,
        check: impl FnOnce(P::Value) -> Result<V, E>,
    ) -> Result<V, ErrorReported> {
        check(self.get(key)?).map_err(|message| self.fault_at(key.name, message))
    }

    /// The value of a key, unread.
    pub(super) fn item(&self, name: &str) -> Option<Item<'t>> {
        let (key, value) = self.table.get_key_value(name)?;
        Some(self.item_of(key.span().start, name, value))
    }

    /// The table of a key, which may have the keys of `section` only; `None` without the key.
    pub(super) fn section(&self, section: &'static Section) -> Result<Option<Table<'t>>, ErrorReported> {
        self.item(section.key).map(|item| item.section(section)).transpose()
    }

    /// As [`section`](Self::section), with an empty table without the key.
    pub(super) fn section_or_empty(&self, section: &'static Section) -> Result<Table<'t>, ErrorReported> {
        static EMPTY: std::sync::LazyLock<DeTable<'static>> = std::sync::LazyLock::new(DeTable::new);
        let path = join(&self.path, section.key);
        let empty = Table { diagnostics: self.diagnostics, path, line: None, table: &EMPTY };
        Ok(self.section(section)?.unwrap_or(empty))
    }

    /// Reads each table of an array, which may have the keys of `section` only; an absent array is empty.
    pub(super) fn rows<T>(
        &self,
        section: &'static Section,
        read: impl FnMut(Table<'t>) -> Result<T, ErrorReported>,
    ) -> Result<Vec<T>, ErrorReported> {
        let Some(item) = self.item(section.key) else { return Ok(Vec::new()) };
        let rows = item.elements("an array of tables")?;
        let rows: Vec<Table<'t>> = all(rows.iter().map(|row| row.section(section)))?;
        all(rows.into_iter().map(read))
    }

    /// Keys and values, in the order of the file.
    pub(super) fn items(&self) -> Vec<(&'t str, Item<'t>)> {
        let mut items: Vec<_> = self.table.iter().collect();
        items.sort_by_key(|(key, _)| key.span().start);
        let named = |(key, value): (&'t Spanned<_>, &'t _)| {
            let name: &'t std::borrow::Cow<'t, str> = key.get_ref();
            (&**name, self.item_of(key.span().start, name, value))
        };
        items.into_iter().map(named).collect()
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.table.contains_key(name)
    }

    /// The location of a key, or of the table when it lacks the key.
    pub(super) fn location(&self, name: &str) -> Location {
        match self.item(name) {
            Some(item) => item.location(),
            None => Location { line: self.line, position: Position::Key(join(&self.path, name)) },
        }
    }

    /// Records a fault of the table as a whole.
    pub(super) fn fault(&self, message: impl fmt::Display) -> ErrorReported {
        let location = Location { line: self.line, position: Position::Key(self.path.clone()) };
        self.diagnostics.fault(location, message)
    }

    /// Records a fault of a key.
    pub(super) fn fault_at(&self, name: &str, message: impl fmt::Display) -> ErrorReported {
        self.diagnostics.fault(self.location(name), message)
    }

    /// Records a fault of a location inside of the table.
    pub(super) fn fault_in(&self, location: Location, message: impl fmt::Display) -> ErrorReported {
        self.diagnostics.fault(location, message)
    }

    /// Records that neither of two keys is present, of which one is needed.
    pub(super) fn has_neither(&self, one: &str, other: &str) -> ErrorReported {
        self.fault(format_args!("has neither {one:?} nor {other:?}; expected one of the two"))
    }

    /// Records that two keys are present of which one excludes the other.
    pub(super) fn excludes(&self, name: &str, other: &str) -> ErrorReported {
        self.fault_at(name, format_args!("excludes {other:?}; expected one of the two"))
    }

    /// Records that a key is absent without which another has no use.
    pub(super) fn lacks(&self, name: &str, needed_by: &str) -> ErrorReported {
        self.fault_at(name, format_args!("is missing; {needed_by:?} needs it"))
    }

    /// Records that a value is the same as one before it.
    pub(super) fn duplicate(&self, location: Location, found: &str, first: impl fmt::Display) -> ErrorReported {
        self.fault_in(location, format_args!("{} is there already, as {first}", Quoted(found)))
    }

    /// Records a warning about a key.
    pub(super) fn warn_at(&self, name: &str, advice: Advice) {
        self.diagnostics.warn(self.location(name), advice);
    }

    fn item_of(&self, at: usize, name: &str, value: &'t Spanned<DeValue<'t>>) -> Item<'t> {
        Item {
            diagnostics: self.diagnostics,
            path: join(&self.path, name),
            line: self.diagnostics.line(at),
            value: value.get_ref(),
        }
    }
}

/// A value's type, with the value where it is short.
fn shown(value: &DeValue<'_>) -> String {
    const DIGITS_MAX: usize = 24;
    let integer = value.as_integer().filter(|integer| integer.as_str().len() <= DIGITS_MAX);
    let float = value.as_float().filter(|float| float.as_str().len() <= DIGITS_MAX);
    match (integer, float, value.as_bool()) {
        (Some(integer), _, _) => format!("the integer {integer}"),
        (_, Some(float), _) => format!("the number {float}"),
        (_, _, Some(flag)) => flag.to_string(),
        (None, None, None) => kind(value).to_owned(),
    }
}

/// A value's type, for values that must not be shown.
fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}
