//! Secrets, and where they are.

use secrecy::SecretString;

use super::ValueType;
use crate::config::diagnostics::ErrorReported;
use crate::config::fault::Fault;
use crate::config::read::{Item, kind};
use crate::config::schema;

/// Where a secret is.
#[derive(Debug)]
pub(in crate::config) enum SecretSource {
    /// Here.
    ConfigDiff(SecretString),
    /// In an environment variable.
    Env(String),
    /// In a file, relative to the directory of the configuration file.
    File(String),
}

/// A text that is never shown.
#[derive(Debug)]
pub(in crate::config) struct Secret;

impl ValueType for Secret {
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

    fn read(&self, item: &Item<'_>) -> Result<SecretSource, ErrorReported> {
        if let Some(text) = item.value().as_str() {
            return Ok(SecretSource::ConfigDiff(text.into()));
        }
        if !item.value().is_table() {
            // A number may be the secret, written without its quotes.
            let found = kind(item.value()).to_owned();
            return Err(item.fault(Fault::WrongType { expected: self.expected(), found }));
        }
        let table = item.table()?;
        if let Some(told) = table.admit(&[&schema::secret::SECTION], &[]) {
            return Err(told);
        }
        match (table.get(&schema::secret::ENV)?, table.get(&schema::secret::FILE)?) {
            (Some(name), None) => Ok(SecretSource::Env(name)),
            (None, Some(path)) => Ok(SecretSource::File(path)),
            (None, None) => Err(table.fault(Fault::Neither { one: "env", other: "file" })),
            (Some(_), Some(_)) => Err(table.fault_at("env", Fault::Both { other: "file" })),
        }
    }
}
