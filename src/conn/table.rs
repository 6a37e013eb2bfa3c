//! From a [`ConnId`] to the mailbox of the task that owns the connection.
//!
//! The one map that all tasks share, next to the broker's own. An entry appears when a connection is
//! opened and disappears when its task ends.

use std::sync::Arc;

use dashmap::DashMap;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::{mpsc, oneshot};

use super::{CloseReason, Command, ConnId, Message, Refused};

/// Slots that only commands may take: deliveries leave them free, so a flood of messages cannot keep a
/// handler from asking for something.
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

/// The sending side of one connection's bounded queue.
#[derive(Clone, Debug)]
pub struct Mailbox {
    conn: ConnId,
    // Boxed: tokio allocates slots in blocks of 32, and an idle connection pays for one block.
    slots: mpsc::Sender<Box<Mail>>,
    sheds: Counter,
}

/// The receiving side; only the connection's task has it.
pub type Mails = mpsc::Receiver<Box<Mail>>;

impl Mailbox {
    /// A mailbox with room for `mails_max` deliveries, `1..`, and some commands besides.
    ///
    /// `sheds` counts the messages that found it full.
    pub fn new(conn: ConnId, mails_max: usize, sheds: Counter) -> (Self, Mails) {
        let (slots, mails) = mpsc::channel(mails_max + RESERVED_FOR_COMMANDS);
        (Self { conn, slots, sheds }, mails)
    }

    /// Whose mailbox this is.
    pub fn conn(&self) -> ConnId {
        self.conn
    }

    /// Puts a message in; sheds it and counts it when there is no room.
    ///
    /// A message for a connection that has ended is dropped without a count: its subscriptions are
    /// ending with it.
    pub fn deliver(&self, message: Message) {
        if self.slots.capacity() <= RESERVED_FOR_COMMANDS {
            if !self.slots.is_closed() {
                self.sheds.inc();
                tracing::debug!(conn = %self.conn, topic = message.topic, "message shed: the mailbox is full");
            }
            return;
        }
        // Between the look at the capacity and here, others may have filled it: then it is shed as well.
        if let Err(mpsc::error::TrySendError::Full(_)) = self.slots.try_send(Box::new(Mail::Deliver(message))) {
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
