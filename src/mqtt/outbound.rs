//! The messages that one side of a session sends: the bounded queue, and what is in flight.
//!
//! It outlives connections. While one is up, [`Outbound::poll_send`] says what is to be sent next, as far as the
//! peer's Receive Maximum allows; what was in flight when a connection ended is sent again on the next one, in the
//! old order (MQTT 5.0 section 4.4), and never on a connection that is up. Never holds more than its bounds, counted
//! in messages and in bytes over queue and flight together.

use std::collections::VecDeque;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::Reason;
use crate::conn::QoS;

/// Messages that a crash may have lost after they were sent: so many numbers are left out when a session is restored.
const RESTORE_GAP: u64 = 1 << 14;

/// How much one session may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Messages, `1..`.
    pub messages_max: usize,
    /// Bytes of the messages as their owner counts them.
    pub bytes_max: usize,
    /// Messages in flight, whatever the peer allows, `1..=65_534`.
    pub inflight_max: u16,
}

/// The sending half of a session. `M` is a message, cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Outbound<M> {
    queue: VecDeque<Queued<M>>,
    /// In the order of the first sending.
    inflight: VecDeque<InFlight<M>>,
    /// Those of `inflight` before this place have been sent on the present connection.
    sent: usize,
    /// PUBLISHes of the present connection that count against the Receive Maximum.
    outstanding: u16,
    /// Of the present connection; 0 without one.
    receive_max: u16,
    last_packet_id: u16,
    /// The number of the next message of QoS 1 or 2.
    next_seq: u64,
    /// Packet identifiers of SUBSCRIBE and UNSUBSCRIBE, which share their space with PUBLISH.
    requests: Vec<u16>,
    bytes: usize,
    queued_qos0: usize,
    bounds: Bounds,
}

#[derive(Clone, Debug)]
struct Queued<M> {
    /// Counts messages of QoS 1 and 2 from 0.
    seq: u64,
    message: M,
    qos: QoS,
    bytes: usize,
    expires: Option<Instant>,
}

#[derive(Clone, Debug)]
struct InFlight<M> {
    seq: u64,
    packet_id: u16,
    bytes: usize,
    state: State<M>,
    counted: bool,
}

#[derive(Clone, Debug)]
enum State<M> {
    /// Waits for PUBACK.
    Qos1(M),
    /// Waits for PUBREC.
    Qos2(M),
    /// Waits for PUBCOMP.
    Released,
}

impl<M> State<M> {
    fn into_message(self) -> Option<M> {
        match self {
            Self::Qos1(message) | Self::Qos2(message) => Some(message),
            Self::Released => None,
        }
    }
}

/// What is left of the messages of QoS 1 and 2: their numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Outline {
    next_seq: u64,
    inflight: Vec<Flight>,
    /// Ranges of the numbers of queued messages, each with its end behind it.
    queued: Vec<(u64, u64)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Flight {
    seq: u64,
    packet_id: u16,
    is_released: bool,
}

impl Outline {
    /// The number of the next message.
    pub(crate) fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// All but the number of the next message, as text.
    #[cfg(test)]
    pub(crate) fn shape(&self) -> String {
        format!("{:?} {:?}", self.inflight, self.queued)
    }

    /// Whether the message with this number is still needed.
    pub(crate) fn holds(&self, seq: u64) -> bool {
        self.inflight.iter().any(|flight| flight.seq == seq && !flight.is_released)
            || self.queued.iter().any(|(first, end)| (*first..*end).contains(&seq))
    }
}

/// A message of QoS 1 or 2 with what has to be kept of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stored<M> {
    pub seq: u64,
    pub message: M,
    pub qos: QoS,
    pub bytes: usize,
}

/// What is to be sent next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Send<M> {
    /// A PUBLISH; without a packet identifier it has QoS 0.
    Publish {
        /// The message.
        message: M,
        /// The QoS.
        qos: QoS,
        /// The packet identifier.
        packet_id: Option<u16>,
        /// Whether it may have been sent on an earlier connection.
        dup: bool,
        /// When the message expires.
        expires: Option<Instant>,
    },
    /// A PUBREL.
    PubRel {
        /// The packet identifier.
        packet_id: u16,
    },
}

/// What became of a message that was to be queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pushed {
    /// Whether it is queued.
    pub queued: bool,
    /// Messages that were dropped: itself when it is not queued, and those of QoS 0 that made room.
    pub dropped: usize,
}

/// What a PUBREC asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PubRec {
    /// Send PUBREL with this reason.
    Release(Reason),
    /// The peer has refused the message; nothing more is sent for it.
    Refused,
}

impl<M: Clone> Outbound<M> {
    /// Nothing queued, no connection.
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self {
            queue: VecDeque::new(),
            inflight: VecDeque::new(),
            sent: 0,
            outstanding: 0,
            receive_max: 0,
            last_packet_id: 0,
            next_seq: 0,
            requests: Vec::new(),
            bytes: 0,
            queued_qos0: 0,
            bounds,
        }
    }

    /// The bytes of all messages that are held.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Messages that are queued or in flight.
    pub(crate) fn len(&self) -> usize {
        self.queue.len() + self.inflight.len()
    }

    /// Whether nothing is queued and nothing in flight.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Messages in flight.
    #[cfg(test)]
    pub(crate) fn inflight(&self) -> usize {
        self.inflight.len()
    }

    /// A connection is up. Everything in flight is to be sent again on it.
    pub(crate) fn connected(&mut self, receive_max: u16) {
        self.receive_max = receive_max.min(self.bounds.inflight_max).max(1);
        self.sent = 0;
        self.outstanding = 0;
        self.requests.clear();
        for inflight in &mut self.inflight {
            inflight.counted = false;
        }
    }

    /// The connection is gone. Messages of QoS 0 are not kept for the next one; says how many there were.
    pub(crate) fn disconnected(&mut self) -> usize {
        self.receive_max = 0;
        let dropped = self.queued_qos0;
        if dropped > 0 {
            let bytes = &mut self.bytes;
            self.queue.retain(|queued| {
                let kept = queued.qos != QoS::AtMostOnce;
                if !kept {
                    *bytes -= queued.bytes;
                }
                kept
            });
            self.queued_qos0 = 0;
        }
        self.shrink();
        dropped
    }

    /// The peer has no session (Session Present is 0): what was in flight begins anew, in the old order.
    ///
    /// Messages whose PUBREC has come are not sent again: the peer has had them.
    pub(crate) fn restart(&mut self) {
        for inflight in std::mem::take(&mut self.inflight).into_iter().rev() {
            let (message, qos) = match inflight.state {
                State::Qos1(message) => (message, QoS::AtLeastOnce),
                State::Qos2(message) => (message, QoS::ExactlyOnce),
                State::Released => continue,
            };
            self.queue.push_front(Queued { seq: inflight.seq, message, qos, bytes: inflight.bytes, expires: None });
        }
        self.sent = 0;
        self.outstanding = 0;
    }

    /// Queues a message, or drops it when the bounds are reached; queued messages of QoS 0 make room for others.
    pub(crate) fn push(&mut self, message: M, qos: QoS, bytes: usize, expires: Option<Instant>) -> Pushed {
        let mut evicted = 0;
        while !self.has_room(bytes) {
            let can_evict = qos != QoS::AtMostOnce && self.queued_qos0 > 0 && bytes <= self.bounds.bytes_max;
            let place = self.queue.iter().position(|queued| can_evict && queued.qos == QoS::AtMostOnce);
            let Some(removed) = place.and_then(|place| self.queue.remove(place)) else {
                return Pushed { queued: false, dropped: evicted + 1 };
            };
            self.bytes -= removed.bytes;
            self.queued_qos0 -= 1;
            evicted += 1;
        }
        self.push_always(message, qos, bytes, expires);
        Pushed { queued: true, dropped: evicted }
    }

    /// Queues a message whatever the bounds: for one that the caller bounds in another way.
    pub(crate) fn push_always(&mut self, message: M, qos: QoS, bytes: usize, expires: Option<Instant>) {
        self.bytes += bytes;
        self.queued_qos0 += usize::from(qos == QoS::AtMostOnce);
        let seq = self.next_seq;
        self.next_seq += u64::from(qos != QoS::AtMostOnce);
        self.queue.push_back(Queued { seq, message, qos, bytes, expires });
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.len() < self.bounds.messages_max && self.bytes + bytes <= self.bounds.bytes_max
    }

    /// What is to be sent next; `None` when there is nothing, no connection, or the peer's Receive Maximum is
    /// reached. Counts the messages that have expired in the queue into `expired`.
    pub(crate) fn poll_send(&mut self, now: Instant, expired: &mut u64) -> Option<Send<M>> {
        if self.receive_max == 0 {
            return None;
        }
        if let Some(inflight) = self.inflight.get_mut(self.sent) {
            let (message, qos) = match &inflight.state {
                State::Released => {
                    self.sent += 1;
                    return Some(Send::PubRel { packet_id: inflight.packet_id });
                }
                State::Qos1(message) => (message, QoS::AtLeastOnce),
                State::Qos2(message) => (message, QoS::ExactlyOnce),
            };
            if self.outstanding >= self.receive_max {
                return None;
            }
            let send = Send::Publish {
                message: message.clone(),
                qos,
                packet_id: Some(inflight.packet_id),
                dup: true,
                expires: None,
            };
            inflight.counted = true;
            self.outstanding += 1;
            self.sent += 1;
            return Some(send);
        }
        loop {
            let next = self.queue.front()?;
            if next.expires.is_some_and(|expires| expires <= now) {
                self.bytes -= next.bytes;
                self.queued_qos0 -= usize::from(next.qos == QoS::AtMostOnce);
                self.queue.pop_front();
                *expired += 1;
                continue;
            }
            let full = self.outstanding >= self.receive_max || self.inflight.len() >= self.bounds.inflight_max.into();
            if next.qos != QoS::AtMostOnce && full {
                return None;
            }
            let Queued { seq, message, qos, bytes, expires } = self.queue.pop_front()?;
            let state = match qos {
                QoS::AtMostOnce => {
                    self.bytes -= bytes;
                    self.queued_qos0 -= 1;
                    return Some(Send::Publish { message, qos, packet_id: None, dup: false, expires });
                }
                QoS::AtLeastOnce => State::Qos1(message.clone()),
                QoS::ExactlyOnce => State::Qos2(message.clone()),
            };
            let packet_id = self.packet_id_of(seq);
            self.inflight.push_back(InFlight { seq, packet_id, bytes, state, counted: true });
            self.sent += 1;
            self.outstanding += 1;
            return Some(Send::Publish { message, qos, packet_id: Some(packet_id), dup: false, expires });
        }
    }

    /// Takes a packet identifier for a SUBSCRIBE or UNSUBSCRIBE, until [`Outbound::release_request`] or the next
    /// connection.
    pub(crate) fn reserve_request(&mut self) -> u16 {
        let packet_id = self.next_packet_id();
        self.requests.push(packet_id);
        packet_id
    }

    /// Gives the packet identifier of a SUBSCRIBE or UNSUBSCRIBE back; says whether it was taken.
    pub(crate) fn release_request(&mut self, packet_id: u16) -> bool {
        let place = self.requests.iter().position(|&known| known == packet_id);
        place.map(|place| self.requests.swap_remove(place)).is_some()
    }

    /// The packet identifier of a message: the same one each time it is sent first, so that a message of QoS 2 that is sent
    /// again after a crash, which has lost that it was in flight, is not taken for another one.
    fn packet_id_of(&mut self, seq: u64) -> u16 {
        // At most 65,534, so the sum does not overflow.
        let id = (seq % u64::from(u16::MAX)) as u16 + 1;
        if self.is_free(id) { id } else { self.next_packet_id() }
    }

    fn is_free(&self, packet_id: u16) -> bool {
        self.place(packet_id).is_none() && !self.requests.contains(&packet_id)
    }

    /// A packet identifier that is not in use. There is one: the bounds leave it, and requests are few.
    fn next_packet_id(&mut self) -> u16 {
        loop {
            self.last_packet_id = self.last_packet_id.checked_add(1).unwrap_or(1);
            let id = self.last_packet_id;
            if self.is_free(id) {
                return id;
            }
        }
    }

    fn place(&self, packet_id: u16) -> Option<usize> {
        self.inflight.iter().position(|inflight| inflight.packet_id == packet_id)
    }

    /// PUBACK has come; gives the message that it ends, if its packet identifier was in flight with QoS 1.
    ///
    /// A PUBACK with an error code ends the message too: it must not be sent again.
    pub(crate) fn handle_puback(&mut self, packet_id: u16) -> Option<M> {
        self.finish(packet_id, |state| matches!(state, State::Qos1(_)))?.into_message()
    }

    /// PUBREC has come; gives the message that the peer has taken or refused with it, the first time.
    pub(crate) fn handle_pubrec(&mut self, packet_id: u16, reason: Reason) -> (PubRec, Option<M>) {
        if reason.is_error() {
            let ended = self.finish(packet_id, |state| matches!(state, State::Qos2(_)));
            return (PubRec::Refused, ended.and_then(State::into_message));
        }
        let place = self.place(packet_id);
        match place.and_then(|place| self.inflight.get_mut(place)) {
            Some(inflight) if !matches!(inflight.state, State::Qos1(_)) => {
                let taken = std::mem::replace(&mut inflight.state, State::Released);
                // The payload is not needed any more.
                self.bytes -= std::mem::take(&mut inflight.bytes);
                (PubRec::Release(Reason::SUCCESS), taken.into_message())
            }
            _ => (PubRec::Release(Reason::PACKET_ID_NOT_FOUND), None),
        }
    }

    /// PUBCOMP has come; says whether its packet identifier waited for it.
    pub(crate) fn handle_pubcomp(&mut self, packet_id: u16) -> bool {
        self.finish(packet_id, |state| matches!(state, State::Released)).is_some()
    }

    /// Ends a message in flight without an acknowledgement: it could not be sent after all.
    pub(crate) fn discard(&mut self, packet_id: u16) {
        self.finish(packet_id, |_| true);
    }

    fn finish(&mut self, packet_id: u16, fits: impl FnOnce(&State<M>) -> bool) -> Option<State<M>> {
        let place = self.place(packet_id).filter(|&place| fits(&self.inflight[place].state))?;
        let removed = self.inflight.remove(place)?;
        self.bytes -= removed.bytes;
        self.sent -= usize::from(place < self.sent);
        self.outstanding -= u16::from(removed.counted);
        if self.inflight.is_empty() && self.queue.is_empty() {
            self.shrink();
        }
        Some(removed.state)
    }

    /// Gives memory back that a burst has left: an idle session costs next to nothing.
    fn shrink(&mut self) {
        if self.queue.is_empty() && self.queue.capacity() > 4 {
            self.queue = VecDeque::new();
        }
        if self.inflight.is_empty() && self.inflight.capacity() > 4 {
            self.inflight = VecDeque::new();
        }
    }

    /// What has to be kept beside the messages, to restore this half of a session after a restart of the process.
    pub(crate) fn outline(&self) -> Outline {
        let inflight = self.inflight.iter().map(|inflight| Flight {
            seq: inflight.seq,
            packet_id: inflight.packet_id,
            is_released: matches!(inflight.state, State::Released),
        });
        let mut queued: Vec<(u64, u64)> = Vec::new();
        for message in self.queue.iter().filter(|queued| queued.qos != QoS::AtMostOnce) {
            match queued.last_mut() {
                Some((_, end)) if *end == message.seq => *end += 1,
                _ => queued.push((message.seq, message.seq + 1)),
            }
        }
        Outline { next_seq: self.next_seq, inflight: inflight.collect(), queued }
    }

    /// The messages of QoS 1 and 2 that are numbered from `first` on, with what has to be kept of them.
    pub(crate) fn stored_from(&self, first: u64) -> impl Iterator<Item = Stored<M>> {
        let inflight = self.inflight.iter().filter_map(|inflight| {
            let (message, qos) = match &inflight.state {
                State::Qos1(message) => (message, QoS::AtLeastOnce),
                State::Qos2(message) => (message, QoS::ExactlyOnce),
                State::Released => return None,
            };
            Some((inflight.seq, message, qos, inflight.bytes))
        });
        let queued = self.queue.iter().filter(|queued| queued.qos != QoS::AtMostOnce);
        let queued = queued.map(|queued| (queued.seq, &queued.message, queued.qos, queued.bytes));
        inflight.chain(queued).filter(move |(seq, ..)| *seq >= first).map(|(seq, message, qos, bytes)| Stored {
            seq,
            message: message.clone(),
            qos,
            bytes,
        })
    }

    /// Restores what was kept. `message` gives the message of a number, with its QoS, its bytes and its expiry; one that it
    /// does not know is left out.
    pub(crate) fn restore(
        bounds: Bounds,
        outline: &Outline,
        mut message: impl FnMut(u64) -> Option<(Stored<M>, Option<Instant>)>,
    ) -> Self {
        let mut restored = Self::new(bounds);
        restored.next_seq = outline.next_seq;
        for flight in &outline.inflight {
            let (state, bytes) = if flight.is_released {
                (State::Released, 0)
            } else {
                let Some((Stored { message, qos, bytes, .. }, _)) = message(flight.seq) else { continue };
                (if qos == QoS::ExactlyOnce { State::Qos2(message) } else { State::Qos1(message) }, bytes)
            };
            restored.bytes += bytes;
            let Flight { seq, packet_id, .. } = *flight;
            restored.inflight.push_back(InFlight { seq, packet_id, bytes, state, counted: false });
        }
        for seq in outline.queued.iter().flat_map(|&(first, end)| first..end) {
            let Some((Stored { message, qos, bytes, .. }, expires)) = message(seq) else { continue };
            restored.bytes += bytes;
            restored.queue.push_back(Queued { seq, message, qos, bytes, expires });
        }
        // What was queued and sent behind the last commit before a crash is lost here, but the peer may know its packet
        // identifiers; new messages get others.
        restored.next_seq += RESTORE_GAP;
        restored
    }

    /// The messages that are queued or unacknowledged, oldest first.
    pub(crate) fn messages(&self) -> impl Iterator<Item = &M> {
        let inflight = self.inflight.iter().filter_map(|inflight| match &inflight.state {
            State::Qos1(message) | State::Qos2(message) => Some(message),
            State::Released => None,
        });
        inflight.chain(self.queue.iter().map(|queued| &queued.message))
    }
}
