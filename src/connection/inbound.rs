//! Inbound side of a connection: bytes of the peer and messages of its subscriptions, queued for the handler, cut into frames,
//! and held to the device's rates. Pure: no socket, `now` is an argument.
//!
//! The queue holds a stream as it was read; frames are cut when the handler is ready for the next one, so that small frames take
//! no more memory than their bytes. Frames that only silence ends are cut as the stream is read, because the arrival
//! times of its bytes are not kept.

use std::time::Instant;

use bytes::Bytes;

use super::event_queue::EventQueue;
use super::ingress_limit::{Exceeded, IngressLimiter, Rates};
use crate::conn::{CloseReason, Event, Message, Timer};
use crate::framing::{Broken, Framer};

/// Whether more bytes can come from the peer.
#[derive(Debug)]
enum Input {
    Open,
    /// A write found the stream reset; what the peer sent before can still be read.
    Reset(CloseReason),
    Ended(CloseReason),
}

#[derive(Debug)]
pub(super) struct Inbound {
    queue: EventQueue,
    /// `None`: the handler gets each read.
    framer: Option<Box<Framer>>,
    limiter: IngressLimiter,
    /// The stream is not read until then, because its device exceeded a rate.
    throttled_until: Option<Instant>,
    input: Input,
    received_bytes: u64,
}

impl Inbound {
    /// At `bytes_max` queued bytes the socket is not read; the read that reaches the bound may exceed it.
    pub(super) fn new(bytes_max: usize, framer: Option<Box<Framer>>, now: Instant) -> Self {
        Self {
            queue: EventQueue::new(bytes_max),
            framer,
            limiter: IngressLimiter::new(now),
            throttled_until: None,
            input: Input::Open,
            received_bytes: 0,
        }
    }

    /// Bytes that a stream socket was read for. Returns whether reads are throttled from now on.
    pub(super) fn push_bytes(&mut self, rates: &Rates, now: Instant, bytes: &[u8]) -> bool {
        self.received_bytes += bytes.len() as u64;
        match &mut self.framer {
            Some(framer) if framer.cuts_by_time() => framer.push(now, Bytes::copy_from_slice(bytes)),
            _ => self.queue.push_bytes(bytes),
        }
        if *rates == Rates::default() {
            return false;
        }
        self.limiter.charge(rates, now, bytes.len());
        self.throttled_until = self.limiter.exceeded(rates, now).map(|(until, _)| until);
        self.throttled_until.is_some()
    }

    /// A datagram of the peer.
    ///
    /// # Errors
    ///
    /// The rate that the device exceeds; the datagram is dropped.
    pub(super) fn push_datagram(&mut self, rates: &Rates, now: Instant, datagram: Bytes) -> Result<(), Exceeded> {
        self.received_bytes += datagram.len() as u64;
        if let Some((_, exceeded)) = self.limiter.exceeded(rates, now) {
            return Err(exceeded);
        }
        self.limiter.charge(rates, now, datagram.len());
        self.queue.push_datagram(datagram);
        Ok(())
    }

    pub(super) fn push_message(&mut self, message: Message) {
        self.queue.push_message(message);
    }

    pub(super) fn push_timer(&mut self, timer: Timer) {
        self.queue.push_timer(timer);
    }

    /// The oldest queued event: with framing one whole frame, and at most `messages_max` messages.
    ///
    /// # Errors
    ///
    /// The stream is not framed as configured. The frames before were returned; the bytes behind are skipped.
    pub(super) fn poll_event(&mut self, now: Instant, messages_max: usize) -> Result<Option<Event>, Broken> {
        loop {
            if let Some(framer) = &mut self.framer
                && let Some(frame) = framer.poll_frame()?
            {
                return Ok(Some(Event::ReceivedBytes(frame)));
            }
            match (self.queue.pop(messages_max), &mut self.framer) {
                (Some(Event::ReceivedBytes(bytes)), Some(framer)) if !framer.cuts_by_time() => framer.push(now, bytes),
                (event, _) => return Ok(event),
            }
        }
    }

    /// Whether no event can follow without another read.
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.framer.as_ref().is_none_or(|framer| framer.arrived() == 0)
    }

    /// Bytes held, those of an unfinished frame included.
    pub(super) fn bytes(&self) -> usize {
        self.queue.bytes() + self.framer.as_ref().map_or(0, |framer| framer.arrived() + framer.unfinished())
    }

    /// Number of messages held.
    pub(super) fn messages(&self) -> usize {
        self.queue.messages()
    }

    /// Bytes received since the start.
    pub(super) fn received_bytes(&self) -> u64 {
        self.received_bytes
    }

    /// Whether the socket may be read.
    pub(super) fn may_read(&self) -> bool {
        !matches!(self.input, Input::Ended(_)) && !self.is_paused()
    }

    /// Whether reads are paused by back-pressure or by a rate: the silence is the gateway's, not the peer's.
    pub(super) fn is_paused(&self) -> bool {
        !self.has_room() || self.throttled_until.is_some()
    }

    /// An unfinished frame alone does not stop reads, whatever the bound is: nothing else could finish it.
    fn has_room(&self) -> bool {
        match &self.framer {
            None => self.queue.has_room_for_bytes(),
            Some(framer) => {
                (self.queue.bytes() == 0 && framer.arrived() == 0)
                    || self.queue.has_room_beside(framer.arrived() + framer.unfinished())
            }
        }
    }

    /// When [`Inbound::handle_timeout`] has something to do: silence ends a frame, or throttled reads resume.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let silence = self.framer.as_ref().and_then(|framer| framer.poll_timeout()).filter(|_| self.may_read());
        silence.into_iter().chain(self.throttled_until).min()
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if self.may_read()
            && let Some(frame) = self.framer.as_mut().and_then(|framer| framer.handle_timeout(now))
        {
            self.queue.push_datagram(frame);
        }
        self.throttled_until = self.throttled_until.filter(|until| *until > now);
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(self.input, Input::Open)
    }

    /// Why no more bytes come, once they have ended.
    pub(super) fn ended(&self) -> Option<&CloseReason> {
        match &self.input {
            Input::Ended(reason) => Some(reason),
            Input::Open | Input::Reset(_) => None,
        }
    }

    /// A write found the stream broken. What the peer sent before can still be read; `reason` is why it ends after that.
    pub(super) fn reset(&mut self, reason: CloseReason) {
        if self.is_open() {
            self.input = Input::Reset(reason);
        } else {
            self.end(reason);
        }
    }

    /// No more bytes come, which ends a frame by silence too. The first reason stays.
    pub(super) fn end(&mut self, reason: CloseReason) {
        self.input = match std::mem::replace(&mut self.input, Input::Open) {
            Input::Open => Input::Ended(reason),
            Input::Reset(reason) | Input::Ended(reason) => Input::Ended(reason),
        };
        if let Some(frame) = self.framer.as_mut().and_then(|framer| framer.end()) {
            self.queue.push_datagram(frame);
        }
    }

    /// Bytes that belong to no frame and were skipped since the last call.
    pub(super) fn take_skipped(&mut self) -> u64 {
        self.framer.as_mut().map_or(0, |framer| framer.take_skipped())
    }

    /// Discards everything held, at the close. Returns the bytes of a frame that the peer had not finished when it
    /// ended its stream.
    pub(super) fn clear(&mut self) -> u64 {
        self.queue = EventQueue::new(0);
        let unfinished = self.framer.take().map_or(0, |framer| framer.unfinished());
        if self.ended().is_some() { unfinished as u64 } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;
    use std::sync::Arc;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::framing::{Deliver, Framing, Lines};
    use crate::rate::Rate;

    const BYTES_MAX: usize = 64;
    const UNLIMITED: Rates = Rates { bytes: None, packets: None };

    fn lines(now: Instant) -> Inbound {
        let framing = Framing::Line(Lines { max: 16, deliver: Deliver::Wire });
        Inbound::new(BYTES_MAX, Some(Box::new(Framer::new(Arc::new(framing)))), now)
    }

    fn bytes_of(inbound: &mut Inbound, now: Instant) -> Vec<Bytes> {
        std::iter::from_fn(|| match inbound.poll_event(now, 1) {
            Ok(Some(Event::ReceivedBytes(bytes))) => Some(bytes),
            _ => None,
        })
        .collect()
    }

    proptest! {
        /// However a stream is cut into reads, and whenever the handler takes events, its frames are the same and none is lost;
        /// as long as the socket is read only when it may be, at most the bound and one read are held.
        #[test]
        fn frames_do_not_depend_on_reads(
            texts in proptest::collection::vec("[a-z]{0,12}", 1..20),
            reads in proptest::collection::vec((1..20usize, any::<bool>()), 1..80),
        ) {
            let now = Instant::now();
            let stream: Vec<u8> = texts.iter().flat_map(|text| format!("{text}\n").into_bytes()).collect();
            let (mut inbound, mut rest, mut frames) = (lines(now), stream.as_slice(), Vec::new());
            for (len, takes) in reads.into_iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                if inbound.may_read() {
                    let (read, behind) = rest.split_at(len.min(rest.len()));
                    prop_assert!(!inbound.push_bytes(&UNLIMITED, now, read));
                    prop_assert!(inbound.bytes() <= BYTES_MAX + read.len());
                    rest = behind;
                } else {
                    frames.extend(bytes_of(&mut inbound, now));
                }
                if takes {
                    frames.extend(bytes_of(&mut inbound, now));
                }
            }
            frames.extend(bytes_of(&mut inbound, now));
            prop_assert_eq!(frames.concat(), stream.clone());
            prop_assert_eq!(frames.len(), texts.len());
            prop_assert!(inbound.is_empty());
            prop_assert_eq!(inbound.received_bytes(), stream.len() as u64);
        }
    }

    /// A stream over its rate is not read for a while; that pause is the gateway's silence.
    #[test]
    fn reads_are_throttled() {
        let now = Instant::now();
        let rates =
            Rates { bytes: Some(Rate::smooth(NonZeroU64::new(10).unwrap(), Duration::from_secs(1))), packets: None };
        let mut inbound = Inbound::new(BYTES_MAX, None, now);
        assert!(inbound.push_bytes(&rates, now, b"0123456789"));
        assert!(!inbound.may_read() && inbound.is_paused());
        let resumes = inbound.poll_timeout().unwrap();
        inbound.handle_timeout(resumes - Duration::from_nanos(1));
        assert!(!inbound.may_read());
        inbound.handle_timeout(resumes);
        assert!(inbound.may_read() && inbound.poll_timeout().is_none());
    }

    /// After a reset, bytes sent before it are still read, and the reset is the close reason.
    #[test]
    fn a_reset_ends_the_input_last() {
        let now = Instant::now();
        let mut inbound = Inbound::new(BYTES_MAX, None, now);
        inbound.reset(CloseReason::SocketError("econnreset"));
        assert!(inbound.may_read() && inbound.ended().is_none());
        inbound.end(CloseReason::PeerClosed);
        assert_eq!(inbound.ended(), Some(&CloseReason::SocketError("econnreset")));
    }

    /// A line longer than the frame limit breaks the framing once; messages behind it still arrive.
    #[test]
    fn broken_framing_is_reported_once() {
        let now = Instant::now();
        let mut inbound = lines(now);
        inbound.push_bytes(&UNLIMITED, now, b"ok\n01234567890123456789");
        inbound.push_timer(Timer::Keepalive);
        assert!(matches!(inbound.poll_event(now, 1), Ok(Some(Event::ReceivedBytes(_)))));
        assert!(inbound.poll_event(now, 1).is_err());
        assert!(matches!(inbound.poll_event(now, 1), Ok(Some(Event::TimerTimeout(Timer::Keepalive)))));
    }
}
