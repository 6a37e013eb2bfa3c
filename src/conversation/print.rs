//! Printer of conversations, in one canonical form: a printed conversation that is parsed and printed again is
//! unchanged.

use std::fmt::{self, Write as _};
use std::time::Duration;

use super::{Action, Conversation, Line, Message, Pattern, Payload, Step};

/// Bytes of hex in one line: with its sign well under a hundred columns.
const HEX_BYTES_A_LINE: usize = 40;

/// Maximum columns of JSON on the line of its topic.
const JSON_COLUMNS_MAX: usize = 100;

impl fmt::Display for Conversation {
    /// Writes the text of the file, with a line break at the end of each line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.items().iter().try_for_each(|item| writeln!(f, "{}", item.content))
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blank => Ok(()),
            // A comment of several lines is as many comments; otherwise its second line would be a step.
            Self::Comment(text) => write!(f, "#{}", text.replace('\n', "\n#")),
            Self::Transport(kind) => write!(f, "transport {kind}"),
            Self::Step(step) => step.fmt(f),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stamp = self.at.map(|at| format!("@{} ", offset_text(at))).unwrap_or_default();
        let mut line = format!("{stamp}{} ", self.action.word());
        match &self.action {
            Action::FromPeer(bytes) => bytes_lines(&mut line, &Pattern::exact(bytes)),
            Action::ToPeer(pattern) => bytes_lines(&mut line, pattern),
            Action::Publish(message) | Action::Deliver(message) => message_lines(&mut line, message),
            Action::Timer(crate::conn::Timer::Keepalive) => line.push_str("keepalive"),
            Action::Close(closer) => line.push_str(closer.word()),
        }
        f.write_str(&line)
    }
}

/// Time since the connection's start: seconds with three decimals, or six if the last three are not zero.
pub(super) fn offset_text(at: Duration) -> String {
    let (seconds, micros) = (at.as_secs(), at.subsec_micros());
    if micros % 1000 == 0 { format!("{seconds}.{:03}s", micros / 1000) } else { format!("{seconds}.{micros:06}s") }
}

/// The printed form of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Form {
    Hex,
    Quoted,
}

impl Form {
    /// Quoted if at least nine of ten bytes are unambiguous text and none is zero, except at the end;
    /// else hex. A frame with a text inside has zeros in its header, and is more readable in hex.
    pub(super) fn of(pattern: &Pattern) -> Self {
        let known: Vec<u8> = pattern.cells().iter().copied().flatten().collect();
        let chars = known.utf8_chunks().flat_map(|chunk| chunk.valid().chars());
        let seen =
            chars.filter(|c| can_be_seen(*c) || matches!(c, '\r' | '\n' | '\t')).map(char::len_utf8).sum::<usize>();
        let body = known.strip_suffix(&[0]).unwrap_or(&known);
        let is_text = !body.is_empty() && !body.contains(&0) && seen * 10 >= known.len() * 9;
        if is_text { Self::Quoted } else { Self::Hex }
    }
}

/// Bytes in the form of a file, on one line.
pub(super) fn bytes_text(pattern: &Pattern, form: Form) -> String {
    runs(pattern, form).map(|run| run.text()).collect::<Vec<_>>().join(" ")
}

fn message_lines(line: &mut String, message: &Message) {
    quote(line, message.topic.as_bytes());
    line.push_str(&format!(" qos={} ", message.qos as u8));
    match &message.payload {
        Payload::Bytes(bytes) if bytes.is_empty() => line.push_str("\"\""),
        Payload::Bytes(bytes) => bytes_lines(line, &Pattern::exact(bytes)),
        Payload::Json(value) => {
            let short = format!("json {value}");
            if line.chars().count() + short.chars().count() <= JSON_COLUMNS_MAX {
                line.push_str(&short);
            } else {
                line.push_str("json");
                for part in format!("{value:#}").split('\n') {
                    line.push_str("\n  ");
                    line.push_str(part);
                }
            }
        }
    }
}

/// Appends bytes to a line; the rest continues below, in the column where the bytes begin.
fn bytes_lines(line: &mut String, pattern: &Pattern) {
    let indent = if line.contains('"') { 2 } else { line.chars().count() };
    let mut first = true;
    for run in runs(pattern, Form::of(pattern)) {
        for piece in run.pieces() {
            if !first {
                line.push('\n');
                line.extend(std::iter::repeat_n(' ', indent));
            }
            first = false;
            line.push_str(&piece);
        }
    }
}

/// Consecutive cells of the same form.
enum Run<'p> {
    Quoted(Vec<u8>),
    Hex(&'p [Option<u8>]),
}

impl Run<'_> {
    fn text(&self) -> String {
        match self {
            Self::Quoted(bytes) => {
                let mut text = String::new();
                quote(&mut text, bytes);
                text
            }
            Self::Hex(cells) => hex(cells),
        }
    }

    /// The text, split into lines: hex by its length, quoted text after each line break in it.
    fn pieces(&self) -> Vec<String> {
        match self {
            Self::Quoted(bytes) => {
                let quoted = |part: &[u8]| Run::Quoted(part.to_vec()).text();
                bytes.split_inclusive(|byte| *byte == b'\n').map(quoted).collect()
            }
            Self::Hex(cells) => cells.chunks(HEX_BYTES_A_LINE).map(hex).collect(),
        }
    }
}

/// The cells as runs: all in hex, or text around the wildcards.
fn runs(pattern: &Pattern, form: Form) -> impl Iterator<Item = Run<'_>> {
    let parts: Vec<&[Option<u8>]> = match form {
        Form::Hex => vec![pattern.cells()],
        Form::Quoted => pattern.cells().chunk_by(|one, other| one.is_some() == other.is_some()).collect(),
    };
    parts.into_iter().map(move |cells| match (form, cells.first()) {
        (Form::Quoted, Some(Some(_))) => Run::Quoted(cells.iter().copied().flatten().collect()),
        _ => Run::Hex(cells),
    })
}

fn hex(cells: &[Option<u8>]) -> String {
    let mut text = String::with_capacity(cells.len() * 2);
    for cell in cells {
        match cell {
            // Writing to a String does not fail.
            Some(byte) => drop(write!(text, "{byte:02x}")),
            None => text.push_str("??"),
        }
    }
    text
}

/// Letters and digits of any script and ASCII signs: certain to be visible and unambiguous.
fn can_be_seen(c: char) -> bool {
    c == ' ' || c.is_ascii_graphic() || c.is_alphanumeric()
}

/// Appends bytes as a quoted text.
fn quote(line: &mut String, bytes: &[u8]) {
    line.push('"');
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' => line.push_str("\\\""),
                '\\' => line.push_str("\\\\"),
                '\r' => line.push_str("\\r"),
                '\n' => line.push_str("\\n"),
                '\t' => line.push_str("\\t"),
                '\0' => line.push_str("\\0"),
                c if can_be_seen(c) => line.push(c),
                c => escape(line, c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        escape(line, chunk.invalid());
    }
    line.push('"');
}

fn escape(line: &mut String, bytes: &[u8]) {
    for byte in bytes {
        line.push_str(&format!("\\x{byte:02x}"));
    }
}
