//! Event queue of one connection: bytes, datagrams, messages and timers that wait for the handler, in order. Pure.
//!
//! It bounds bytes; the mailbox bounds messages at their delivery.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use crate::conn::{Event, Message, Timer};

/// Maximum number of queued datagrams and frames of any size; an empty one takes memory too.
const DATAGRAMS_MAX: usize = 256;

/// Adjacent entries of one kind are merged, so a busy handler gets them as one event.
#[derive(Debug)]
enum Queued {
    /// One read, the common case.
    Read(Bytes),
    /// Several reads.
    Reads(BytesMut),
    /// A datagram, or a frame that silence has ended; never merged.
    Datagram(Bytes),
    Messages(VecDeque<Message>),
    Timer(Timer),
}

/// Oldest event first.
#[derive(Debug)]
pub(crate) struct EventQueue {
    bytes_max: usize,
    /// The oldest entry; `queue` holds the others. Mostly there is at most one, and `queue` allocates nothing.
    first: Option<Queued>,
    queue: VecDeque<Queued>,
    bytes: usize,
    datagrams: usize,
    messages: usize,
}

impl EventQueue {
    /// At `bytes_max` queued bytes the socket must not be read; the read that reaches the limit may exceed it.
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { bytes_max, first: None, queue: VecDeque::new(), bytes: 0, datagrams: 0, messages: 0 }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// Queued bytes of the peer.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Number of queued messages.
    pub(crate) fn messages(&self) -> usize {
        self.messages
    }

    /// Whether the socket may be read.
    pub(crate) fn has_room_for_bytes(&self) -> bool {
        self.has_room_beside(0)
    }

    /// The same, with `held` bytes held outside of the queue.
    pub(crate) fn has_room_beside(&self, held: usize) -> bool {
        self.bytes.saturating_add(held) < self.bytes_max && self.datagrams < DATAGRAMS_MAX
    }

    /// Appends bytes of the stream. The caller checked [`EventQueue::has_room_for_bytes`] before the read.
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

    /// Appends a datagram or frame, an event of its own. The caller checked [`EventQueue::has_room_for_bytes`] before.
    pub(crate) fn push_datagram(&mut self, datagram: Bytes) {
        self.bytes += datagram.len();
        self.datagrams += 1;
        self.push(Queued::Datagram(datagram));
    }

    pub(crate) fn push_message(&mut self, message: Message) {
        self.messages += 1;
        match self.last() {
            Some(Queued::Messages(last)) => last.push_back(message),
            _ => self.push(Queued::Messages(VecDeque::from([message]))),
        }
    }

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
            // An idle connection keeps no memory of its queue.
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

    fn push(&mut self, entry: Queued) {
        if self.first.is_none() {
            self.first = Some(entry);
        } else {
            self.queue.push_back(entry);
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

    /// Adjacent bytes are merged; an event of another kind between them is not crossed, so the order of arrival is
    /// kept.
    #[test]
    fn order_is_kept() {
        let mut queue = EventQueue::new(BYTES_MAX);
        queue.push_bytes(b"ab");
        queue.push_bytes(b"c");
        queue.push_timer(Timer::Keepalive);
        queue.push_bytes(b"d");

        assert!(matches!(queue.pop(usize::MAX), Some(Event::ReceivedBytes(bytes)) if bytes == "abc"));
        assert!(matches!(queue.pop(usize::MAX), Some(Event::TimerTimeout(Timer::Keepalive))));
        assert!(matches!(queue.pop(usize::MAX), Some(Event::ReceivedBytes(bytes)) if bytes == "d"));
        assert!(queue.pop(usize::MAX).is_none());
    }

    /// Datagrams keep their boundaries, empty ones included, and their number is bounded.
    #[test]
    fn datagrams_stay_whole() {
        let mut queue = EventQueue::new(BYTES_MAX);
        for datagram in ["ab", "", "c"] {
            queue.push_datagram(Bytes::from_static(datagram.as_bytes()));
        }
        for datagram in ["ab", "", "c"] {
            assert!(matches!(queue.pop(usize::MAX), Some(Event::ReceivedBytes(bytes)) if bytes == datagram));
        }
        assert!(queue.pop(usize::MAX).is_none());

        for _ in 0..DATAGRAMS_MAX {
            assert!(queue.has_room_for_bytes());
            queue.push_datagram(Bytes::new());
        }
        assert!(!queue.has_room_for_bytes());
        assert!(queue.pop(usize::MAX).is_some());
        assert!(queue.has_room_for_bytes());
    }

    proptest! {
        /// For any sequence of events, every byte and every message comes out once, in order, the bytes exceed their
        /// limit by at most one read, and the counts end at zero.
        #[test]
        fn nothing_is_lost_or_doubled(steps in proptest::collection::vec((0..3u8, 0..40usize), 0..60)) {
            let mut queue = EventQueue::new(BYTES_MAX);
            let (mut sent, mut taken) = (Vec::new(), Vec::new());
            let (mut sent_messages, mut taken_messages) = (Vec::new(), Vec::new());
            let mut take = |event: Option<Event>| match event {
                Some(Event::ReceivedBytes(bytes)) => taken.extend_from_slice(&bytes),
                Some(Event::ReceivedMessages(batch)) => taken_messages.extend(batch.into_iter().map(|m| m.id)),
                _ => {}
            };
            for (number, (kind, size)) in steps.into_iter().enumerate() {
                match kind {
                    0 if queue.has_room_for_bytes() => {
                        let bytes = vec![number as u8; size];
                        queue.push_bytes(&bytes);
                        sent.extend_from_slice(&bytes);
                    }
                    1 => {
                        queue.push_message(message(number));
                        sent_messages.push(number.to_string());
                    }
                    _ => take(queue.pop(usize::MAX)),
                }
                prop_assert!(queue.bytes() < BYTES_MAX + 40);
            }
            while !queue.is_empty() {
                take(queue.pop(usize::MAX));
            }
            prop_assert_eq!(sent, taken);
            prop_assert_eq!(sent_messages, taken_messages);
            prop_assert_eq!((queue.bytes(), queue.messages()), (0, 0));
        }
    }
}
