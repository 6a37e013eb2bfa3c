//! What a file says, key for key, to tell what another one says differently.

use std::collections::BTreeSet;
use std::fmt;

use toml::Value;

use super::location::join;

/// The keys and values of a configuration file. Nothing shows the values: secrets are among them.
#[derive(Clone, Default)]
pub struct ConfigDiff(toml::Table);

impl fmt::Debug for ConfigDiff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Written").finish_non_exhaustive()
    }
}

impl ConfigDiff {
    /// The text of a file that has been checked.
    pub(super) fn read(text: &str) -> Self {
        // What is no TOML has been found out before.
        Self(text.parse().unwrap_or_default())
    }

    /// The keys that another file has differently, in alphabetical order; a table that only one of them has is one key.
    /// A secret that is elsewhere, in another file or in the environment, is not looked at.
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

    /// Values that are written in another way are the same; tables are compared key for key.
    #[test]
    fn keys_that_differ() {
        let one = ConfigDiff::read("a.b = 1\na.c = 'x'\n[t.only]\nk = 1\n[[rows]]\nv = 1\n");
        let other = ConfigDiff::read("rows = [{ v = 2 }]\n[a]\nc = \"x\"\nb = 2\n[t.new]\nk = 1\n");
        assert_eq!(one.differences(&other), ["a.b", "rows", "t.new", "t.only"]);
        assert!(one.differences(&one.clone()).is_empty());
        assert!(!format!("{one:?}").contains('x'));
    }
}
