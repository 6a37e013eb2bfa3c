//! Cuts a stream of JSON objects, written one after the other, into single ones. Knows nothing of their contents.

use core::error::Error;
use core::fmt;
use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// The longest object: what a connection may keep of an unfinished one, in bytes.
pub const OBJECT_MAX: usize = 1 << 20;

/// Why a stream cannot be cut any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// A byte between two objects that is neither white space nor `{`.
    Stray(u8),
    /// An object longer than [`OBJECT_MAX`].
    TooLong,
}

impl fmt::Display for Broken {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stray(byte) => write!(out, "expected a JSON object, found byte {byte:#04x}"),
            Self::TooLong => write!(out, "expected an object of at most {OBJECT_MAX} bytes"),
        }
    }
}

impl Error for Broken {}

/// The unfinished object at the end of what was read.
///
/// It only counts braces outside of strings, which is enough to find the end of an object that is well-formed; whether it
/// is, its reader will say.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Objects {
    held: Vec<u8>,
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl Objects {
    /// Takes the next object from the front of `bytes`, the latest to arrive; none when they are used up.
    ///
    /// # Errors
    ///
    /// [`Broken`], after which nothing that follows can be understood.
    pub fn next<'b>(&mut self, bytes: &mut &'b [u8]) -> Result<Option<Cow<'b, [u8]>>, Broken> {
        if self.held.is_empty() {
            *bytes = bytes.trim_ascii_start();
        }
        let found = self.scan(bytes)?;
        let (head, tail) = bytes.split_at(found.unwrap_or(bytes.len()));
        if self.held.len() + head.len() > OBJECT_MAX {
            return Err(Broken::TooLong);
        }
        *bytes = tail;
        if found.is_some() && self.held.is_empty() {
            return Ok(Some(Cow::Borrowed(head)));
        }
        self.held.extend_from_slice(head);
        Ok(found.map(|_| Cow::Owned(core::mem::take(&mut self.held))))
    }

    /// How many of `bytes` it takes to complete an object; none when they do not.
    fn scan(&mut self, bytes: &[u8]) -> Result<Option<usize>, Broken> {
        for (at, &byte) in bytes.iter().enumerate() {
            if self.in_string {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => self.in_string = false,
                    _ => {}
                }
                continue;
            }
            match byte {
                b'{' => self.depth += 1,
                white if self.depth == 0 && white.is_ascii_whitespace() => {}
                stray if self.depth == 0 => return Err(Broken::Stray(stray)),
                b'"' => self.in_string = true,
                b'}' => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        return Ok(Some(at + 1));
                    }
                }
                _ => {}
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &[u8] = br#" {"type":9}{"topic":"}\"{\\","a":{"b":{}}}
        {"type":1} "#;

    fn objects(chunks: &[&[u8]]) -> Vec<Vec<u8>> {
        let mut objects = Objects::default();
        let mut all = Vec::new();
        for chunk in chunks {
            let mut bytes = *chunk;
            while let Some(object) = objects.next(&mut bytes).unwrap() {
                all.push(object.into_owned());
            }
        }
        all
    }

    /// However the stream is cut into three, the objects are the same.
    #[test]
    fn any_cut_gives_the_same_objects() {
        let whole = objects(&[STREAM]);
        assert_eq!(
            whole,
            [br#"{"type":9}"#.to_vec(), br#"{"topic":"}\"{\\","a":{"b":{}}}"#.to_vec(), br#"{"type":1}"#.to_vec()]
        );
        for first in 0..=STREAM.len() {
            for second in first..=STREAM.len() {
                assert_eq!(objects(&[&STREAM[..first], &STREAM[first..second], &STREAM[second..]]), whole);
            }
        }
    }

    /// What is no object is named.
    #[test]
    fn stray_bytes() {
        let mut stream = b"{} hello".as_slice();
        let mut objects = Objects::default();
        assert_eq!(objects.next(&mut stream), Ok(Some(Cow::Borrowed(b"{}".as_slice()))));
        assert_eq!(objects.next(&mut stream), Err(Broken::Stray(b'h')));
        assert_eq!(Objects::default().next(&mut b"}".as_slice()), Err(Broken::Stray(b'}')));
    }

    /// An object may reach the limit, and not pass it.
    #[test]
    fn object_max() {
        let mut objects = Objects::default();
        assert_eq!(objects.next(&mut vec![b'{'; OBJECT_MAX].as_slice()), Ok(None));
        assert_eq!(objects.next(&mut b"{".as_slice()), Err(Broken::TooLong));
    }
}
