//! One run of a conversation: the next step, and the comparison with the observed effects.
//!
//! Pure: no socket, no clock, no task. A driver asks [`Run::poll`] for the next step, performs it, and reports effects
//! with the `handle_` functions; the driver over the network is [`super::play`], and a test that calls a handler in
//! process drives the same run. Bytes to the device, published messages and the end of the connection are three
//! streams: each is compared in order. The order between them is not compared, since it cannot be observed from
//! outside. A run holds received data that is not expected yet; the driver bounds it by [`Run::waiting_bytes`].

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};

use super::{Action, ClosedBy, Conversation, Message, Step};
use crate::conn::QoS;

mod mismatch;

pub(crate) use mismatch::Mismatch;

/// The comparison of bytes to the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Replies {
    /// Every byte must be expected by a `<` line, and match it.
    #[default]
    Exact,
    /// A `<` line matches any bytes of its length, and further bytes are ignored: for load on a gateway with other
    /// responses.
    Counted,
}

/// Whether published messages are observed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Publishes {
    /// All are reported to the run, and each must be expected.
    #[default]
    Observed,
    /// None are; `publish` lines are skipped.
    Unobserved,
}

/// A published message as the driver observed it; the topic without mountpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// Topic name.
    pub topic: String,
    /// The publisher's quality of service.
    pub qos: QoS,
    /// Payload.
    pub payload: Bytes,
}

/// The next step of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Next<'c> {
    /// The driver performs this stimulus (see [`Action::is_stimulus`]), and then calls [`Run::done`].
    Do(LocatedStep<'c>),
    /// This was expected, and it happened.
    Met(LocatedStep<'c>),
    /// This cannot be observed and was skipped.
    Skipped(LocatedStep<'c>),
    /// This is expected and has not happened; poll again after the next `handle_` call.
    Await(LocatedStep<'c>),
    /// All steps are finished.
    End,
}

/// A step and its line.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LocatedStep<'c> {
    /// The line in the file.
    pub line: u32,
    /// The step.
    pub step: &'c Step,
}

/// The state of one run.
#[derive(Debug)]
pub(crate) struct Run<'c> {
    stops: Vec<LocatedStep<'c>>,
    next: usize,
    replies: Replies,
    publishes: Publishes,
    /// Bytes to the device that no `<` line has matched yet.
    received: BytesMut,
    /// The number of them that match the next `<` line.
    fitting: usize,
    published: VecDeque<Published>,
    closed: Option<ClosedBy>,
}

impl<'c> Run<'c> {
    /// A run before its first step.
    pub(crate) fn new(conversation: &'c Conversation, replies: Replies, publishes: Publishes) -> Self {
        Self {
            stops: conversation.steps().map(|(line, step)| LocatedStep { line, step }).collect(),
            next: 0,
            replies,
            publishes,
            received: BytesMut::new(),
            fitting: 0,
            published: VecDeque::new(),
            closed: None,
        }
    }

    /// The device has received these bytes.
    pub(crate) fn handle_bytes(&mut self, bytes: &[u8]) {
        self.received.extend_from_slice(bytes);
    }

    /// The handler has published this.
    pub(crate) fn handle_published(&mut self, published: Published) {
        self.published.push_back(published);
    }

    /// Another side than the device closed; [`ClosedBy::Gateway`] if the reason is unknown.
    pub(crate) fn handle_closed(&mut self, by: ClosedBy) {
        self.closed = Some(by);
    }

    /// The number of received bytes that no line has matched yet.
    pub(crate) fn waiting_bytes(&self) -> usize {
        self.received.len()
    }

    /// The [`Next::Do`] of the last poll is performed.
    pub(crate) fn done(&mut self) {
        self.next += 1;
    }

    /// The next step.
    ///
    /// # Errors
    ///
    /// The observed effects differ from the conversation.
    pub(crate) fn poll(&mut self) -> Result<Next<'c>, Mismatch> {
        let Some(stop) = self.stops.get(self.next).copied() else {
            return Ok(Next::End);
        };
        match &stop.step.action {
            Action::FromPeer(_) | Action::Deliver(_) | Action::Timer(_) | Action::Close(ClosedBy::Peer) => {
                match self.closed {
                    Some(by) if by != ClosedBy::Peer => {
                        Err(Mismatch::ClosedBefore { line: stop.line, word: stop.step.action.word(), by })
                    }
                    _ => Ok(Next::Do(stop)),
                }
            }
            Action::ToPeer(_) => self.poll_bytes(stop),
            Action::Publish(expected) => self.poll_published(stop, expected),
            Action::Close(expected) => match self.closed {
                None => Ok(Next::Await(stop)),
                Some(by) if by == *expected || by == ClosedBy::Gateway || *expected == ClosedBy::Gateway => {
                    self.settle()?;
                    Ok(self.met(stop))
                }
                Some(by) => Err(Mismatch::ClosedBy { line: stop.line, expected: *expected, by }),
            },
        }
    }

    fn met(&mut self, stop: LocatedStep<'c>) -> Next<'c> {
        self.next += 1;
        Next::Met(stop)
    }

    fn poll_bytes(&mut self, stop: LocatedStep<'c>) -> Result<Next<'c>, Mismatch> {
        let Action::ToPeer(pattern) = &stop.step.action else {
            return Ok(Next::Await(stop));
        };
        if self.replies == Replies::Exact
            && let Some(at) = pattern.first_difference(&self.received, self.fitting)
        {
            let received = self.received.clone().freeze();
            return Err(Mismatch::Bytes { line: stop.line, expected: pattern.clone(), received, at });
        }
        if self.received.len() >= pattern.len() {
            self.received.advance(pattern.len());
            self.fitting = 0;
            return Ok(self.met(stop));
        }
        self.fitting = self.received.len();
        match self.closed {
            None => Ok(Next::Await(stop)),
            Some(_) => Err(self.missing(stop, Ended::Closed)),
        }
    }

    fn poll_published(&mut self, stop: LocatedStep<'c>, expected: &Message) -> Result<Next<'c>, Mismatch> {
        if self.publishes == Publishes::Unobserved {
            self.next += 1;
            return Ok(Next::Skipped(stop));
        }
        // A message may arrive after the end of the connection, delayed by the broker.
        let Some(received) = self.published.pop_front() else {
            return Ok(Next::Await(stop));
        };
        let difference =
            if received.topic == expected.topic { expected.payload.difference(&received.payload) } else { None };
        if received.topic == expected.topic && received.qos == expected.qos && difference.is_none() {
            return Ok(self.met(stop));
        }
        Err(Mismatch::Message {
            line: stop.line,
            expected: Box::new(expected.clone()),
            received: Box::new(received),
            difference,
        })
    }

    /// No effect will arrive before the next stimulus: an awaited `<`, `publish` or `close` line has failed.
    ///
    /// For a driver that knows that the handler has finished; another one calls it at its timeout.
    ///
    /// # Errors
    ///
    /// A line is awaited.
    pub(crate) fn handle_silence(&mut self) -> Result<(), Mismatch> {
        match self.poll()? {
            Next::Await(stop) => Err(self.missing(stop, Ended::Silent)),
            Next::Do(_) | Next::Met(_) | Next::Skipped(_) | Next::End => Ok(()),
        }
    }

    fn missing(&self, stop: LocatedStep<'c>, ended: Ended) -> Mismatch {
        let line = stop.line;
        match &stop.step.action {
            Action::ToPeer(pattern) => {
                let (expected, received) = (pattern.clone(), self.received.clone().freeze());
                match ended {
                    Ended::Closed => Mismatch::ClosedWithin { line, expected, received },
                    Ended::Silent => Mismatch::TooFewBytes { line, expected, received },
                }
            }
            Action::Publish(message) => Mismatch::NoMessage { line, expected: Box::new(message.clone()) },
            Action::Close(by) => Mismatch::NotClosed { line, expected: *by },
            Action::FromPeer(_) | Action::Deliver(_) | Action::Timer(_) => {
                Mismatch::NotDone { line, word: stop.step.action.word() }
            }
        }
    }

    /// Checks that all received data was expected by the lines so far.
    ///
    /// For the end of the connection, and for a driver that knows, before a stimulus, that the handler has finished all
    /// previous events.
    ///
    /// # Errors
    ///
    /// Bytes or a message that no line expects.
    pub(crate) fn settle(&mut self) -> Result<(), Mismatch> {
        let after = self.next.checked_sub(1).and_then(|last| self.stops.get(last)).map_or(0, |stop| stop.line);
        if self.replies == Replies::Exact && !self.received.is_empty() {
            return Err(Mismatch::UnexpectedBytes { after, received: self.received.split().freeze() });
        }
        self.received.clear();
        match self.published.pop_front() {
            Some(message) if self.publishes == Publishes::Observed => {
                Err(Mismatch::UnexpectedMessage { after, received: Box::new(message) })
            }
            _ => Ok(()),
        }
    }
}

/// Why no further effect will arrive.
#[derive(Clone, Copy)]
enum Ended {
    Closed,
    Silent,
}

#[cfg(test)]
mod tests;
