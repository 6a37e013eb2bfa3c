//! How a new version of a handler takes over.

use super::ValueType;
use crate::config::diagnostics::ErrorReported;
use crate::config::fault::Fault;
use crate::config::read::{Item, kind};
use crate::config::schema;
use crate::rollout::Swap;

/// `"live"`, `"new-connections"`, `"shadow"` or `{ canary = "5%" }`.
#[derive(Debug)]
pub(in crate::config) struct SwapForm;

impl ValueType for SwapForm {
    type Value = Swap;

    fn expected(&self) -> String {
        "\"live\", \"new-connections\", \"shadow\" or { canary = \"5%\" }".to_owned()
    }

    fn name(&self) -> String {
        "`\"live\"`, `\"new-connections\"`, `\"shadow\"` or `{ canary = SHARE }`".to_owned()
    }

    fn range(&self) -> String {
        format!("SHARE in {}", schema::swap::CANARY.form.range())
    }

    fn show(&self, value: &Swap) -> String {
        match value {
            Swap::Canary(share) => format!("{{ canary = \"{share}\" }}"),
            Swap::Live | Swap::NewConnections | Swap::Shadow => format!("\"{value}\""),
        }
    }

    fn read(&self, item: &Item<'_>) -> Result<Swap, ErrorReported> {
        const KNOWN: [(&str, Swap); 3] =
            [("live", Swap::Live), ("new-connections", Swap::NewConnections), ("shadow", Swap::Shadow)];
        if let Some(text) = item.value().as_str() {
            let known = KNOWN.iter().find(|(word, _)| *word == text).map(|(_, swap)| *swap);
            let words = || KNOWN.iter().map(|(word, _)| *word).collect();
            return known.ok_or_else(|| item.fault(Fault::NotOneOf { found: text.to_owned(), known: words() }));
        }
        if !item.value().is_table() {
            let found = kind(item.value()).to_owned();
            return Err(item.fault(Fault::WrongType { expected: self.expected(), found }));
        }
        let table = item.table()?;
        if let Some(told) = table.admit(&[&schema::swap::SECTION], &[]) {
            return Err(told);
        }
        Ok(Swap::Canary(table.get(&schema::swap::CANARY)?))
    }
}
