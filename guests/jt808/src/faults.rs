//! The peer's faults in the log, so that nobody can fill it.

use polygate_guest::{Adapter, Level};
use serde::{Deserialize, Serialize};

/// How many faults of one connection are logged as warnings; the rest is for those who read debug lines.
pub const WARNINGS_MAX: u32 = 10;

/// Counts what went wrong on one connection.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Faults(u32);

impl Faults {
    /// Logs a fault: a warning while there are few, a debug line after that.
    pub fn report(&mut self, adapter: &mut dyn Adapter, text: &str) {
        let level = if self.0 < WARNINGS_MAX { Level::Warn } else { Level::Debug };
        self.0 = self.0.saturating_add(1);
        adapter.log(level, text);
        if self.0 == WARNINGS_MAX {
            adapter.log(Level::Warn, "further faults of this connection are logged at the level debug");
        }
    }

    /// Says how many there were, if some were not seen as warnings.
    pub fn finish(&self, adapter: &mut dyn Adapter) {
        if self.0 > WARNINGS_MAX {
            adapter.log(Level::Warn, &format!("{} faults on this connection in all", self.0));
        }
    }
}
