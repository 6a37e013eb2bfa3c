//! Bounded log of the commands of one handler, for taps and shadows.

use super::dry_run::LOGGED_BYTES;
use crate::conn::{Command, Refused};

/// What a journal keeps between two looks at it, in bytes; more is counted and left out.
const KEPT_BYTES_MAX: usize = 4 << 20;

/// One thing that a handler asked for, and what it was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggedCommand {
    /// What it asked for.
    pub command: Command,
    /// What it was told.
    pub result: Result<(), Refused>,
}

/// What a handler has asked for since somebody looked last. Bounded, whatever the handler does.
#[derive(Debug, Default)]
pub struct CommandLog {
    entries: Vec<LoggedCommand>,
    kept_bytes: usize,
    left_out: u64,
}

impl CommandLog {
    /// Writes an operation down.
    pub fn write(&mut self, command: Command, result: Result<(), Refused>) {
        let bytes = self.kept_bytes + LOGGED_BYTES + command.weight();
        if bytes > KEPT_BYTES_MAX {
            self.left_out += 1;
        } else {
            self.kept_bytes = bytes;
            self.entries.push(LoggedCommand { command, result });
        }
    }

    /// What was written since this was called last, in order, and how many entries more did not fit (4 MiB do).
    pub fn take(&mut self) -> (Vec<LoggedCommand>, u64) {
        self.kept_bytes = 0;
        (std::mem::take(&mut self.entries), std::mem::take(&mut self.left_out))
    }
}
