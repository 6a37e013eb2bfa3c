//! The faults and warnings that were found so far.

use std::cell::RefCell;
use std::fmt;

use super::fault::{Fault, Faults};
use super::location::{Location, Position};
use super::warning::{Advice, Warning};

/// Proof that a fault was recorded: where one is returned instead of a value, there will be no
/// configuration, and whoever gets it need not record anything himself.
#[derive(Clone, Copy, Debug)]
pub(super) struct ErrorReported(());

/// Collects what is found, in any order.
pub(super) struct Diagnostics<'t> {
    text: &'t str,
    /// Where each line begins, in bytes.
    lines: Vec<usize>,
    faults: RefCell<Vec<(Location, Fault)>>,
    warnings: RefCell<Vec<Warning>>,
}

impl fmt::Debug for Diagnostics<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the text: secrets may stand in it.
        f.debug_struct("Findings")
            .field("faults", &self.faults)
            .field("warnings", &self.warnings)
            .finish_non_exhaustive()
    }
}

impl<'t> Diagnostics<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        let lines = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { text, lines, faults: RefCell::default(), warnings: RefCell::default() }
    }

    /// The line of a byte, from 1.
    pub(super) fn line(&self, at: usize) -> usize {
        self.lines.partition_point(|&begin| begin <= at)
    }

    /// The place of a byte, for what has no key.
    pub(super) fn column(&self, at: usize) -> Location {
        let line = self.line(at);
        let begin = self.lines.get(line.saturating_sub(1)).copied().unwrap_or(0);
        let before = self.text.get(begin..at).map_or(0, |before| before.chars().count());
        Location { line: Some(line), position: Position::Column(before + 1) }
    }

    pub(super) fn fault(&self, location: Location, fault: Fault) -> ErrorReported {
        self.faults.borrow_mut().push((location, fault));
        ErrorReported(())
    }

    pub(super) fn warn(&self, location: Location, advice: Advice) {
        self.warnings.borrow_mut().push(Warning { location, advice });
    }

    /// The value with the warnings, if nothing was found wrong anywhere.
    pub(super) fn conclude<T>(self, file: &str, value: Result<T, ErrorReported>) -> Result<(T, Vec<Warning>), Faults> {
        let (mut faults, mut warnings) = (self.faults.into_inner(), self.warnings.into_inner());
        match value {
            Ok(value) if faults.is_empty() => {
                warnings.sort_by_key(|warning| warning.location.line);
                Ok((value, warnings))
            }
            // Either there is a fault, or there is the proof of one.
            Ok(_) | Err(ErrorReported(())) => {
                faults.sort_by_key(|(location, _)| location.line);
                Err(Faults::Found { file: file.to_owned(), faults })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_lines_and_columns() {
        let diagnostics = Diagnostics::new("ab\ncé=\n");
        for (at, line, column) in [(0, 1, 1), (2, 1, 3), (3, 2, 1), (6, 2, 3), (8, 3, 1), (99, 3, 1)] {
            assert_eq!(
                diagnostics.column(at),
                Location { line: Some(line), position: Position::Column(column) },
                "{at}"
            );
        }
    }
}
