//! Finds the frames in a stream of bytes that arrives in whatever pieces. Pure, and bounded: what is unfinished is kept, and
//! never more of it than one frame may have.
//!
//! A kind of framing is a constant, what it holds between two events is part of the connection's state:
//!
//! ```
//! use polygate_guest::framing::{Framing, Held, Lines};
//!
//! const LINES: Lines = Lines { max: 1024 };
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut held = Held::default();
//! let mut found = Vec::new();
//! for mut bytes in [b"HELLO 1".as_slice(), b"7\r\nT=21".as_slice()] {
//!     while let Some(line) = LINES.next(&mut held, &mut bytes)? {
//!         found.push(line.into_owned());
//!     }
//! }
//! assert_eq!(found, [b"HELLO 17"]);
//! assert_eq!(held.len(), 4);
//! # Ok(())
//! # }
//! ```
//!
//! | | frames that |
//! |---|---|
//! | [`Lines`] | end with a line feed |
//! | [`Delimited`] | end with certain bytes |
//! | [`Fixed`] | have one length |
//! | [`LengthPrefixed`] | say how long they are |
//! | [`Flagged`] | stand between flags, with [`Escapes`] for what may not stand in them |
//!
//! After an error nothing that follows can be understood, so it is best passed on with `?`, which ends the connection. Only
//! [`Flagged`] finds its way back into a broken stream, and has no errors.

mod delimited;
mod fixed;
mod flagged;
mod length;

use core::error::Error;
use core::fmt;
use core::ops::Range;
use std::borrow::Cow;

use serde::{Deserialize, Serialize};

pub use delimited::{Delimited, Lines};
pub use fixed::Fixed;
pub use flagged::{Between, Escapes, Flagged, Found, WrongEscape};
pub use length::{LengthPrefixed, Order, Width};

/// The unfinished frame at the end of what has arrived. Empty, it takes no memory beside itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held(Vec<u8>);

impl Held {
    /// How many bytes are held.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the stream stands between two frames.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Where a frame lies in the bytes that begin with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// What the handler gets of it.
    pub frame: Range<usize>,
    /// Its bytes on the wire, from 1: where the next one begins.
    pub wire_len: usize,
}

/// Why a stream cannot be cut any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// A frame over the bound.
    TooLong {
        /// The bound, in bytes on the wire.
        max: usize,
        /// The length that the frame says it has; none: its end has not come.
        found: Option<u64>,
    },
    /// A length too small for the frame's own beginning.
    TooShort {
        /// The bytes that every frame has.
        min: usize,
        /// The length that the frame says it has.
        found: i64,
    },
    /// A frame of no bytes: cutting would never end.
    Empty,
}

impl fmt::Display for Broken {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong { max, found: Some(found) } => {
                write!(out, "expected a frame of at most {max} bytes, found one of {found}")
            }
            Self::TooLong { max, found: None } => write!(out, "expected a frame's end within {max} bytes, found none"),
            Self::TooShort { min, found } => {
                write!(out, "expected a frame of at least {min} bytes, found one of {found}")
            }
            Self::Empty => write!(out, "expected a frame, found one of no bytes"),
        }
    }
}

impl Error for Broken {}

/// How frames are told apart. The first two functions say it; the third does the work.
pub trait Framing {
    /// The most bytes that one frame may have on the wire; no more than these are ever held.
    fn wire_max(&self) -> usize;

    /// Where the frame that `bytes` begin with lies; none when it is unfinished. Of `bytes`, the first `seen` were
    /// unfinished before. There are never more than [`Framing::wire_max`] of them.
    ///
    /// # Errors
    ///
    /// [`Broken`]: they are the beginning of no frame.
    fn cut(&self, bytes: &[u8], seen: usize) -> Result<Option<Cut>, Broken>;

    /// Takes the next frame from the front of `bytes`, the latest to arrive; none when `bytes` are used up, and what is
    /// unfinished is held. A frame that came in one piece is borrowed from them.
    ///
    /// # Errors
    ///
    /// [`Broken`]. What was held is given up.
    fn next<'b>(&self, held: &mut Held, bytes: &mut &'b [u8]) -> Result<Option<Cow<'b, [u8]>>, Broken> {
        let Held(unfinished) = held;
        let seen = unfinished.len();
        let arrived = *bytes;
        let fits = self.wire_max().saturating_sub(seen).min(arrived.len());
        let (head, tail) = arrived.split_at(fits);
        let found = if seen == 0 {
            self.cut(head, 0)
        } else {
            unfinished.extend_from_slice(head);
            self.cut(unfinished, seen)
        };
        match found {
            Ok(Some(Cut { wire_len: 0, .. })) => {
                *held = Held::default();
                Err(Broken::Empty)
            }
            Ok(Some(Cut { frame, wire_len })) => {
                *bytes = arrived.get(wire_len.saturating_sub(seen)..).unwrap_or_default();
                Ok(Some(if seen == 0 {
                    Cow::Borrowed(head.get(frame).unwrap_or_default())
                } else {
                    let mut whole = std::mem::take(unfinished);
                    whole.truncate(frame.end);
                    whole.drain(..frame.start.min(frame.end));
                    Cow::Owned(whole)
                }))
            }
            Ok(None) if tail.is_empty() && seen + fits < self.wire_max() => {
                if seen == 0 {
                    unfinished.extend_from_slice(head);
                }
                *bytes = tail;
                Ok(None)
            }
            Ok(None) => {
                *held = Held::default();
                Err(Broken::TooLong { max: self.wire_max(), found: None })
            }
            Err(broken) => {
                *held = Held::default();
                Err(broken)
            }
        }
    }
}

#[cfg(test)]
mod tests;
