//! What has happened on a connection and still waits for its handler, in order. Pure and bounded.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use crate::conn::{Event, Message, Timer};

/// How much may wait.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Bytes of the stream: at this many the socket is not read. One read may go over it by its own size.
    pub bytes_max: usize,
    /// Messages; one more is shed.
    pub messages_max: usize,
    /// Payload and topic bytes of those messages; a message that does not fit is shed.
    pub message_bytes_max: usize,
}

/// Neighbours of one kind are merged, so what waited for a busy handler reaches it as one event.
#[derive(Debug)]
enum Waits {
    Bytes(BytesMut),
    Messages(Vec<Message>),
    Timer(Timer),
}

/// The events that wait, oldest first.
#[derive(Debug)]
pub struct Waiting {
    bounds: Bounds,
    queue: VecDeque<Waits>,
    bytes: usize,
    messages: usize,
    message_bytes: usize,
}

/// A message found no room.
#[derive(Debug, PartialEq, Eq)]
pub struct Shed;

impl Waiting {
    /// Nothing waits.
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, queue: VecDeque::new(), bytes: 0, messages: 0, message_bytes: 0 }
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Bytes of the stream that wait.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Messages that wait.
    pub fn messages(&self) -> usize {
        self.messages
    }

    /// Whether the socket may be read.
    pub fn has_room_for_bytes(&self) -> bool {
        self.bytes < self.bounds.bytes_max
    }

    /// The next bytes of the stream. The caller asked [`Waiting::has_room_for_bytes`] before it read them.
    pub fn push_bytes(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len();
        match self.queue.back_mut() {
            Some(Waits::Bytes(last)) => last.extend_from_slice(bytes),
            _ => self.queue.push_back(Waits::Bytes(BytesMut::from(bytes))),
        }
    }

    /// A message of a subscription.
    ///
    /// # Errors
    ///
    /// [`Shed`]: there is no room; the message is gone.
    pub fn push_message(&mut self, message: Message) -> Result<(), Shed> {
        let size = weight(&message);
        if self.messages >= self.bounds.messages_max || self.message_bytes + size > self.bounds.message_bytes_max {
            return Err(Shed);
        }
        self.messages += 1;
        self.message_bytes += size;
        match self.queue.back_mut() {
            Some(Waits::Messages(last)) => last.push(message),
            _ => self.queue.push_back(Waits::Messages(vec![message])),
        }
        Ok(())
    }

    /// A timer ran out.
    pub fn push_timer(&mut self, timer: Timer) {
        self.queue.push_back(Waits::Timer(timer));
    }

    /// Takes the oldest event.
    pub fn pop(&mut self) -> Option<Event> {
        let event = match self.queue.pop_front()? {
            Waits::Bytes(bytes) => {
                self.bytes -= bytes.len();
                Event::ReceivedBytes(Bytes::from(bytes))
            }
            Waits::Messages(messages) => {
                self.messages -= messages.len();
                self.message_bytes -= messages.iter().map(weight).sum::<usize>();
                Event::ReceivedMessages(messages)
            }
            Waits::Timer(timer) => Event::TimerTimeout(timer),
        };
        if self.queue.is_empty() {
            // An idle connection keeps no memory for what once waited.
            self.queue = VecDeque::new();
        }
        Some(event)
    }

    /// Drops all that waits.
    pub fn clear(&mut self) {
        *self = Self::new(self.bounds);
    }
}

/// What a message counts against the bound.
fn weight(message: &Message) -> usize {
    message.payload.len() + message.topic.len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::conn::QoS;

    const BOUNDS: Bounds = Bounds { bytes_max: 64, messages_max: 4, message_bytes_max: 100 };

    fn message(number: usize, size: usize) -> Message {
        Message {
            node: "n".into(),
            id: number.to_string(),
            qos: QoS::AtMostOnce,
            from: String::new(),
            topic: "t".into(),
            payload: Bytes::from(vec![0; size]),
            timestamp_ms: 0,
        }
    }

    /// Neighbours are merged; another kind between them keeps them apart, so the order is the order of arrival.
    #[test]
    fn order_is_kept() {
        let mut waiting = Waiting::new(BOUNDS);
        waiting.push_bytes(b"ab");
        waiting.push_bytes(b"c");
        waiting.push_timer(Timer::Keepalive);
        waiting.push_bytes(b"d");

        assert!(matches!(waiting.pop(), Some(Event::ReceivedBytes(bytes)) if bytes == "abc"));
        assert!(matches!(waiting.pop(), Some(Event::TimerTimeout(Timer::Keepalive))));
        assert!(matches!(waiting.pop(), Some(Event::ReceivedBytes(bytes)) if bytes == "d"));
        assert!(waiting.pop().is_none());
    }

    /// The fifth message is shed when four may wait, and a message that is too large at once.
    #[test]
    fn messages_are_bounded() {
        let mut waiting = Waiting::new(BOUNDS);
        assert_eq!(waiting.push_message(message(0, 100)), Err(Shed), "with its topic it has 101 bytes");
        for number in 0..4 {
            assert_eq!(waiting.push_message(message(number, 10)), Ok(()));
        }
        assert_eq!(waiting.push_message(message(4, 10)), Err(Shed));
        assert!(matches!(waiting.pop(), Some(Event::ReceivedMessages(batch)) if batch.len() == 4));
        assert_eq!(waiting.push_message(message(5, 10)), Ok(()));
    }

    proptest! {
        /// Whatever arrives in whatever order: every byte and every message that was not shed comes out once, in
        /// order, and the counts end at zero.
        #[test]
        fn nothing_is_lost_or_doubled(steps in proptest::collection::vec((0..3u8, 0..40usize), 0..60)) {
            let mut waiting = Waiting::new(BOUNDS);
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
                    1 => if waiting.push_message(message(number, size)).is_ok() {
                        sent_messages.push(number.to_string());
                    }
                    _ => take(waiting.pop()),
                }
                prop_assert!(waiting.bytes() < BOUNDS.bytes_max + 40);
                prop_assert!(waiting.messages() <= BOUNDS.messages_max);
            }
            while !waiting.is_empty() {
                take(waiting.pop());
            }
            prop_assert_eq!(sent, taken);
            prop_assert_eq!(sent_messages, taken_messages);
            prop_assert_eq!((waiting.bytes(), waiting.messages(), waiting.message_bytes), (0, 0, 0));
        }
    }
}
