use super::Operation;
use crate::conn::Refused;

/// What a journal keeps between two looks at it, in bytes; more is counted and left out.
const KEPT_BYTES_MAX: usize = 4 << 20;

/// One thing that a handler asked for, and what it was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it asked for.
    pub operation: Operation,
    /// What it was told.
    pub result: Result<(), Refused>,
}

/// What a handler has asked for since somebody looked last. Bounded, whatever the handler does.
#[derive(Debug, Default)]
pub struct Journal {
    entries: Vec<Entry>,
    kept_bytes: usize,
    left_out: u64,
}

impl Journal {
    /// Writes an operation down.
    pub fn write(&mut self, operation: Operation, result: Result<(), Refused>) {
        let bytes = self.kept_bytes + operation.weight();
        if bytes > KEPT_BYTES_MAX {
            self.left_out += 1;
        } else {
            self.kept_bytes = bytes;
            self.entries.push(Entry { operation, result });
        }
    }

    /// What was written since this was called last, in order, and how many entries more did not fit (4 MiB do).
    pub fn take(&mut self) -> (Vec<Entry>, u64) {
        self.kept_bytes = 0;
        (std::mem::take(&mut self.entries), std::mem::take(&mut self.left_out))
    }
}
