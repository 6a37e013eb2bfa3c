//! How a connection's stream becomes frames. What waits for the handler is the stream as it was read, and frames are cut
//! off it when the handler is ready for the next: however small they are, they take no more memory than their bytes. Frames
//! that only silence ends are cut while the stream is read, since nothing tells later when its bytes came.

use std::time::Instant;

use bytes::Bytes;

use super::{Connection, Input};
use crate::conn::{CloseReason, Event};

impl Connection {
    /// The next event that waits: with framing, one whole frame at a time.
    pub(super) fn next_waiting(&mut self) -> Option<Event> {
        loop {
            if let Some(frame) = self.next_frame() {
                return Some(Event::ReceivedBytes(frame));
            }
            match (self.waiting.pop()?, &mut self.framer) {
                (Event::ReceivedBytes(bytes), Some(framer)) if !framer.cuts_by_time() => {
                    framer.push(Instant::now(), bytes);
                }
                (event, _) => return Some(event),
            }
        }
    }

    fn next_frame(&mut self) -> Option<Bytes> {
        let found = self.framer.as_mut()?.poll_frame();
        self.count_skipped();
        found.unwrap_or_else(|broken| {
            // The frames before it have been handed on, and what follows it is skipped.
            self.state.close(CloseReason::FramingBroken(broken.to_string()));
            None
        })
    }

    /// Bytes of a stream have been read.
    pub(super) fn push_received(&mut self, bytes: &[u8]) {
        match &mut self.framer {
            Some(framer) if framer.cuts_by_time() => {
                framer.push(Instant::now(), Bytes::copy_from_slice(bytes));
                self.count_skipped();
            }
            _ => self.waiting.push_bytes(bytes),
        }
    }

    /// Whether nothing waits in which there may be an event.
    pub(super) fn nothing_waits(&self) -> bool {
        self.waiting.is_empty() && self.framer.as_ref().is_none_or(|framer| framer.arrived() == 0)
    }

    /// Bytes from the peer that are held, those of an unfinished frame among them.
    pub(super) fn inbound_bytes(&self) -> usize {
        self.waiting.bytes() + self.framer.as_ref().map_or(0, |framer| framer.arrived() + framer.unfinished())
    }

    /// Whether the socket may be read. An unfinished frame alone does not keep it from being read, whatever the bound is:
    /// nothing else could finish it.
    pub(super) fn has_room_for_bytes(&self) -> bool {
        match &self.framer {
            None => self.waiting.has_room_for_bytes(),
            Some(framer) => {
                (self.waiting.bytes() == 0 && framer.arrived() == 0)
                    || self.waiting.has_room_beside(framer.arrived() + framer.unfinished())
            }
        }
    }

    /// When a frame is finished unless more is read. While the socket is not read, silence is ours and not the peer's.
    pub(super) fn silence_deadline(&self) -> Option<Instant> {
        self.framer.as_ref().and_then(|framer| framer.poll_timeout()).filter(|_| self.may_read())
    }

    /// Time has passed, in which nothing was read.
    pub(super) fn handle_silence(&mut self, now: Instant) {
        if self.may_read()
            && let Some(frame) = self.framer.as_mut().and_then(|framer| framer.handle_timeout(now))
        {
            self.waiting.push_whole(frame);
        }
    }

    /// Nothing more is read, which is silence too.
    pub(super) fn end_frames(&mut self) {
        if let Some(frame) = self.framer.as_mut().and_then(|framer| framer.end()) {
            self.waiting.push_whole(frame);
        }
    }

    /// The connection ends, and with it a frame that the peer has not finished.
    pub(super) fn drop_unfinished(&mut self) {
        let unfinished = self.framer.take().map_or(0, |framer| framer.unfinished());
        if unfinished > 0 && matches!(self.input, Input::Ended(_)) {
            self.count_unframed(unfinished as u64, "the stream ended in the middle of a frame");
        }
    }

    fn count_skipped(&mut self) {
        let skipped = self.framer.as_mut().map_or(0, |framer| framer.take_skipped());
        if skipped > 0 {
            self.count_unframed(skipped, "bytes that are in no frame were skipped");
        }
    }

    fn count_unframed(&self, bytes: u64, what: &'static str) {
        self.shared.metrics.unframed_bytes.inc_by(bytes);
        tracing::debug!(conn = %self.conn(), listener = %self.shared.options.listener, bytes, "{what}");
    }
}
