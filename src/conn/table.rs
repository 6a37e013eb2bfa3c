//! From a [`ConnId`] to the mailbox of the task that owns the connection.
//!
//! The one map that all tasks share, next to the broker's own. An entry appears when a connection is
//! opened and disappears when its task ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use dashmap::DashMap;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::{mpsc, oneshot};

use super::{CloseReason, Command, ConnId, Message, Refused};

/// Slots for commands, beyond those of the messages: a flood of messages cannot keep a handler from asking
/// for something.
const RESERVED_FOR_COMMANDS: usize = 16;

/// What a connection finds in its mailbox.
#[derive(Debug)]
pub enum Mail {
    /// A handler asks for something and waits for the answer.
    Ask(Command, oneshot::Sender<Result<(), Refused>>),
    /// A message for one of the connection's subscriptions.
    Deliver(Message),
    /// End the connection, in order: flush, tell the handler, close.
    End(CloseReason),
}

/// How many messages one connection may hold, from their delivery until its handler takes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageBounds {
    /// Messages, `1..`.
    pub messages_max: usize,
    /// Their topics and payloads, in bytes, `1..`.
    pub bytes_max: usize,
}

/// The messages that a connection holds, against their bounds.
#[derive(Debug)]
pub struct Held {
    bounds: MessageBounds,
    messages: AtomicUsize,
    bytes: AtomicUsize,
}

impl Held {
    fn add(&self, message: &Message) -> bool {
        let below = |max: usize, more: usize| move |held: usize| held.checked_add(more).filter(|sum| *sum <= max);
        let (messages_max, bytes_max) = (self.bounds.messages_max, self.bounds.bytes_max);
        if self.messages.fetch_update(Ordering::Relaxed, Ordering::Relaxed, below(messages_max, 1)).is_err() {
            return false;
        }
        let fits = self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, below(bytes_max, message.weight()));
        if fits.is_err() {
            self.messages.fetch_sub(1, Ordering::Relaxed);
        }
        fits.is_ok()
    }

    /// The handler takes these messages, or they are dropped with their connection.
    pub fn remove(&self, messages: &[Message]) {
        self.messages.fetch_sub(messages.len(), Ordering::Relaxed);
        self.bytes.fetch_sub(messages.iter().map(Message::weight).sum(), Ordering::Relaxed);
    }
}

/// The sending side of one connection's bounded queue.
#[derive(Clone, Debug)]
pub struct Mailbox {
    conn: ConnId,
    // Boxed: tokio allocates slots in blocks of 32, and an idle connection pays for one block.
    slots: mpsc::Sender<Box<Mail>>,
    held: Arc<Held>,
    sheds: Counter,
}

/// The receiving side; only the connection's task has it.
pub type Mails = mpsc::Receiver<Box<Mail>>;

impl Mailbox {
    /// A mailbox for so many messages, and some commands besides.
    ///
    /// `sheds` counts the messages that found no room.
    pub fn new(conn: ConnId, bounds: MessageBounds, sheds: Counter) -> (Self, Mails) {
        let (slots, mails) = mpsc::channel(bounds.messages_max + RESERVED_FOR_COMMANDS);
        let held = Held { bounds, messages: AtomicUsize::new(0), bytes: AtomicUsize::new(0) };
        (Self { conn, slots, held: Arc::new(held), sheds }, mails)
    }

    /// Whose mailbox this is.
    pub fn conn(&self) -> ConnId {
        self.conn
    }

    /// The messages that the connection holds; its task removes those that it hands on.
    pub fn held(&self) -> &Arc<Held> {
        &self.held
    }

    /// Puts a message in; sheds it and counts it when there is no room.
    ///
    /// A message for a connection that has ended is dropped without a count: its subscriptions are
    /// ending with it.
    pub fn deliver(&self, message: Message) {
        if self.slots.is_closed() {
            return;
        }
        if !self.held.add(&message) {
            self.sheds.inc();
            tracing::debug!(conn = %self.conn, topic = message.topic, "message shed: the connection holds as many as it may");
            return;
        }
        let put = self.slots.try_send(Box::new(Mail::Deliver(message)));
        // Commands have slots of their own beyond the messages', so only many commands at once can fill it.
        if let Err(mpsc::error::TrySendError::Full(mail) | mpsc::error::TrySendError::Closed(mail)) = put
            && let Mail::Deliver(message) = *mail
        {
            self.held.remove(std::slice::from_ref(&message));
            self.sheds.inc();
        }
    }

    /// Asks for something and waits until the connection has answered.
    ///
    /// # Errors
    ///
    /// [`Refused::Full`] when the mailbox is full, [`Refused::Gone`] when the connection ends first, else
    /// what the operation itself says.
    pub async fn ask(&self, command: Command) -> Result<(), Refused> {
        let (reply, answer) = oneshot::channel();
        match self.slots.try_send(Box::new(Mail::Ask(command, reply))) {
            Ok(()) => answer.await.unwrap_or(Err(Refused::Gone)),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(Refused::Gone),
            Err(mpsc::error::TrySendError::Full(_)) => Err(Refused::Full {
                what: "the connection's mailbox",
                limit: format!("{} entries", self.slots.max_capacity()),
            }),
        }
    }

    /// Asks the connection to end; waits for room if there is none. Does nothing when it has ended.
    pub async fn end(&self, reason: CloseReason) {
        if self.slots.send(Box::new(Mail::End(reason))).await.is_err() {
            tracing::trace!(conn = %self.conn, "asked to end, had ended");
        }
    }
}

/// All live connections.
#[derive(Clone, Debug, Default)]
pub struct Table(Arc<DashMap<ConnId, Mailbox>>);

impl Table {
    /// Enters a connection; it leaves when the guard is dropped.
    pub fn enter(&self, mailbox: Mailbox) -> Entered {
        let conn = mailbox.conn;
        self.0.insert(conn, mailbox);
        Entered { table: self.clone(), conn }
    }

    /// The mailbox of a live connection.
    pub fn get(&self, conn: ConnId) -> Option<Mailbox> {
        self.0.get(&conn).map(|entry| entry.value().clone())
    }

    /// The mailboxes of all live connections, at this moment.
    pub fn all(&self) -> Vec<Mailbox> {
        self.0.iter().map(|entry| entry.value().clone()).collect()
    }

    /// How many connections are live.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A connection's place in the table; dropping it takes the connection out.
#[derive(Debug)]
pub struct Entered {
    table: Table,
    conn: ConnId,
}

impl Entered {
    /// Whose place this is.
    pub fn conn(&self) -> ConnId {
        self.conn
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.table.0.remove(&self.conn);
    }
}
