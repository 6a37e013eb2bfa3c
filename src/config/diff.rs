//! Differences between two configuration files, for the log of a reload.

use std::collections::BTreeSet;
use std::fmt;

use toml::Value;

use super::location::join;

/// The keys and values of one configuration file. The values are not shown: secrets are among them.
#[derive(Clone, Default)]
pub struct ConfigSnapshot(toml::Table);

impl fmt::Debug for ConfigSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConfigSnapshot").finish_non_exhaustive()
    }
}

impl ConfigSnapshot {
    /// The text of a file that has been checked.
    pub(super) fn read(text: &str) -> Self {
        // Syntax errors were found before.
        Self(text.parse().unwrap_or_default())
    }

    /// The keys with other values in another file, in alphabetical order; a table that only one of them has is one key.
    /// Secrets in other files or in the environment are not compared.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let mut found = Vec::new();
        compare("", &self.0, &other.0, &mut found);
        found
    }
}

fn compare(path: &str, one: &toml::Table, other: &toml::Table, found: &mut Vec<String>) {
    let keys: BTreeSet<&String> = one.keys().chain(other.keys()).collect();
    for key in keys {
        let path = join(path, key);
        match (one.get(key), other.get(key)) {
            (Some(Value::Table(one)), Some(Value::Table(other))) => compare(&path, one, other, found),
            (one, other) if one == other => {}
            _ => found.push(path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The notation of a value does not matter; tables are compared key by key.
    #[test]
    fn keys_that_differ() {
        let one = ConfigSnapshot::read("a.b = 1\na.c = 'x'\n[t.only]\nk = 1\n[[rows]]\nv = 1\n");
        let other = ConfigSnapshot::read("rows = [{ v = 2 }]\n[a]\nc = \"x\"\nb = 2\n[t.new]\nk = 1\n");
        assert_eq!(one.differences(&other), ["a.b", "rows", "t.new", "t.only"]);
        assert!(one.differences(&one.clone()).is_empty());
        assert!(!format!("{one:?}").contains('x'));
    }
}
