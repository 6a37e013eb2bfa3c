//! Framing: cuts a peer's stream into frames before its handler gets them. Pure: no socket, no clock, `now` is an
//! argument.
//!
//! A listener has one [`Framing`], shared by all its connections; each connection has a [`Framer`], which holds at most
//! the unfinished frame at the end of the stream, up to the frame limit, and nothing between two frames. Bytes are
//! pushed as they are read; frames are taken one at a time, so that queued frames take no more memory than their bytes,
//! however small they are. No byte is scanned twice for any fragmentation of the stream, except as many as a delimiter
//! has.
//!
//! The terms are those of the guest SDK (`polygate_guest::framing`), with which a guest frames its stream itself.

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

/// Maximum frame size that can be configured, in bytes.
pub(crate) const FRAME_BYTES_MAX: usize = 1 << 20;

/// Maximum length of a delimiter, in bytes.
pub(crate) const DELIMITER_BYTES_MAX: usize = 16;

/// How a stream is cut into frames. Every bound (`max`) is in bytes as they are on the wire, with length and escapes and
/// without delimiter, line feed and flags, as in the guests' SDK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Framing {
    /// Length-prefixed frames.
    Length(LengthPrefixed),
    /// Frames that end with a delimiter.
    Delimiter(Delimited),
    /// Frames of one fixed length.
    Fixed(Fixed),
    /// Lines of text.
    Line(Lines),
    /// Frames between flags (HDLC).
    Escape(Flagged),
    /// Frames with silence between them.
    Gap(Silence),
}

/// Part of a frame that the handler gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deliver {
    /// The whole frame as received.
    Wire,
    /// The payload: without the length and the bytes before it, without the delimiter, without flags and escapes.
    Payload,
}

/// The stream does not match its framing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// A frame over the limit.
    TooLong {
        /// The limit, in bytes.
        max: usize,
        /// The announced length; `None`: no end found.
        found: Option<u64>,
    },
    /// A length smaller than the header.
    TooShort {
        /// The minimum length.
        min: usize,
        /// The announced length.
        found: i64,
    },
    /// Frames of zero bytes: cutting would never end.
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

/// Position of a frame in the bytes that begin with it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Cut {
    /// The part that the handler gets.
    frame: Range<usize>,
    /// Its size on the wire, from 1: the start of the next frame.
    wire_len: usize,
}

impl Framing {
    /// Name in the configuration.
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

    /// The most bytes that one frame may have on the wire, with delimiters; no more of them are ever held.
    pub fn wire_max(&self) -> usize {
        self.max().saturating_add(match self {
            Self::Delimiter(delimited) => delimited.delimiter.len(),
            Self::Line(_) => 1,
            Self::Escape(_) => 2,
            Self::Length(_) | Self::Fixed(_) | Self::Gap(_) => 0,
        })
    }

    /// The bound of a frame in bytes, without delimiters.
    fn max(&self) -> usize {
        match self {
            Self::Length(length) => length.max,
            Self::Delimiter(delimited) => delimited.max,
            Self::Fixed(fixed) => fixed.size,
            Self::Line(lines) => lines.max,
            Self::Escape(flagged) => flagged.max,
            Self::Gap(silence) => silence.max,
        }
    }

    /// Position of the first frame of `bytes`; `None` if it is unfinished. The first `seen` bytes were scanned before,
    /// and `bytes` has at most [`Framing::wire_max`].
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

/// Framer of one stream. Frames are taken with [`Framer::poll_frame`] until there is none; frames that end by silence
/// come from [`Framer::handle_timeout`].
#[derive(Debug)]
pub struct Framer {
    framing: Arc<Framing>,
    /// Not scanned yet.
    arrived: Bytes,
    /// Start of a frame.
    held: Vec<u8>,
    place: Place,
    /// End of the silence.
    silent_at: Option<Instant>,
    skipped: u64,
}

/// State of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Before the first frame, or in skipped bytes.
    Outside,
    /// In a frame, or between two.
    Inside,
    /// After a framing error.
    Broken,
}

impl Framer {
    /// A framer at the start of a stream.
    pub fn new(framing: Arc<Framing>) -> Self {
        let place = match *framing {
            Framing::Escape(_) => Place::Outside,
            Framing::Length(_) | Framing::Delimiter(_) | Framing::Fixed(_) | Framing::Line(_) | Framing::Gap(_) => {
                Place::Inside
            }
        };
        Self { framing, arrived: Bytes::new(), held: Vec::new(), place, silent_at: None, skipped: 0 }
    }

    /// Whether frames end by silence, so that bytes must be pushed as soon as they are read.
    pub fn cuts_by_time(&self) -> bool {
        matches!(*self.framing, Framing::Gap(_))
    }

    /// Appends bytes of the stream, received now.
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

    /// The next frame, or `None` until more bytes are pushed. A payload may be empty.
    ///
    /// # Errors
    ///
    /// [`Broken`], once. All further bytes are skipped.
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
            // The arrived bytes may have been copied behind the held ones; the original is still there.
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

    /// Time of the next [`Framer::handle_timeout`] call; `None` until more bytes arrive.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.silent_at
    }

    /// The frame that silence has ended. Bytes that arrived after the silence, but were pushed before this call, belong
    /// to the frame before it.
    pub fn handle_timeout(&mut self, now: Instant) -> Option<Bytes> {
        if self.silent_at.is_none_or(|silent_at| now < silent_at) {
            return None;
        }
        self.end()
    }

    /// End of the stream, or silence: the last frame, if it needs no more bytes.
    pub fn end(&mut self) -> Option<Bytes> {
        if !self.cuts_by_time() {
            return None;
        }
        self.silent_at = None;
        self.place = Place::Inside;
        let frame = std::mem::take(&mut self.held);
        (!frame.is_empty()).then(|| frame.into())
    }

    /// Bytes of an unfinished frame.
    pub fn unfinished(&self) -> usize {
        self.held.len()
    }

    /// Bytes pushed and not scanned yet, which may contain frames.
    pub fn arrived(&self) -> usize {
        self.arrived.len()
    }

    /// Bytes outside of frames since the last call: between flags too far apart, before the first flag, in a wrong
    /// escape, too many without a silence, or after a broken frame.
    pub fn take_skipped(&mut self) -> u64 {
        std::mem::take(&mut self.skipped)
    }

    fn poll_cut(&mut self, framing: &Framing) -> Result<Option<Bytes>, Broken> {
        let wire_max = framing.wire_max();
        let seen = self.held.len();
        let fits = wire_max.saturating_sub(seen).min(self.arrived.len());
        let found = if seen == 0 {
            framing.cut(&self.arrived[..fits], 0)?
        } else {
            hold(&mut self.held, &self.arrived[..fits], wire_max);
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
            None if seen + fits == wire_max => Err(Broken::TooLong { max: framing.max(), found: None }),
            None => {
                if seen == 0 {
                    hold(&mut self.held, &self.arrived, wire_max);
                }
                self.arrived.clear();
                Ok(None)
            }
        }
    }
}

/// Appends bytes to the held ones, with capacity for `max` at most. The capacity grows by doubling even if the frame
/// announces its length: an announcement alone allocates nothing.
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
