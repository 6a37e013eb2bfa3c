//! Cuts a peer's stream into frames before its handler sees it. Pure: no socket, no clock, `now` is an argument.
//!
//! A listener has one [`Framing`], shared by all its connections; each of them has a [`Framer`], which holds the unfinished
//! frame at the end of what has arrived, never more of it than one frame may have, and nothing between two frames. Bytes go
//! in as they are read; frames are taken out one at a time, so that what waits for a handler takes no more memory than
//! the bytes themselves, however small its frames are. No byte is looked at twice, however the stream is cut, but for as many
//! as a delimiter has.
//!
//! The words are those of the guests' SDK (`polygate_guest::framing`), with which a guest cuts its stream itself.

mod delimited;
mod fixed;
mod flagged;
mod length;
mod silence;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Buf, Bytes};

pub use delimited::{Delimited, Lines};
pub use fixed::Fixed;
pub use flagged::{Escapes, Flagged};
pub use length::{LengthPrefixed, Order, Width};
pub use silence::Silence;

/// The largest frame that a listener can be given, in bytes.
pub(crate) const FRAME_BYTES_MAX: usize = 1 << 20;

/// The longest delimiter, in bytes.
pub(crate) const DELIMITER_BYTES_MAX: usize = 16;

/// How the frames of a stream are told apart. Every bound is in bytes as they are on the wire, with all that belongs to
/// the frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Framing {
    /// They say how long they are.
    Length(LengthPrefixed),
    /// They end with certain bytes.
    Delimiter(Delimited),
    /// They have one length.
    Fixed(Fixed),
    /// They end with a line feed.
    Line(Lines),
    /// They stand between flags.
    Escape(Flagged),
    /// There is silence between them.
    Gap(Silence),
}

/// What the handler gets of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deliver {
    /// All of it, as it came.
    Wire,
    /// What it carries: without the length and what stands before it, without the delimiter, without flags and escapes.
    Payload,
}

/// Why a stream cannot be cut any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// A frame over the bound.
    TooLong {
        /// The bound, in bytes.
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
    /// A framing with frames of no bytes: cutting would never end.
    Empty,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong { max, found: Some(found) } => {
                write!(f, "expected a frame of at most {max} bytes, found one of {found}")
            }
            Self::TooLong { max, found: None } => write!(f, "expected a frame's end within {max} bytes, found none"),
            Self::TooShort { min, found } => {
                write!(f, "expected a frame of at least {min} bytes, found one of {found}")
            }
            Self::Empty => write!(f, "expected a frame, found one of no bytes"),
        }
    }
}

impl std::error::Error for Broken {}

/// Where a frame lies in the bytes that begin with it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Cut {
    /// What the handler gets of it.
    frame: Range<usize>,
    /// Its bytes on the wire, from 1: where the next one begins.
    wire_len: usize,
}

impl Framing {
    /// Its name in the configuration.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Length(_) => "length",
            Self::Delimiter(_) => "delimiter",
            Self::Fixed(_) => "fixed",
            Self::Line(_) => "line",
            Self::Escape(_) => "escape",
            Self::Gap(_) => "gap",
        }
    }

    /// The most bytes that one frame may have on the wire; no more of them are ever held.
    pub fn wire_max(&self) -> usize {
        match self {
            Self::Length(length) => length.max,
            Self::Delimiter(delimited) => delimited.max,
            Self::Fixed(fixed) => fixed.size,
            Self::Line(lines) => lines.max,
            Self::Escape(flagged) => flagged.max,
            Self::Gap(silence) => silence.max,
        }
    }

    /// Where the frame that `bytes` begin with lies; none when it is unfinished. Of `bytes`, the first `seen` were
    /// unfinished before, and there are at most [`Framing::wire_max`] of them.
    fn cut(&self, bytes: &[u8], seen: usize) -> Result<Option<Cut>, Broken> {
        match self {
            Self::Length(length) => length.cut(bytes),
            Self::Delimiter(delimited) => delimited.cut(bytes, seen),
            Self::Fixed(fixed) => fixed.cut(bytes),
            Self::Line(lines) => Ok(lines.cut(bytes, seen)),
            Self::Escape(_) | Self::Gap(_) => Ok(None),
        }
    }
}

/// Cuts one stream. What is pushed is taken out with [`Framer::poll_frame`] until there is no more; frames that only
/// silence ends come out of [`Framer::handle_timeout`].
#[derive(Debug)]
pub struct Framer {
    framing: Arc<Framing>,
    /// Not looked at yet.
    arrived: Bytes,
    /// The beginning of a frame.
    held: Vec<u8>,
    place: Place,
    /// When the silence is long enough.
    silent_at: Option<Instant>,
    skipped: u64,
}

/// Where the stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Before the first frame, or in what is skipped.
    Outside,
    /// In a frame, or between two.
    Inside,
    /// Where nothing can be understood any more.
    Broken,
}

impl Framer {
    /// Stands before the first byte of a stream.
    pub fn new(framing: Arc<Framing>) -> Self {
        let place = match *framing {
            Framing::Escape(_) => Place::Outside,
            Framing::Length(_) | Framing::Delimiter(_) | Framing::Fixed(_) | Framing::Line(_) | Framing::Gap(_) => {
                Place::Inside
            }
        };
        Self { framing, arrived: Bytes::new(), held: Vec::new(), place, silent_at: None, skipped: 0 }
    }

    /// Whether only time tells where a frame ends, so that bytes must be pushed when they are read.
    pub fn cuts_by_time(&self) -> bool {
        matches!(*self.framing, Framing::Gap(_))
    }

    /// The next bytes of the stream, which came now.
    pub fn push(&mut self, now: Instant, bytes: Bytes) {
        if let Framing::Gap(silence) = *self.framing {
            if !bytes.is_empty() {
                self.silent_at = now.checked_add(silence.silence);
                self.hold_until_silence(&bytes, silence.max);
            }
        } else if self.place == Place::Broken {
            self.skipped += bytes.len() as u64;
        } else if self.arrived.is_empty() {
            self.arrived = bytes;
        } else {
            self.arrived = [&*self.arrived, &*bytes].concat().into();
        }
    }

    /// The next frame, or none before more bytes are pushed. It may have no bytes, where only the payload is asked for.
    ///
    /// # Errors
    ///
    /// [`Broken`], once. All that follows is skipped.
    pub fn poll_frame(&mut self) -> Result<Option<Bytes>, Broken> {
        if self.arrived.is_empty() {
            return Ok(None);
        }
        let framing = Arc::clone(&self.framing);
        let unfinished = self.held.len();
        let found = match &*framing {
            Framing::Escape(flagged) => Ok(self.poll_flagged(flagged)),
            Framing::Length(_) | Framing::Delimiter(_) | Framing::Fixed(_) | Framing::Line(_) | Framing::Gap(_) => {
                self.poll_cut(&framing)
            }
        };
        if found.is_err() {
            self.place = Place::Broken;
            // What arrived may have been copied behind what was held; it is still there.
            self.skipped += (unfinished + self.arrived.len()) as u64;
            self.held = Vec::new();
            self.arrived.clear();
        }
        if self.arrived.is_empty() {
            // An empty rest would keep the whole read in memory.
            self.arrived = Bytes::new();
        }
        found
    }

    /// When [`Framer::handle_timeout`] is to be called next; none: when more bytes have come.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.silent_at
    }

    /// The frame that is finished because nothing has come since. What is told in time has no part in it: bytes that came
    /// after the silence, but were pushed before this was called, belong to the frame before it.
    pub fn handle_timeout(&mut self, now: Instant) -> Option<Bytes> {
        if self.silent_at.is_none_or(|silent_at| now < silent_at) {
            return None;
        }
        self.end()
    }

    /// The stream has ended, or is silent: the last frame, if no more was needed to finish it.
    pub fn end(&mut self) -> Option<Bytes> {
        if !self.cuts_by_time() {
            return None;
        }
        self.silent_at = None;
        self.place = Place::Inside;
        let frame = std::mem::take(&mut self.held);
        (!frame.is_empty()).then(|| frame.into())
    }

    /// Bytes of a frame whose end has not come.
    pub fn unfinished(&self) -> usize {
        self.held.len()
    }

    /// Bytes that were pushed and not looked at yet, in which there may be frames.
    pub fn arrived(&self) -> usize {
        self.arrived.len()
    }

    /// Bytes that are in no frame, since this was last asked: between flags that are too far apart, before the first
    /// flag, in a wrong escape, too many without a silence, or after a broken frame.
    pub fn take_skipped(&mut self) -> u64 {
        std::mem::take(&mut self.skipped)
    }

    fn poll_cut(&mut self, framing: &Framing) -> Result<Option<Bytes>, Broken> {
        let max = framing.wire_max();
        let seen = self.held.len();
        let fits = max.saturating_sub(seen).min(self.arrived.len());
        let found = if seen == 0 {
            framing.cut(&self.arrived[..fits], 0)?
        } else {
            hold(&mut self.held, &self.arrived[..fits], max);
            framing.cut(&self.held, seen)?
        };
        match found {
            Some(Cut { wire_len: 0, .. }) => Err(Broken::Empty),
            Some(Cut { frame, wire_len }) => {
                let whole = if seen == 0 {
                    self.arrived.split_to(wire_len)
                } else {
                    self.arrived.advance(wire_len.saturating_sub(seen));
                    self.held.truncate(wire_len);
                    std::mem::take(&mut self.held).into()
                };
                Ok(Some(whole.slice(frame)))
            }
            None if seen + fits == max => Err(Broken::TooLong { max, found: None }),
            None => {
                if seen == 0 {
                    hold(&mut self.held, &self.arrived, max);
                }
                self.arrived.clear();
                Ok(None)
            }
        }
    }
}

/// Puts bytes behind those that are held, with room for `max` at most. They grow by halves like any vector, and for a
/// frame that says how long it is too: a peer that only says so gets no memory for it.
fn hold(held: &mut Vec<u8>, bytes: &[u8], max: usize) {
    let len = held.len() + bytes.len();
    if len > held.capacity() {
        let capacity = held.capacity().saturating_mul(2).min(max).max(len);
        held.reserve_exact(capacity - held.len());
    }
    held.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests;
