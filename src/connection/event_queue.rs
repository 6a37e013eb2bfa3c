//! What has happened on a connection and still waits for its handler, in order. Pure.
//!
//! Bytes are bounded here; messages where they are delivered, by the mailbox.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use crate::conn::{Event, Message, Timer};

/// Datagrams and frames that may wait, however small they are; an empty one takes room too.
const DATAGRAMS_MAX: usize = 256;

/// Neighbours of one kind are merged, so what waited for a busy handler reaches it as one event.
#[derive(Debug)]
enum Queued {
    /// One read, as most are handed on.
    Read(Bytes),
    /// Several.
    Reads(BytesMut),
    /// A datagram, or a frame that silence has ended, which is never merged with another.
    Datagram(Bytes),
    Messages(VecDeque<Message>),
    Timer(Timer),
}

/// The events that wait, oldest first.
#[derive(Debug)]
pub(crate) struct EventQueue {
    bytes_max: usize,
    /// The oldest; the queue holds the others. Mostly there is one at a time, and then no queue.
    first: Option<Queued>,
    queue: VecDeque<Queued>,
    bytes: usize,
    datagrams: usize,
    messages: usize,
}

impl EventQueue {
    /// Nothing waits. At `bytes_max` bytes of the stream the socket is not to be read; the read that reaches
    /// the bound may go over it.
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { bytes_max, first: None, queue: VecDeque::new(), bytes: 0, datagrams: 0, messages: 0 }
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// Bytes of the stream that wait.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Messages that wait.
    pub(crate) fn messages(&self) -> usize {
        self.messages
    }

    /// Whether the socket may be read.
    pub(crate) fn has_room_for_bytes(&self) -> bool {
        self.has_room_beside(0)
    }

    /// The same, when so many bytes are held elsewhere.
    pub(crate) fn has_room_beside(&self, held: usize) -> bool {
        self.bytes.saturating_add(held) < self.bytes_max && self.datagrams < DATAGRAMS_MAX
    }

    /// The next bytes of the stream. The caller asked [`EventQueue::has_room_for_bytes`] before it read them.
    pub(crate) fn push_bytes(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len();
        match self.last() {
            Some(Queued::Reads(last)) => last.extend_from_slice(bytes),
            Some(last @ Queued::Read(_)) => {
                let mut reads = BytesMut::with_capacity(2 * bytes.len());
                if let Queued::Read(read) = last {
                    reads.extend_from_slice(read);
                }
                reads.extend_from_slice(bytes);
                *last = Queued::Reads(reads);
            }
            _ => self.push(Queued::Read(Bytes::copy_from_slice(bytes))),
        }
    }

    /// The next datagram or frame: an event of its own. The caller asked [`EventQueue::has_room_for_bytes`] before.
    pub(crate) fn push_datagram(&mut self, datagram: Bytes) {
        self.bytes += datagram.len();
        self.datagrams += 1;
        self.push(Queued::Datagram(datagram));
    }

    /// A message of a subscription.
    pub(crate) fn push_message(&mut self, message: Message) {
        self.messages += 1;
        match self.last() {
            Some(Queued::Messages(last)) => last.push_back(message),
            _ => self.push(Queued::Messages(VecDeque::from([message]))),
        }
    }

    /// A timer ran out.
    pub(crate) fn push_timer(&mut self, timer: Timer) {
        self.push(Queued::Timer(timer));
    }

    /// Takes the oldest event, with at most `messages_max` messages, `1..`; the rest of them stays first in the queue.
    pub(super) fn pop(&mut self, messages_max: usize) -> Option<Event> {
        if let Some(Queued::Messages(messages)) = &mut self.first
            && messages.len() > messages_max.max(1)
        {
            let taken: Vec<_> = messages.drain(..messages_max.max(1)).collect();
            self.messages -= taken.len();
            return Some(Event::ReceivedMessages(taken));
        }
        let first = self.first.take()?;
        self.first = self.queue.pop_front();
        if self.queue.is_empty() && self.queue.capacity() > 0 {
            // An idle connection keeps no memory for what once waited.
            self.queue = VecDeque::new();
        }
        Some(match first {
            Queued::Read(bytes) => self.bytes_event(bytes),
            Queued::Reads(bytes) => self.bytes_event(bytes.freeze()),
            Queued::Datagram(bytes) => {
                self.datagrams -= 1;
                self.bytes_event(bytes)
            }
            Queued::Messages(messages) => {
                self.messages -= messages.len();
                Event::ReceivedMessages(messages.into())
            }
            Queued::Timer(timer) => Event::TimerTimeout(timer),
        })
    }

    fn bytes_event(&mut self, bytes: Bytes) -> Event {
        self.bytes -= bytes.len();
        Event::ReceivedBytes(bytes)
    }

    fn last(&mut self) -> Option<&mut Queued> {
        self.queue.back_mut().or(self.first.as_mut())
    }

    fn push(&mut self, waits: Queued) {
        if self.first.is_none() {
            self.first = Some(waits);
        } else {
            self.queue.push_back(waits);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::conn::QoS;

    const BYTES_MAX: usize = 64;

    fn message(number: usize) -> Message {
        Message {
            node: "n".into(),
            id: number.to_string(),
            qos: QoS::AtMostOnce,
            from: String::new(),
            topic: "t".into(),
            payload: Bytes::new(),
            timestamp_ms: 0,
        }
    }

    /// Neighbours are merged; another kind between them keeps them apart, so the order is the order of arrival.
    #[test]
    fn order_is_kept() {
        let mut waiting = EventQueue::new(BYTES_MAX);
        waiting.push_bytes(b"ab");
        waiting.push_bytes(b"c");
        waiting.push_timer(Timer::Keepalive);
        waiting.push_bytes(b"d");

        assert!(matches!(waiting.pop(usize::MAX), Some(Event::ReceivedBytes(bytes)) if bytes == "abc"));
        assert!(matches!(waiting.pop(usize::MAX), Some(Event::TimerTimeout(Timer::Keepalive))));
        assert!(matches!(waiting.pop(usize::MAX), Some(Event::ReceivedBytes(bytes)) if bytes == "d"));
        assert!(waiting.pop(usize::MAX).is_none());
    }

    /// Datagrams keep their borders, also the empty ones, and their number is bounded.
    #[test]
    fn datagrams_stay_whole() {
        let mut waiting = EventQueue::new(BYTES_MAX);
        for datagram in ["ab", "", "c"] {
            waiting.push_datagram(Bytes::from_static(datagram.as_bytes()));
        }
        for datagram in ["ab", "", "c"] {
            assert!(matches!(waiting.pop(usize::MAX), Some(Event::ReceivedBytes(bytes)) if bytes == datagram));
        }
        assert!(waiting.pop(usize::MAX).is_none());

        for _ in 0..DATAGRAMS_MAX {
            assert!(waiting.has_room_for_bytes());
            waiting.push_datagram(Bytes::new());
        }
        assert!(!waiting.has_room_for_bytes());
        assert!(waiting.pop(usize::MAX).is_some());
        assert!(waiting.has_room_for_bytes());
    }

    proptest! {
        /// Whatever arrives in whatever order: every byte and every message comes out once, in order, the bytes
        /// never go over their bound by more than one read, and the counts end at zero.
        #[test]
        fn nothing_is_lost_or_doubled(steps in proptest::collection::vec((0..3u8, 0..40usize), 0..60)) {
            let mut waiting = EventQueue::new(BYTES_MAX);
            let (mut sent, mut taken) = (Vec::new(), Vec::new());
            let (mut sent_messages, mut taken_messages) = (Vec::new(), Vec::new());
            let mut take = |event: Option<Event>| match event {
                Some(Event::ReceivedBytes(bytes)) => taken.extend_from_slice(&bytes),
                Some(Event::ReceivedMessages(batch)) => taken_messages.extend(batch.into_iter().map(|m| m.id)),
                _ => {}
            };
            for (number, (kind, size)) in steps.into_iter().enumerate() {
                match kind {
                    0 if waiting.has_room_for_bytes() => {
                        let bytes = vec![number as u8; size];
                        waiting.push_bytes(&bytes);
                        sent.extend_from_slice(&bytes);
                    }
                    1 => {
                        waiting.push_message(message(number));
                        sent_messages.push(number.to_string());
                    }
                    _ => take(waiting.pop(usize::MAX)),
                }
                prop_assert!(waiting.bytes() < BYTES_MAX + 40);
            }
            while !waiting.is_empty() {
                take(waiting.pop(usize::MAX));
            }
            prop_assert_eq!(sent, taken);
            prop_assert_eq!(sent_messages, taken_messages);
            prop_assert_eq!((waiting.bytes(), waiting.messages()), (0, 0));
        }
    }
}
