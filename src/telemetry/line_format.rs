//! Fields of a text log record: one record is one line, whatever a peer, a handler or a client put into a value.
//!
//! Control characters, and characters that change the direction of text, are escaped. The field `report` is the exception: the
//! gateway's own reports of several lines (faults of a configuration, backtraces) keep their line breaks, indented, so that no
//! line of them looks like a record.

use std::fmt::{self, Debug, Write};

use tracing::field::{Field, Visit};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::Writer;

/// Name of the field that may have several lines.
const REPORT: &str = "report";

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LineFields;

impl<'writer> FormatFields<'writer> for LineFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut line = Line { writer, is_first: true, result: Ok(()) };
        fields.record(&mut line);
        line.result
    }
}

struct Line<'writer> {
    writer: Writer<'writer>,
    is_first: bool,
    result: fmt::Result,
}

impl Line<'_> {
    fn write(&mut self, field: &Field, value: &dyn Debug) -> fmt::Result {
        let is_first = std::mem::replace(&mut self.is_first, false);
        match field.name() {
            "message" => {
                let space = if is_first { "" } else { " " };
                write!(self.writer, "{space}")?;
                write!(Escaped { writer: &mut self.writer, keeps_lines: false }, "{value:?}")
            }
            REPORT => {
                self.writer.write_str(": ")?;
                write!(Escaped { writer: &mut self.writer, keeps_lines: true }, "{value:?}")
            }
            name => {
                let space = if is_first { "" } else { " " };
                match self.writer.has_ansi_escapes() {
                    true => write!(self.writer, "{space}\x1b[3m{name}\x1b[0m\x1b[2m=\x1b[0m")?,
                    false => write!(self.writer, "{space}{name}=")?,
                }
                write!(Escaped { writer: &mut self.writer, keeps_lines: false }, "{value:?}")
            }
        }
    }
}

impl Visit for Line<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if self.result.is_ok() {
            self.result = self.write(field, value);
        }
    }
}

/// Escapes what is written through it.
struct Escaped<'a, 'writer> {
    writer: &'a mut Writer<'writer>,
    keeps_lines: bool,
}

impl Write for Escaped<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut plain = 0;
        for (at, c) in text.char_indices().filter(|(_, c)| is_unsafe(*c)) {
            self.writer.write_str(&text[plain..at])?;
            plain = at + c.len_utf8();
            match c {
                '\n' if self.keeps_lines => self.writer.write_str("\n    ")?,
                c => write!(self.writer, "{}", c.escape_default())?,
            }
        }
        self.writer.write_str(&text[plain..])
    }
}

/// Control characters; separators of lines and paragraphs; marks, embeddings and isolates of bidirectional text.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{061c}')
        || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::fmt;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(log: impl FnOnce()) -> String {
        let written = Written::default();
        let writer = written.clone();
        let layer =
            fmt::layer().fmt_fields(LineFields).with_writer(move || writer.clone()).with_ansi(false).without_time();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer.with_target(false)), log);
        let bytes = written.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    /// No value makes a second record, moves a cursor or turns the direction of the text.
    #[test]
    fn a_record_is_a_line() {
        let evil = "a\nERROR forged\r\u{1b}[2J\u{202e}";
        let line = logged(|| tracing::info!(client_id = %evil, other = ?evil, text = evil, "got {evil}"));
        assert_eq!(line.lines().count(), 1, "{line}");
        assert!(!line.contains('\u{1b}') && !line.contains('\u{202e}') && !line.contains('\r'), "{line}");
        let begins = r"INFO got a\nERROR forged\r\u{1b}[2J\u{202e} client_id=a\nERROR forged";
        assert!(line.trim_start().starts_with(begins), "{line}");
    }

    /// A report of the gateway keeps its lines, none of which begins as a record does.
    #[test]
    fn a_report_is_indented() {
        let line =
            logged(|| tracing::error!(report = %"two faults:\n  line 1\rx\nINFO forged", "configuration rejected"));
        assert_eq!(line, "ERROR configuration rejected: two faults:\n      line 1\\rx\n    INFO forged\n");
    }
}
