//! Faults of a peer in the log: a warning for the first of a kind and counts at the end, so that a peer cannot fill the
//! log. Part of a connection's state.

use serde::{Deserialize, Serialize};

use crate::{Adapter, Level};

/// Kinds that are counted by themselves; further ones are counted together.
const KINDS_MAX: usize = 32;
const OTHERS: &str = "others";

/// Counts of the faults of one connection, by kind.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Faults(Vec<(String, u32)>);

impl Faults {
    /// Logs a fault: the first of its kind as a warning, further ones as debug lines.
    pub fn report(&mut self, adapter: &mut dyn Adapter, kind: &str, text: &str) {
        let known = self.0.iter().any(|(known, _)| known == kind);
        let kind = if known || self.0.len() < KINDS_MAX { kind } else { OTHERS };
        let level = match self.0.iter_mut().find(|(known, _)| known == kind) {
            Some((_, count)) => {
                *count = count.saturating_add(1);
                Level::Debug
            }
            None => {
                self.0.push((kind.to_owned(), 1));
                Level::Warn
            }
        };
        adapter.log(level, text);
    }

    /// Logs how many there were of each kind.
    pub fn finish(&self, adapter: &mut dyn Adapter) {
        if !self.0.is_empty() {
            let counts: Vec<_> = self.0.iter().map(|(kind, count)| format!("{kind}: {count}")).collect();
            adapter.log(Level::Info, &format!("faults of this connection: {}", counts.join(", ")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scripted::{Call, Scripted};

    /// One warning a kind, however many faults and kinds there are.
    #[test]
    fn kinds() {
        let mut adapter = Scripted::new();
        let mut faults = Faults::default();
        for kind in 0..50 {
            for _ in 0..3 {
                faults.report(&mut adapter, &format!("kind {kind}"), "text");
            }
        }
        faults.finish(&mut adapter);
        let warnings = adapter.calls.iter().filter(|call| matches!(call, Call::Log(Level::Warn, _))).count();
        assert_eq!(warnings, KINDS_MAX + 1);
        let last = adapter.logged().last().cloned().unwrap_or_default();
        assert!(last.starts_with("faults of this connection: kind 0: 3, kind 1: 3,"), "{last}");
        assert!(last.ends_with("others: 54"), "{last}");
    }
}
