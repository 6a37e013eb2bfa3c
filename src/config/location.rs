//! Locations in a configuration file, and how reports list them.

use std::fmt;

/// The line and the key, or the column, of a fault or a warning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// The line, from 1; absent for a default.
    pub line: Option<usize>,
    pub position: Position,
}

/// A key or, where the file is no TOML and so has no keys, a column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Position {
    /// The path of a key, as in `listeners.modbus.handlers[1]`.
    Key(String),
    /// A column, in characters from 1.
    Column(usize),
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(path) => f.write_str(path),
            Self::Column(column) => write!(f, "column {column}"),
        }
    }
}

/// The path of a key in a table; the empty path is the file itself.
pub(super) fn join(path: &str, key: &str) -> String {
    let bare = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    let key = match !key.is_empty() && key.bytes().all(bare) {
        true => key.to_owned(),
        false => Quoted(key).to_string(),
    };
    if path.is_empty() { key } else { format!("{path}.{key}") }
}

/// A value as errors show it: quoted, in one line, and shortened.
pub(super) struct Quoted<'a>(pub(super) &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const CHARS_MAX: usize = 80;
        match self.0.char_indices().nth(CHARS_MAX) {
            None => write!(f, "{:?}", self.0),
            Some((end, _)) => write!(f, "{:?}…", &self.0[..end]),
        }
    }
}

/// A list of texts in a sentence: `there are "a", "b" and "c"`.
pub(super) struct Alternatives<'a, T>(pub(super) &'a [T]);

impl<T: AsRef<str>> fmt::Display for Alternatives<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0.len() {
            0 => "there is none",
            1 => "there is ",
            _ => "there are ",
        })?;
        for (index, text) in self.0.iter().enumerate() {
            let separator = match index {
                0 => "",
                _ if index + 1 == self.0.len() => " and ",
                _ => ", ",
            };
            write!(f, "{separator}{}", Quoted(text.as_ref()))?;
        }
        Ok(())
    }
}

/// Lines of a report in three columns: the line, the key, the message.
pub(super) struct Columns<'a, T>(pub(super) &'a [(Location, T)]);

impl<T: fmt::Display> fmt::Display for Columns<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // One very long key does not push the messages of all others out of sight.
        const POSITION_CHARS_MAX: usize = 48;
        let lines: Vec<String> = self
            .0
            .iter()
            .map(|(location, _)| location.line.map_or_else(|| "-".to_owned(), |line| line.to_string()))
            .collect();
        let positions: Vec<String> = self.0.iter().map(|(location, _)| location.position.to_string()).collect();
        let line_width = lines.iter().map(String::len).max().unwrap_or(0);
        let position_width = positions
            .iter()
            .map(|position| position.chars().count())
            .filter(|&width| width <= POSITION_CHARS_MAX)
            .max()
            .unwrap_or(0);
        for ((line, position), (_, message)) in lines.iter().zip(&positions).zip(self.0) {
            write!(f, "\n  line {line:>line_width$}  {position:position_width$}   {message}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_are_not_bare_are_quoted() {
        assert_eq!(join("", "gateway"), "gateway");
        assert_eq!(join("listeners", "a-1_B"), "listeners.a-1_B");
        assert_eq!(join("listeners", "a b"), r#"listeners."a b""#);
        assert_eq!(join("listeners", ""), r#"listeners."""#);
        assert_eq!(join("a", "\n"), r#"a."\n""#);
    }

    #[test]
    fn long_values_are_cut() {
        assert_eq!(Quoted(&"é".repeat(80)).to_string().chars().count(), 82);
        assert_eq!(Quoted(&"é".repeat(81)).to_string().chars().count(), 83);
    }

    #[test]
    fn lists_read_like_sentences() {
        assert_eq!(Alternatives::<&str>(&[]).to_string(), "there is none");
        assert_eq!(Alternatives(&["a"]).to_string(), r#"there is "a""#);
        assert_eq!(Alternatives(&["a", "b"]).to_string(), r#"there are "a" and "b""#);
        assert_eq!(Alternatives(&["a", "b", "c"]).to_string(), r#"there are "a", "b" and "c""#);
    }
}
