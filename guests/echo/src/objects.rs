//! Cuts a stream of JSON objects, written one after the other, into single ones. Knows nothing of their contents.

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

/// The unfinished object at the end of what was read.
///
/// It only counts braces outside of strings, which is enough to find the end of an object that is well-formed; whether it
/// is, its reader will say.
#[derive(Debug, Default)]
pub struct Objects {
    held: Vec<u8>,
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl Objects {
    /// Takes the next bytes and calls `found` for each object that they complete.
    ///
    /// # Errors
    ///
    /// [`Broken`], after which nothing that follows can be understood.
    pub fn push(&mut self, bytes: &[u8], mut found: impl FnMut(&[u8])) -> Result<(), Broken> {
        let mut rest = bytes;
        while let Some(length) = self.scan(rest)? {
            let (head, tail) = rest.split_at(length);
            if self.held.is_empty() {
                found(head.trim_ascii_start());
            } else {
                self.held.extend_from_slice(head);
                found(&core::mem::take(&mut self.held));
            }
            rest = tail;
        }
        let rest = if self.depth == 0 {
            &[]
        } else if self.held.is_empty() {
            rest.trim_ascii_start()
        } else {
            rest
        };
        if self.held.len() + rest.len() > OBJECT_MAX {
            return Err(Broken::TooLong);
        }
        self.held.extend_from_slice(rest);
        Ok(())
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
            objects.push(chunk, |object| all.push(object.to_vec())).unwrap();
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
        assert_eq!(Objects::default().push(b"{} hello", |_| {}), Err(Broken::Stray(b'h')));
        assert_eq!(Objects::default().push(b"}", |_| {}), Err(Broken::Stray(b'}')));
    }

    /// An object may reach the limit, and not pass it.
    #[test]
    fn object_max() {
        let mut objects = Objects::default();
        assert_eq!(objects.push(&vec![b'{'; OBJECT_MAX], |_| {}), Ok(()));
        assert_eq!(objects.push(b"{", |_| {}), Err(Broken::TooLong));
    }
}
