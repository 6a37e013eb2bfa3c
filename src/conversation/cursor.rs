//! Cursor over the words, bytes and texts of one line with its continuations.

use std::borrow::Cow;

use super::fault::{Fault, Problem};

/// Maximum length of an unexpected word in an error, in characters.
const FOUND_CHARS_MAX: usize = 24;

/// Whether `??` may stand for a byte.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Wildcards {
    Exact,
    Open,
}

/// A position in a line and its continuations.
pub(super) struct Cursor<'t> {
    first_line: u32,
    segments: &'t [&'t str],
    segment: usize,
    /// Byte offset in the segment, always between two characters.
    offset: usize,
}

impl<'t> Cursor<'t> {
    /// `segments` is not empty; the first is on `first_line`.
    pub(super) fn new(first_line: u32, segments: &'t [&'t str]) -> Self {
        Self { first_line, segments, segment: 0, offset: 0 }
    }

    fn rest_of_segment(&self) -> &'t str {
        self.segments.get(self.segment).and_then(|text| text.get(self.offset..)).unwrap_or("")
    }

    /// The character here; `None` at the end of a segment.
    pub(super) fn peek(&self) -> Option<char> {
        self.rest_of_segment().chars().next()
    }

    fn bump(&mut self) {
        self.offset += self.peek().map_or(0, char::len_utf8);
    }

    /// Takes the next character if it is this one.
    pub(super) fn take(&mut self, wanted: char) -> bool {
        let here = self.peek() == Some(wanted);
        if here {
            self.bump();
        }
        here
    }

    /// Skips white space, over continuations.
    pub(super) fn skip_space(&mut self) {
        loop {
            match self.peek() {
                Some(c) if c.is_whitespace() => self.bump(),
                Some(_) => return,
                None if self.segment + 1 < self.segments.len() => {
                    self.segment += 1;
                    self.offset = 0;
                }
                None => return,
            }
        }
    }

    /// Takes everything up to white space, a quote or the end.
    pub(super) fn word(&mut self) -> &'t str {
        let rest = self.rest_of_segment();
        let end = rest.find(|c: char| c.is_whitespace() || c == '"').unwrap_or(rest.len());
        self.offset += end;
        &rest[..end]
    }

    /// Takes the next letters.
    pub(super) fn word_of_letters(&mut self) -> &'t str {
        let rest = self.rest_of_segment();
        let end = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
        self.offset += end;
        &rest[..end]
    }

    /// The position, for [`Cursor::fault_within`].
    pub(super) fn position(&self) -> (usize, usize) {
        (self.segment, self.offset)
    }

    /// A fault in the text that [`Cursor::rest`] took at `position`: on its `line`, from 1, at the byte `column`, from
    /// 1.
    pub(super) fn fault_within(
        &self,
        position: &(usize, usize),
        line: usize,
        column: usize,
        problem: Problem,
    ) -> Fault {
        let (mut segment, mut offset) = *position;
        if line > 1 {
            segment += line - 1;
            offset = 0;
        }
        let text = self.segments.get(segment).copied().unwrap_or("");
        let wanted = offset.saturating_add(column.saturating_sub(1)).min(text.len());
        // A parser that counts bytes may point into a character.
        let offset = (0..=wanted).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        Self { first_line: self.first_line, segments: self.segments, segment, offset }.fault(problem)
    }

    /// Takes the rest, with the line breaks between continuations.
    pub(super) fn rest(&mut self) -> String {
        let mut rest = self.rest_of_segment().to_owned();
        for segment in self.segments.iter().skip(self.segment + 1) {
            rest.push('\n');
            rest.push_str(segment);
        }
        self.segment = self.segments.len().saturating_sub(1);
        self.offset = self.segments.last().map_or(0, |last| last.len());
        rest
    }

    /// A fault at this position.
    pub(super) fn fault(&self, problem: Problem) -> Fault {
        let before = self.segments.get(self.segment).and_then(|text| text.get(..self.offset)).unwrap_or("");
        let line = self.first_line.saturating_add(u32::try_from(self.segment).unwrap_or(u32::MAX));
        let column = u32::try_from(before.chars().count()).unwrap_or(u32::MAX).saturating_add(1);
        Fault { line, column, problem }
    }

    /// A fault: something else was expected here.
    pub(super) fn unexpected(&self, expected: impl Into<Cow<'static, str>>) -> Fault {
        self.fault(Problem::Unexpected { expected: expected.into(), found: self.found(), meant: None })
    }

    /// A description of the next text.
    fn found(&self) -> String {
        let rest = self.rest_of_segment();
        match rest.chars().next() {
            None => "the end of the line".to_owned(),
            Some(c) if c.is_whitespace() => "white space".to_owned(),
            Some(_) => shown(rest.split_whitespace().next().unwrap_or(rest)),
        }
    }

    /// Expects white space only.
    pub(super) fn end(&mut self, after: &str) -> Result<(), Fault> {
        self.skip_space();
        match self.peek() {
            None => Ok(()),
            Some('#') => Err(self.unexpected(format!("nothing after {after} (a comment has a line of its own)"))),
            Some(_) => Err(self.unexpected(format!("nothing after {after}"))),
        }
    }

    /// Takes the rest as bytes, in hex and in quotes; `None` is any byte.
    pub(super) fn bytes(&mut self, cells: Wildcards) -> Result<Vec<Option<u8>>, Fault> {
        let mut bytes = Vec::new();
        loop {
            self.skip_space();
            match self.peek() {
                None => return Ok(bytes),
                Some('"') => bytes.extend(self.text()?.into_iter().map(Some)),
                Some('?') if cells == Wildcards::Open => {
                    self.bump();
                    if !self.take('?') {
                        return Err(self.unexpected("a second \"?\" (\"??\" is any one byte)"));
                    }
                    bytes.push(None);
                }
                Some('?') => return Err(self.unexpected("hex digits or quoted text (\"??\" is for \"<\" lines alone)")),
                Some('#') => return Err(self.unexpected("hex digits or quoted text (a comment has a line of its own)")),
                Some(_) => bytes.push(Some(self.hex_byte("hex digits or quoted text")?)),
            }
        }
    }

    fn hex_byte(&mut self, expected: &'static str) -> Result<u8, Fault> {
        let Some(high) = self.peek().and_then(|c| c.to_digit(16)) else {
            return Err(self.unexpected(expected));
        };
        let first = self.peek().unwrap_or_default();
        self.bump();
        let Some(low) = self.peek().and_then(|c| c.to_digit(16)) else {
            return Err(self.unexpected(format!("a second hex digit after \"{first}\"")));
        };
        self.bump();
        // Two hex digits always fit.
        Ok(u8::try_from(high * 16 + low).unwrap_or(u8::MAX))
    }

    /// Takes a quoted text.
    pub(super) fn text(&mut self) -> Result<Vec<u8>, Fault> {
        if !self.take('"') {
            return Err(self.unexpected("a quoted text"));
        }
        let mut bytes = Vec::new();
        loop {
            match self.peek() {
                Some('"') => {
                    self.bump();
                    return Ok(bytes);
                }
                Some('\\') => bytes.push(self.escape()?),
                Some(c) if !c.is_control() => {
                    bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                    self.bump();
                }
                Some(c) => {
                    let expected =
                        "a character that can be seen (write a tab \\t, another byte \\x and two hex digits)";
                    let found = format!("the control character {:02x}", u32::from(c));
                    return Err(self.fault(Problem::Unexpected { expected: expected.into(), found, meant: None }));
                }
                None => return Err(self.unexpected("a closing quote")),
            }
        }
    }

    fn escape(&mut self) -> Result<u8, Fault> {
        let start = self.offset;
        self.bump();
        let byte = match self.peek() {
            Some('r') => b'\r',
            Some('n') => b'\n',
            Some('t') => b'\t',
            Some('0') => 0,
            Some('\\') => b'\\',
            Some('"') => b'"',
            Some('x') => {
                self.bump();
                return self.hex_byte("two hex digits after \"\\x\"");
            }
            _ => {
                // The fault points to the backslash, where the escape begins.
                self.offset = start;
                return Err(self.unexpected(r#"one of the escapes \r \n \t \0 \\ \" \xNN"#));
            }
        };
        self.bump();
        Ok(byte)
    }
}

/// A quoted word, truncated; unescaped if it is printable.
fn shown(word: &str) -> String {
    let (start, rest) = match word.char_indices().nth(FOUND_CHARS_MAX) {
        None => (word, ""),
        Some((end, _)) => (&word[..end], "…"),
    };
    let odd = |c: char| c.is_control() || !(c.is_ascii() || c.is_alphanumeric());
    if start.contains(odd) {
        format!("{start:?}{rest}")
    } else if start.contains(['"', '\\']) {
        format!("`{start}`{rest}")
    } else {
        format!("\"{start}\"{rest}")
    }
}
