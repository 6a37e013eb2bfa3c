//! Connection registry: maps a [`ConnId`] to the bounded mailbox of the connection's task.
//!
//! The one map shared by all tasks, besides the broker's own. An entry is added when a connection opens and removed
//! when its task ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use dashmap::DashMap;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::{CloseReason, Command, ConnId, Message, Refused};
use crate::byte_budget::ByteBudget;

/// Maximum bytes of the commands in one mailbox; further callers wait for room. It equals the largest request that the
/// adapter accepts, so any single command fits.
const COMMAND_BYTES_MAX: usize = 16 << 20;

/// Minimum charge of a command. It bounds the number of commands, and covers the memory of a small one beside its
/// bytes.
const COMMAND_BYTES_MIN: usize = 16 << 10;

/// Slots for commands, beyond those for messages, so that a flood of messages cannot block a handler's commands: the
/// number of commands that [`COMMAND_BYTES_MAX`] admits, and some for close requests.
const RESERVED_FOR_COMMANDS: usize = COMMAND_BYTES_MAX / COMMAND_BYTES_MIN + 16;

/// Entry of a mailbox.
#[derive(Debug)]
pub enum Mail {
    /// A command of a handler that waits for the result. The id is the connection's id towards that handler.
    Ask(ConnId, Command, Reply),
    /// A message for one of the connection's subscriptions.
    Deliver(Message),
    /// Close the connection in order: flush, `OnSocketClosed`, close.
    End(CloseReason),
    /// The versions of its handler have changed: check whether to migrate. The permit is held until that is done, so
    /// that few connections migrate at a time.
    ReconcileVersion(OwnedSemaphorePermit),
}

/// Receiver of a command's result. The command holds its room in the mailbox until then.
#[derive(Debug)]
pub struct Reply {
    answer: oneshot::Sender<Result<(), Refused>>,
    _room: OwnedSemaphorePermit,
}

impl Reply {
    ///
    /// # Errors
    ///
    /// The answer, if the caller no longer waits for it.
    pub fn send(self, answer: Result<(), Refused>) -> Result<(), Result<(), Refused>> {
        self.answer.send(answer)
    }
}

/// Limits of the messages that one connection holds, from their delivery until its handler takes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageBounds {
    /// Messages, `1..`.
    pub messages_max: usize,
    /// Their topics and payloads, in bytes, `1..`.
    pub bytes_max: usize,
}

/// Counts the messages that a connection holds against their limits.
#[derive(Debug)]
pub struct MessageQuota {
    bounds: MessageBounds,
    messages: AtomicUsize,
    bytes: AtomicUsize,
    /// The budget of all queues.
    budget: Arc<ByteBudget>,
}

/// Counters of messages that a mailbox drops.
#[derive(Clone, Debug, Default)]
pub struct DroppedMessages {
    /// The connection reached its limits.
    pub full: Counter,
    /// All queues together have reached theirs.
    pub over_budget: Counter,
}

/// Why a message is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum QuotaExceeded {
    Connection,
    Budget,
}

impl MessageQuota {
    fn add(&self, message: &Message) -> Result<(), QuotaExceeded> {
        let below = |max: usize, more: usize| move |held: usize| held.checked_add(more).filter(|sum| *sum <= max);
        let (messages_max, bytes_max, weight) = (self.bounds.messages_max, self.bounds.bytes_max, message.weight());
        if !self.budget.admits(self.bytes.load(Ordering::Relaxed), weight) {
            return Err(QuotaExceeded::Budget);
        }
        if self.messages.fetch_update(Ordering::Relaxed, Ordering::Relaxed, below(messages_max, 1)).is_err() {
            return Err(QuotaExceeded::Connection);
        }
        if self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, below(bytes_max, weight)).is_err() {
            self.messages.fetch_sub(1, Ordering::Relaxed);
            return Err(QuotaExceeded::Connection);
        }
        self.budget.update(0, weight);
        Ok(())
    }

    /// Releases messages that the handler takes, or that are dropped with their connection.
    pub fn remove(&self, messages: &[Message]) {
        self.messages.fetch_sub(messages.len(), Ordering::Relaxed);
        let weight = messages.iter().map(Message::weight).sum();
        self.bytes.fetch_sub(weight, Ordering::Relaxed);
        self.budget.update(weight, 0);
    }
}

/// The messages that are dropped with their connection.
impl Drop for MessageQuota {
    fn drop(&mut self) {
        self.budget.update(*self.bytes.get_mut(), 0);
    }
}

/// Sending side of a connection's mailbox.
#[derive(Clone, Debug)]
pub struct Mailbox {
    conn: ConnId,
    // Boxed: tokio allocates slots in blocks of 32, and an idle connection pays for one block.
    slots: mpsc::Sender<Box<Mail>>,
    quota: Arc<MessageQuota>,
    /// Free bytes for commands.
    room: Arc<Semaphore>,
    dropped: DroppedMessages,
}

/// Receiving side of a mailbox; owned by the connection's task.
pub type MailReceiver = mpsc::Receiver<Box<Mail>>;

impl Mailbox {
    /// A mailbox for the messages that `bounds` and the `budget` of all queues allow, and a bounded number of commands.
    pub fn new(
        conn: ConnId,
        bounds: MessageBounds,
        dropped: DroppedMessages,
        budget: Arc<ByteBudget>,
    ) -> (Self, MailReceiver) {
        let (slots, receiver) = mpsc::channel(bounds.messages_max + RESERVED_FOR_COMMANDS);
        let quota = MessageQuota { bounds, messages: AtomicUsize::new(0), bytes: AtomicUsize::new(0), budget };
        let room = Arc::new(Semaphore::new(COMMAND_BYTES_MAX));
        (Self { conn, slots, quota: Arc::new(quota), room, dropped }, receiver)
    }

    pub fn conn(&self) -> ConnId {
        self.conn
    }

    /// The message quota; the connection's task removes the messages it delivers.
    pub fn quota(&self) -> &Arc<MessageQuota> {
        &self.quota
    }

    /// Adds a message; drops and counts it when a limit is reached.
    ///
    /// A message for a closed connection is dropped without a count: its subscriptions end with it.
    pub fn deliver(&self, message: Message) {
        if self.slots.is_closed() {
            return;
        }
        if let Err(exceeded) = self.quota.add(&message) {
            let (dropped, why) = match exceeded {
                QuotaExceeded::Connection => (&self.dropped.full, "the connection reached its message limit"),
                QuotaExceeded::Budget => (&self.dropped.over_budget, "all queues together reached queued_bytes_max"),
            };
            dropped.inc();
            tracing::debug!(conn = %self.conn, topic = message.topic, "message dropped: {why}");
            return;
        }
        let put = self.slots.try_send(Box::new(Mail::Deliver(message)));
        // Commands have slots of their own beyond the messages', so only many commands at once can fill it.
        if let Err(mpsc::error::TrySendError::Full(mail) | mpsc::error::TrySendError::Closed(mail)) = put
            && let Mail::Deliver(message) = *mail
        {
            self.quota.remove(std::slice::from_ref(&message));
            self.dropped.full.inc();
        }
    }

    /// Sends a command and waits for its result; before that, for room. Commands keep their order. `handler_conn` is
    /// the connection's id towards the handler; it may have changed by the time the command is executed.
    ///
    /// # Errors
    ///
    /// [`Refused::Full`] when the mailbox is full, [`Refused::Gone`] when the connection closes first, else the error
    /// of the operation.
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

    /// Requests a check of the handler's versions; waits for room.
    pub async fn reconcile_version(&self, permit: OwnedSemaphorePermit) {
        if self.slots.send(Box::new(Mail::ReconcileVersion(permit))).await.is_err() {
            tracing::trace!(conn = %self.conn, "version check requested after the close");
        }
    }

    /// Requests the close of the connection; waits for room. No effect on a closed connection.
    pub async fn end(&self, reason: CloseReason) {
        if self.slots.send(Box::new(Mail::End(reason))).await.is_err() {
            tracing::trace!(conn = %self.conn, "close requested after the close");
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
    /// Whether a gRPC handler serves the connection. A guest calls its adapter in this process, so every command from
    /// outside is an intruder's.
    is_remote: bool,
}

/// Kind of an id in the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Id {
    /// The connection's own id.
    Own,
    /// The connection's own id, while its handler uses another.
    HandlerAliased,
    /// The id that its handler uses.
    Alias,
}

impl Entry {
    fn is_alias(&self) -> bool {
        self.id == Id::Alias
    }
}

impl Registry {
    /// Registers a connection; it is removed when the guard is dropped.
    pub fn enter(&self, mailbox: Mailbox) -> Registration {
        let conn = mailbox.conn;
        self.0.insert(conn, Entry { mailbox, id: Id::Own, is_remote: false });
        Registration { registry: self.clone(), conn, alias: None, is_remote: false }
    }

    /// The mailbox of a live connection.
    pub fn get(&self, conn: ConnId) -> Option<Mailbox> {
        self.0.get(&conn).map(|entry| entry.mailbox.clone())
    }

    /// The mailbox of a live connection, for the gRPC handler that serves it: `None` for an id of an earlier handler
    /// that has lost the connection, and for a connection of a guest.
    pub fn get_for_handler(&self, conn: ConnId) -> Option<Mailbox> {
        self.0
            .get(&conn)
            .filter(|entry| entry.is_remote && entry.id != Id::HandlerAliased)
            .map(|entry| entry.mailbox.clone())
    }

    /// The mailboxes of all live connections.
    pub fn all(&self) -> Vec<Mailbox> {
        self.0.iter().filter(|entry| !entry.is_alias()).map(|entry| entry.mailbox.clone()).collect()
    }

    /// Number of live connections.
    pub fn len(&self) -> usize {
        self.0.iter().filter(|entry| !entry.is_alias()).count()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Registration of a connection; removed on drop.
#[derive(Debug)]
pub struct Registration {
    registry: Registry,
    conn: ConnId,
    alias: Option<ConnId>,
    is_remote: bool,
}

impl Registration {
    pub fn conn(&self) -> ConnId {
        self.conn
    }

    /// The connection's id towards its handler.
    pub fn handler_conn(&self) -> ConnId {
        self.alias.unwrap_or(self.conn)
    }

    /// Changes the connection's id towards its handler. A handler that has lost the connection may still be at work on
    /// an old event; its further and pending commands no longer reach the connection.
    pub fn rename(&mut self, handler_conn: ConnId) {
        let Some(mailbox) = self.registry.get(self.conn) else {
            return;
        };
        if let Some(last) = self.alias.take() {
            self.registry.0.remove(&last);
        }
        let is_own = handler_conn == self.conn;
        if let Some(mut entry) = self.registry.0.get_mut(&self.conn) {
            entry.id = if is_own { Id::Own } else { Id::HandlerAliased };
        }
        if !is_own {
            self.registry.0.insert(handler_conn, Entry { mailbox, id: Id::Alias, is_remote: self.is_remote });
            self.alias = Some(handler_conn);
        }
    }

    /// Whether a gRPC handler serves the connection; `false` at first.
    pub fn is_remote(&self) -> bool {
        self.is_remote
    }

    /// Says whether a gRPC handler serves the connection; only then do commands from outside of the process reach it.
    pub fn set_remote(&mut self, is_remote: bool) {
        self.is_remote = is_remote;
        for id in [Some(self.conn), self.alias].into_iter().flatten() {
            if let Some(mut entry) = self.registry.0.get_mut(&id) {
                entry.is_remote = is_remote;
            }
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.registry.0.remove(&self.conn);
        if let Some(alias) = self.alias {
            self.registry.0.remove(&alias);
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

    /// After a rename, handlers reach the connection by the new id alone; the operator's id stays; no entry is left
    /// behind.
    #[test]
    fn a_handler_that_lost_the_connection_does_not_reach_it() {
        let registry = Registry::default();
        let [first, second, third] = [1, 2, 3].map(ConnId::from_u64);
        let mut registration = registry.enter(mailbox().0);
        assert!(registry.get_for_handler(first).is_none(), "a guest serves it");
        registration.set_remote(true);
        assert!(registry.get_for_handler(first).is_some());
        for (old, new) in [(first, second), (second, third)] {
            registration.rename(new);
            assert!(registry.get_for_handler(old).is_none());
            assert!(registry.get_for_handler(new).is_some());
            assert!(registry.get(first).is_some());
            assert_eq!(registration.handler_conn(), new);
            assert_eq!(registry.all().len(), 1);
        }
        registration.rename(first);
        assert!(registry.get_for_handler(third).is_none());
        assert!(registry.get_for_handler(first).is_some());
        registration.rename(second);
        registration.set_remote(false);
        assert!(registry.get_for_handler(first).is_none() && registry.get_for_handler(second).is_none());
        assert!(registry.get(first).is_some());
        drop(registration);
        assert!(registry.is_empty());
    }

    fn mailbox() -> (Mailbox, MailReceiver) {
        let bounds = MessageBounds { messages_max: 1, bytes_max: 1 };
        Mailbox::new(CONN, bounds, DroppedMessages::default(), Arc::new(ByteBudget::new(1 << 20)))
    }

    fn answer(mail: Mail) {
        let Mail::Ask(_, _, reply) = mail else { panic!("not a command") };
        reply.send(Ok(())).unwrap();
    }

    /// Commands wait outside when their bytes do not fit, and fail when the connection has closed.
    #[tokio::test]
    async fn commands_are_bounded_by_their_bytes() {
        let (mailbox, mut receiver) = mailbox();
        let large = || Command::Send(Bytes::from(vec![0; COMMAND_BYTES_MAX]));
        let (mut first, mut second, mut third) = (
            pin!(mailbox.ask(CONN, large())),
            pin!(mailbox.ask(CONN, Command::Close)),
            pin!(mailbox.ask(CONN, large())),
        );
        assert!(poll!(&mut first).is_pending());
        assert!(poll!(&mut second).is_pending());
        assert!(poll!(&mut third).is_pending());
        assert_eq!(receiver.len(), 1);

        answer(*receiver.recv().await.unwrap());
        assert_eq!(first.await, Ok(()));
        assert!(poll!(&mut second).is_pending());
        assert!(poll!(&mut third).is_pending());
        assert_eq!(receiver.len(), 1, "the last does not fit beside the one before it");

        drop(receiver);
        assert_eq!(second.await, Err(Refused::Gone));
        assert_eq!(third.await, Err(Refused::Gone));
    }

    /// Many small commands fit at once, whatever the number of messages.
    #[tokio::test]
    async fn many_small_commands_fit() {
        let (mailbox, mut receiver) = mailbox();
        let calls: Vec<_> = (0..1000).map(|_| mailbox.ask(CONN, Command::Close)).collect();
        let (answers, ()) = tokio::join!(futures::future::join_all(calls), async {
            for _ in 0..1000 {
                answer(*receiver.recv().await.unwrap());
            }
        });
        assert!(answers.iter().all(Result::is_ok));
    }
}
