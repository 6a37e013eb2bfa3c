//! Bounded log of the commands of one handler, for taps and shadows.

use super::dry_run::LOGGED_BYTES;
use crate::conn::{Command, Refused};

/// Maximum bytes of logged commands; further commands are counted and dropped.
const KEPT_BYTES_MAX: usize = 4 << 20;

/// A command and its result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggedCommand {
    pub command: Command,
    pub result: Result<(), Refused>,
}

/// Commands of one handler since the last [`CommandLog::take`].
#[derive(Debug, Default)]
pub struct CommandLog {
    entries: Vec<LoggedCommand>,
    kept_bytes: usize,
    left_out: u64,
}

impl CommandLog {
    pub fn write(&mut self, command: Command, result: Result<(), Refused>) {
        let bytes = self.kept_bytes + LOGGED_BYTES + command.weight();
        if bytes > KEPT_BYTES_MAX {
            self.left_out += 1;
        } else {
            self.kept_bytes = bytes;
            self.entries.push(LoggedCommand { command, result });
        }
    }

    /// Takes the logged commands, in order, and the number of dropped ones (the log holds 4 MiB).
    pub fn take(&mut self) -> (Vec<LoggedCommand>, u64) {
        self.kept_bytes = 0;
        (std::mem::take(&mut self.entries), std::mem::take(&mut self.left_out))
    }
}
