//! A walk through the parsed file that knows at each step where it is.
//!
//! Unlike a deserializer it does not stop at the first fault: every getter records its own and gives
//! [`ErrorReported`] in the value's place, so the caller reads all values before it asks which are there.

use std::fmt;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostics::{Diagnostics, ErrorReported};
use super::fault::Fault;
use super::location::{Location, Position, join};
use super::schema::Section;
use super::suggest::suggest;
use super::value::{Key, Presence, ValueType};
use super::warning::Advice;

/// A value and its place.
#[derive(Clone)]
pub(super) struct Item<'t> {
    diagnostics: &'t Diagnostics<'t>,
    path: String,
    line: usize,
    value: &'t DeValue<'t>,
}

// Neither shows what it holds: secrets may be in it.
impl fmt::Debug for Item<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Item").field("path", &self.path).field("line", &self.line).finish_non_exhaustive()
    }
}

impl fmt::Debug for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table").field("path", &self.path).field("line", &self.line).finish_non_exhaustive()
    }
}

impl<'t> Item<'t> {
    pub(super) fn value(&self) -> &'t DeValue<'t> {
        self.value
    }

    pub(super) fn location(&self) -> Location {
        Location { line: Some(self.line), position: Position::Key(self.path.clone()) }
    }

    pub(super) fn fault(&self, fault: Fault) -> ErrorReported {
        self.diagnostics.fault(self.location(), fault)
    }

    pub(super) fn warn(&self, advice: Advice) {
        self.diagnostics.warn(self.location(), advice);
    }

    /// Records that the value should be something else.
    pub(super) fn wrong_type(&self, expected: impl Into<String>) -> ErrorReported {
        self.fault(Fault::WrongType { expected: expected.into(), found: shown(self.value) })
    }

    /// The value, which must be a string.
    pub(super) fn text(&self, expected: &str) -> Result<&'t str, ErrorReported> {
        self.value.as_str().ok_or_else(|| self.wrong_type(expected))
    }

    /// The elements, of which each has its own place.
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

    /// The value, which must be a table. Its keys are not looked at yet; see [`Table::admit`].
    pub(super) fn table(&self) -> Result<Table<'t>, ErrorReported> {
        let table = self.value.as_table().ok_or_else(|| self.wrong_type("a table"))?;
        Ok(Table { diagnostics: self.diagnostics, path: self.path.clone(), line: Some(self.line), table })
    }

    /// The value, which must be a table with these keys only.
    pub(super) fn section(&self, section: &'static Section) -> Result<Table<'t>, ErrorReported> {
        let table = self.table()?;
        table.admit(&[section], &[]);
        Ok(table)
    }
}

/// A table and its place.
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

    /// Records each key that is in none of `sections`; one that is in one of `elsewhere` with a better word.
    pub(super) fn admit(&self, sections: &[&'static Section], elsewhere: &[&'static Section]) -> Option<ErrorReported> {
        let mut told = None;
        let mut known: Vec<&'static str> = Vec::new();
        for name in sections.iter().flat_map(|section| section.names()) {
            // Tables of several kinds have some keys in common.
            if !known.contains(&name) {
                known.push(name);
            }
        }
        for item in self.items() {
            if known.contains(&item.key) {
                continue;
            }
            let mut others = elsewhere.iter().filter(|section| section.names().any(|name| name == item.key));
            let fault = match (others.next(), others.next(), sections.first()) {
                (Some(only), None, _) => Fault::OtherKind { section: only.title },
                (None | Some(_), _, first) => Fault::UnknownKey {
                    section: first.map_or("", |section| section.title),
                    suggest: suggest(item.key, known.iter().copied()),
                    known: known.clone(),
                },
            };
            told = Some(item.item.fault(fault));
        }
        told
    }

    /// What a key has, or what its absence means.
    pub(super) fn get<F: ValueType, P: Presence<F>>(&self, key: &Key<F, P>) -> Result<P::Value, ErrorReported> {
        match self.item(key.name) {
            Some(item) => key.form.read(&item).map(P::present),
            None => key
                .presence
                .absent()
                .ok_or_else(|| self.fault_at(key.name, Fault::Missing { expected: key.form.expected() })),
        }
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

    /// The tables of an array, which may have the keys of `section` only; none without the key.
    pub(super) fn rows(&self, section: &'static Section) -> Result<Vec<Table<'t>>, ErrorReported> {
        let Some(item) = self.item(section.key) else {
            return Ok(Vec::new());
        };
        let rows = item.elements("an array of tables")?;
        let rows: Vec<_> = rows.iter().map(|row| row.section(section)).collect();
        rows.into_iter().collect()
    }

    /// Everything in the table, in the order of the file.
    pub(super) fn items(&self) -> Vec<Named<'t>> {
        let mut items: Vec<_> = self.table.iter().collect();
        items.sort_by_key(|(key, _)| key.span().start);
        items
            .into_iter()
            .map(|(key, value)| Named {
                key: key.get_ref(),
                item: self.item_of(key.span().start, key.get_ref(), value),
            })
            .collect()
    }

    /// The place of a key, or of the table when it lacks the key.
    pub(super) fn location(&self, name: &str) -> Location {
        match self.item(name) {
            Some(item) => item.location(),
            None => Location { line: self.line, position: Position::Key(join(&self.path, name)) },
        }
    }

    /// Records a fault of the table as a whole.
    pub(super) fn fault(&self, fault: Fault) -> ErrorReported {
        let location = Location { line: self.line, position: Position::Key(self.path.clone()) };
        self.diagnostics.fault(location, fault)
    }

    /// Records a fault of a key.
    pub(super) fn fault_at(&self, name: &str, fault: Fault) -> ErrorReported {
        self.diagnostics.fault(self.location(name), fault)
    }

    /// Records a fault of a place inside of the table.
    pub(super) fn fault_in(&self, location: Location, fault: Fault) -> ErrorReported {
        self.diagnostics.fault(location, fault)
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

/// An item of a table with its key as it was written.
#[derive(Clone, Debug)]
pub(super) struct Named<'t> {
    pub(super) key: &'t str,
    pub(super) item: Item<'t>,
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

/// A value's type, for what must not be shown.
pub(super) fn kind(value: &DeValue<'_>) -> &'static str {
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
