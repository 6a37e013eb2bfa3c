//! From a [`ConnId`] to the mailbox of the task that owns the connection.
//!
//! The one map that all tasks share, next to the broker's own. An entry appears when a connection is
//! opened and disappears when its task ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use dashmap::DashMap;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::{CloseReason, Command, ConnId, Message, Refused};

/// Bytes of the commands that one mailbox holds; who asks for more waits until there is room. It is the largest
/// request that the adapter takes, so any one fits.
const COMMAND_BYTES_MAX: usize = 16 << 20;

/// What a command counts at least. It bounds their number, and covers what a small one holds beside its bytes.
const COMMAND_BYTES_MIN: usize = 16 << 10;

/// Slots for commands, beyond those of the messages: a flood of messages cannot keep a handler from asking
/// for something. As many as the room for commands lets in, and some for the ends that are asked for.
const RESERVED_FOR_COMMANDS: usize = COMMAND_BYTES_MAX / COMMAND_BYTES_MIN + 16;

/// What a connection finds in its mailbox.
#[derive(Debug)]
pub enum Mail {
    /// A handler asks for something and waits for the answer.
    Ask(Command, Reply),
    /// A message for one of the connection's subscriptions.
    Deliver(Message),
    /// End the connection, in order: flush, tell the handler, close.
    End(CloseReason),
}

/// Where the answer to a command goes. The command holds its room in the mailbox until then.
#[derive(Debug)]
pub struct Reply {
    answer: oneshot::Sender<Result<(), Refused>>,
    _room: OwnedSemaphorePermit,
}

impl Reply {
    /// Answers.
    ///
    /// # Errors
    ///
    /// The answer, when nobody waits for it any more.
    pub fn send(self, answer: Result<(), Refused>) -> Result<(), Result<(), Refused>> {
        self.answer.send(answer)
    }
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
    /// For commands, in bytes.
    room: Arc<Semaphore>,
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
        let room = Arc::new(Semaphore::new(COMMAND_BYTES_MAX));
        (Self { conn, slots, held: Arc::new(held), room, sheds }, mails)
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

    /// Asks for something and waits until the connection has answered; before that, for room. Commands keep
    /// the order in which they were asked.
    ///
    /// # Errors
    ///
    /// [`Refused::Full`] when the mailbox is full, [`Refused::Gone`] when the connection ends first, else
    /// what the operation itself says.
    pub async fn ask(&self, command: Command) -> Result<(), Refused> {
        let weight = command.weight().clamp(COMMAND_BYTES_MIN, COMMAND_BYTES_MAX);
        // Clamped to what fits into 32 bits; the semaphore is never closed.
        let Ok(room) = Arc::clone(&self.room).acquire_many_owned(weight as u32).await else {
            return Err(Refused::Gone);
        };
        let (answer, answered) = oneshot::channel();
        match self.slots.try_send(Box::new(Mail::Ask(command, Reply { answer, _room: room }))) {
            Ok(()) => answered.await.unwrap_or(Err(Refused::Gone)),
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

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use bytes::Bytes;
    use futures::poll;

    use super::*;

    fn mailbox() -> (Mailbox, Mails) {
        let bounds = MessageBounds { messages_max: 1, bytes_max: 1 };
        Mailbox::new(ConnId::from_u64(1), bounds, Counter::default())
    }

    fn answer(mail: Mail) {
        let Mail::Ask(_, reply) = mail else { panic!("not a command") };
        reply.send(Ok(())).unwrap();
    }

    /// Commands wait outside when there is no room for their bytes, and are told when the connection has ended.
    #[tokio::test]
    async fn commands_are_bounded_by_their_bytes() {
        let (mailbox, mut mails) = mailbox();
        let large = || Command::Send(Bytes::from(vec![0; COMMAND_BYTES_MAX]));
        let (mut first, mut second, mut third) =
            (pin!(mailbox.ask(large())), pin!(mailbox.ask(Command::Close)), pin!(mailbox.ask(large())));
        assert!(poll!(&mut first).is_pending());
        assert!(poll!(&mut second).is_pending());
        assert!(poll!(&mut third).is_pending());
        assert_eq!(mails.len(), 1);

        answer(*mails.recv().await.unwrap());
        assert_eq!(first.await, Ok(()));
        assert!(poll!(&mut second).is_pending());
        assert!(poll!(&mut third).is_pending());
        assert_eq!(mails.len(), 1, "the last does not fit beside the one before it");

        drop(mails);
        assert_eq!(second.await, Err(Refused::Gone));
        assert_eq!(third.await, Err(Refused::Gone));
    }

    /// Many small commands find room at once, however many messages there are.
    #[tokio::test]
    async fn many_small_commands_fit() {
        let (mailbox, mut mails) = mailbox();
        let asked: Vec<_> = (0..1000).map(|_| mailbox.ask(Command::Close)).collect();
        let (answers, ()) = tokio::join!(futures::future::join_all(asked), async {
            for _ in 0..1000 {
                answer(*mails.recv().await.unwrap());
            }
        });
        assert!(answers.iter().all(Result::is_ok));
    }
}
