//! How a guest's connections are kept apart.

use super::ValueType;
use crate::config::diagnostics::ErrorReported;
use crate::config::fault::Fault;
use crate::config::read::{Item, kind};
use crate::config::schema;
use crate::handler::wasm::Isolation;

/// `"connection"` or `{ shared = 4 }`.
#[derive(Debug)]
pub(in crate::config) struct IsolationForm;

impl ValueType for IsolationForm {
    type Value = Isolation;

    fn expected(&self) -> String {
        "\"connection\" or { shared = 4 }".to_owned()
    }

    fn name(&self) -> String {
        "`\"connection\"` or `{ shared = N }`".to_owned()
    }

    fn range(&self) -> String {
        format!("N in {}", schema::isolation::SHARED.form.range())
    }

    fn show(&self, value: &Isolation) -> String {
        match value {
            Isolation::Connection => "\"connection\"".to_owned(),
            Isolation::Shared(count) => format!("{{ shared = {count} }}"),
        }
    }

    fn read(&self, item: &Item<'_>) -> Result<Isolation, ErrorReported> {
        if let Some(text) = item.value().as_str() {
            return match text {
                "connection" => Ok(Isolation::Connection),
                _ => Err(item.fault(Fault::NotOneOf { found: text.to_owned(), known: vec!["connection"] })),
            };
        }
        if !item.value().is_table() {
            let found = kind(item.value()).to_owned();
            return Err(item.fault(Fault::WrongType { expected: self.expected(), found }));
        }
        let table = item.table()?;
        if let Some(told) = table.admit(&[&schema::isolation::SECTION], &[]) {
            return Err(told);
        }
        Ok(Isolation::Shared(table.get(&schema::isolation::SHARED)? as usize))
    }
}
