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
    /// A handler asks for something and waits for the answer. The id is the one by which it knows the connection.
    Ask(ConnId, Command, Reply),
    /// A message for one of the connection's subscriptions.
    Deliver(Message),
    /// End the connection, in order: flush, tell the handler, close.
    End(CloseReason),
    /// The versions of its handler have changed: see whether to go on with another one. Held until that is done, so
    /// that few connections move at a time.
    ReconcileVersion(OwnedSemaphorePermit),
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
pub struct MessageQuota {
    bounds: MessageBounds,
    messages: AtomicUsize,
    bytes: AtomicUsize,
}

impl MessageQuota {
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
    quota: Arc<MessageQuota>,
    /// For commands, in bytes.
    room: Arc<Semaphore>,
    dropped: Counter,
}

/// The receiving side; only the connection's task has it.
pub type MailReceiver = mpsc::Receiver<Box<Mail>>;

impl Mailbox {
    /// A mailbox for so many messages, and some commands besides.
    ///
    /// `dropped` counts the messages that found no room.
    pub fn new(conn: ConnId, bounds: MessageBounds, dropped: Counter) -> (Self, MailReceiver) {
        let (slots, mails) = mpsc::channel(bounds.messages_max + RESERVED_FOR_COMMANDS);
        let quota = MessageQuota { bounds, messages: AtomicUsize::new(0), bytes: AtomicUsize::new(0) };
        let room = Arc::new(Semaphore::new(COMMAND_BYTES_MAX));
        (Self { conn, slots, quota: Arc::new(quota), room, dropped }, mails)
    }

    /// Whose mailbox this is.
    pub fn conn(&self) -> ConnId {
        self.conn
    }

    /// The messages that the connection holds; its task removes those that it hands on.
    pub fn quota(&self) -> &Arc<MessageQuota> {
        &self.quota
    }

    /// Puts a message in; sheds it and counts it when there is no room.
    ///
    /// A message for a connection that has ended is dropped without a count: its subscriptions are
    /// ending with it.
    pub fn deliver(&self, message: Message) {
        if self.slots.is_closed() {
            return;
        }
        if !self.quota.add(&message) {
            self.dropped.inc();
            tracing::debug!(conn = %self.conn, topic = message.topic, "message shed: the connection holds as many as it may");
            return;
        }
        let put = self.slots.try_send(Box::new(Mail::Deliver(message)));
        // Commands have slots of their own beyond the messages', so only many commands at once can fill it.
        if let Err(mpsc::error::TrySendError::Full(mail) | mpsc::error::TrySendError::Closed(mail)) = put
            && let Mail::Deliver(message) = *mail
        {
            self.quota.remove(std::slice::from_ref(&message));
            self.dropped.inc();
        }
    }

    /// Asks for something and waits until the connection has answered; before that, for room. Commands keep
    /// the order in which they were asked. `handler_conn` is the id by which the handler knows the connection, which
    /// may have another one when it is asked.
    ///
    /// # Errors
    ///
    /// [`Refused::Full`] when the mailbox is full, [`Refused::Gone`] when the connection ends first, else
    /// what the operation itself says.
    pub async fn ask(&self, handler_conn: ConnId, command: Command) -> Result<(), Refused> {
        let weight = command.weight().clamp(COMMAND_BYTES_MIN, COMMAND_BYTES_MAX);
        // Clamped to what fits into 32 bits; the semaphore is never closed.
        let Ok(room) = Arc::clone(&self.room).acquire_many_owned(weight as u32).await else {
            return Err(Refused::Gone);
        };
        let (answer, answered) = oneshot::channel();
        match self.slots.try_send(Box::new(Mail::Ask(handler_conn, command, Reply { answer, _room: room }))) {
            Ok(()) => answered.await.unwrap_or(Err(Refused::Gone)),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(Refused::Gone),
            Err(mpsc::error::TrySendError::Full(_)) => Err(Refused::Full {
                what: "the connection's mailbox",
                limit: format!("{} entries", self.slots.max_capacity()),
            }),
        }
    }

    /// Asks the connection to look at the versions of its handler; waits for room if there is none.
    pub async fn reconcile_version(&self, turn: OwnedSemaphorePermit) {
        if self.slots.send(Box::new(Mail::ReconcileVersion(turn))).await.is_err() {
            tracing::trace!(conn = %self.conn, "asked to review, had ended");
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
pub struct Registry(Arc<DashMap<ConnId, Entry>>);

#[derive(Debug)]
struct Entry {
    mailbox: Mailbox,
    id: Id,
}

/// What an id means that stands for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Id {
    /// Its own, by which everybody knows it.
    Own,
    /// Its own, but its handler knows it by another.
    HandlerAliased,
    /// The one by which its handler knows it.
    Alias,
}

impl Entry {
    fn is_alias(&self) -> bool {
        self.id == Id::Alias
    }
}

impl Registry {
    /// Enters a connection; it leaves when the guard is dropped.
    pub fn enter(&self, mailbox: Mailbox) -> Registration {
        let conn = mailbox.conn;
        self.0.insert(conn, Entry { mailbox, id: Id::Own });
        Registration { table: self.clone(), conn, alias: None }
    }

    /// The mailbox of a live connection.
    pub fn get(&self, conn: ConnId) -> Option<Mailbox> {
        self.0.get(&conn).map(|entry| entry.mailbox.clone())
    }

    /// The mailbox of a live connection, for the handler that serves it now: `None` for an id that was given to a
    /// handler before, which has lost the connection to another.
    pub fn get_for_handler(&self, conn: ConnId) -> Option<Mailbox> {
        self.0.get(&conn).filter(|entry| entry.id != Id::HandlerAliased).map(|entry| entry.mailbox.clone())
    }

    /// The mailboxes of all live connections, at this moment.
    pub fn all(&self) -> Vec<Mailbox> {
        self.0.iter().filter(|entry| !entry.is_alias()).map(|entry| entry.mailbox.clone()).collect()
    }

    /// How many connections are live.
    pub fn len(&self) -> usize {
        self.0.iter().filter(|entry| !entry.is_alias()).count()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A connection's place in the table; dropping it takes the connection out.
#[derive(Debug)]
pub struct Registration {
    table: Registry,
    conn: ConnId,
    alias: Option<ConnId>,
}

impl Registration {
    /// Whose place this is.
    pub fn conn(&self) -> ConnId {
        self.conn
    }

    /// The id by which the connection's handler knows it.
    pub fn handler_conn(&self) -> ConnId {
        self.alias.unwrap_or(self.conn)
    }

    /// From now on handlers know the connection by this id and no other. A handler that has lost it may still be at
    /// work on an old event; what it asks for then, or has asked for and not been answered, is not for this connection
    /// any more.
    pub fn rename(&mut self, handler_conn: ConnId) {
        let Some(mailbox) = self.table.get(self.conn) else {
            return;
        };
        if let Some(last) = self.alias.take() {
            self.table.0.remove(&last);
        }
        let is_own = handler_conn == self.conn;
        if let Some(mut entry) = self.table.0.get_mut(&self.conn) {
            entry.id = if is_own { Id::Own } else { Id::HandlerAliased };
        }
        if !is_own {
            self.table.0.insert(handler_conn, Entry { mailbox, id: Id::Alias });
            self.alias = Some(handler_conn);
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.table.0.remove(&self.conn);
        if let Some(alias) = self.alias {
            self.table.0.remove(&alias);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use bytes::Bytes;
    use futures::poll;

    use super::*;

    const CONN: ConnId = ConnId::from_u64(1);

    /// After a new name, handlers reach the connection by it alone; the operator's id stays; nothing is left behind.
    #[test]
    fn a_handler_that_lost_the_connection_does_not_reach_it() {
        let table = Registry::default();
        let [first, second, third] = [1, 2, 3].map(ConnId::from_u64);
        let mut entered = table.enter(mailbox().0);
        assert!(table.get_for_handler(first).is_some());
        for (old, new) in [(first, second), (second, third)] {
            entered.rename(new);
            assert!(table.get_for_handler(old).is_none());
            assert!(table.get_for_handler(new).is_some());
            assert!(table.get(first).is_some());
            assert_eq!(entered.handler_conn(), new);
            assert_eq!(table.all().len(), 1);
        }
        entered.rename(first);
        assert!(table.get_for_handler(third).is_none());
        assert!(table.get_for_handler(first).is_some());
        drop(entered);
        assert!(table.is_empty());
    }

    fn mailbox() -> (Mailbox, MailReceiver) {
        let bounds = MessageBounds { messages_max: 1, bytes_max: 1 };
        Mailbox::new(CONN, bounds, Counter::default())
    }

    fn answer(mail: Mail) {
        let Mail::Ask(_, _, reply) = mail else { panic!("not a command") };
        reply.send(Ok(())).unwrap();
    }

    /// Commands wait outside when there is no room for their bytes, and are told when the connection has ended.
    #[tokio::test]
    async fn commands_are_bounded_by_their_bytes() {
        let (mailbox, mut mails) = mailbox();
        let large = || Command::Send(Bytes::from(vec![0; COMMAND_BYTES_MAX]));
        let (mut first, mut second, mut third) = (
            pin!(mailbox.ask(CONN, large())),
            pin!(mailbox.ask(CONN, Command::Close)),
            pin!(mailbox.ask(CONN, large())),
        );
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
        let asked: Vec<_> = (0..1000).map(|_| mailbox.ask(CONN, Command::Close)).collect();
        let (answers, ()) = tokio::join!(futures::future::join_all(asked), async {
            for _ in 0..1000 {
                answer(*mails.recv().await.unwrap());
            }
        });
        assert!(answers.iter().all(Result::is_ok));
    }
}
