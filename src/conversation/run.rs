//! One run of a conversation: what is to be done next, and whether what happens is what it says.
//!
//! Pure: no socket, no clock, no task. A driver asks [`Run::poll`] what comes next, does it, and tells the run what it
//! sees with the `handle_` functions; the driver over the network is [`super::play`], and a test that calls a handler in
//! its own process drives the same run. Bytes to the device, published messages and the end of the connection are three
//! streams: each is compared in its own order, and no order between them is asked for, since none can be observed from
//! outside. A run holds what came and was not yet expected; the driver bounds it by [`Run::waiting_bytes`].

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};

use super::{Action, ClosedBy, Conversation, Message, Step};
use crate::conn::QoS;

mod mismatch;

pub(crate) use mismatch::Mismatch;

/// How bytes to the device are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Replies {
    /// Every byte that comes is expected by a `<` line, and fits it.
    #[default]
    Exact,
    /// A `<` line is met by as many bytes as it has, whatever they are, and further bytes are let pass: for load against a
    /// gateway that answers in other words.
    Counted,
}

/// Whether published messages can be seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Publishes {
    /// Every message is told to the run, and each must be expected.
    #[default]
    Observed,
    /// None is; `publish` lines are skipped.
    Unobserved,
}

/// A message that was published, as the driver saw it; the topic without mountpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// Topic name.
    pub topic: String,
    /// The publisher's quality of service.
    pub qos: QoS,
    /// Payload.
    pub payload: Bytes,
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Next<'c> {
    /// The driver does this, a stimulus (see [`Action::is_stimulus`]), and then calls [`Run::done`].
    Do(LocatedStep<'c>),
    /// This was expected, and it came.
    Met(LocatedStep<'c>),
    /// This cannot be seen and was passed over.
    Skipped(LocatedStep<'c>),
    /// This is expected and has not come; poll again after the next `handle_` call.
    Await(LocatedStep<'c>),
    /// Everything was done and met.
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
    /// Bytes to the device that no `<` line has taken yet.
    received: BytesMut,
    /// How many of them are known to fit the `<` line that is next.
    fitting: usize,
    published: VecDeque<Published>,
    closed: Option<ClosedBy>,
}

impl<'c> Run<'c> {
    /// A run at its beginning.
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

    /// The device got these bytes.
    pub(crate) fn handle_bytes(&mut self, bytes: &[u8]) {
        self.received.extend_from_slice(bytes);
    }

    /// The handler published this.
    pub(crate) fn handle_published(&mut self, published: Published) {
        self.published.push_back(published);
    }

    /// The connection was ended by another than the device; [`ClosedBy::Gateway`] when it is not known by whom.
    pub(crate) fn handle_closed(&mut self, by: ClosedBy) {
        self.closed = Some(by);
    }

    /// How many bytes have come that no line has taken yet.
    pub(crate) fn waiting_bytes(&self) -> usize {
        self.received.len()
    }

    /// The [`Next::Do`] of the last poll is done.
    pub(crate) fn done(&mut self) {
        self.next += 1;
    }

    /// What comes next.
    ///
    /// # Errors
    ///
    /// What came is not what the conversation says.
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
        // A message may come after the end of the connection: the broker takes its own time.
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

    /// Nothing more will come before the next stimulus: a `<`, `publish` or `close` line that is awaited is in vain.
    ///
    /// For a driver that knows that the handler has answered; one that does not, calls it when its patience ends.
    ///
    /// # Errors
    ///
    /// Something is awaited.
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

    /// Everything that has come was expected by the lines so far.
    ///
    /// For the end of the connection, and for a driver that knows, before a stimulus, that the handler has answered all
    /// that went before.
    ///
    /// # Errors
    ///
    /// Bytes or a message came that no line expects.
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

/// How it became certain that nothing more comes.
#[derive(Clone, Copy)]
enum Ended {
    Closed,
    Silent,
}

#[cfg(test)]
mod tests;
