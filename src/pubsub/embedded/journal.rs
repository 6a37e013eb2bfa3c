//! The journal: keeps retained messages and sessions of the embedded broker over the end of the process.
//!
//! The broker's state is in memory; the journal's thread writes what has changed. It has a list of the topics and sessions
//! that have changed since its last commit and not a queue of changes: so its memory is bounded by the state, whatever the
//! disk does, and a message that comes and goes between two commits is never written. A commit takes the changes at one
//! moment ([`Journal::begin`] holds it off while a change of several parts is going on), then writes and syncs them as one
//! batch while the broker goes on.
//!
//! When a write fails, the broker goes on in memory, and once a second the journal tries to write the whole state anew,
//! which also replaces a log that has grown to more than twice its state.
//!
//! Owns the thread and the directory. Ends with [`Journal::stop`], or with the router.

use std::collections::HashSet;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, RwLock, RwLockReadGuard};
use tokio::sync::watch;

use crate::telemetry::JournalMetrics;

use super::clients::{Client, Extent, SessionChange};
use super::message::StoredMessage;
use super::router::{Router, now_ms};

mod log;
mod record;
#[cfg(test)]
mod tests;

use log::{Batch, Directory, Log, Recovered, Rest, Storage};
use record::{Clock, MessageRecord, Record, SessionRecord, WillRecord, millis, options_byte};
pub(super) use record::{Image, SessionImage};

/// How long a change may wait for a commit with [`Durability::Periodic`].
const PERIOD: Duration = Duration::from_millis(100);

/// How long after a failed write the next one is tried.
const RETRY: Duration = Duration::from_secs(1);

/// A log up to this size is not replaced by a new one.
const COMPACT_BYTES_MIN: u64 = 64 << 20;

/// Changed topics, changed sessions and ended ones up to which they are listed, while the disk is slow; with more, the
/// whole state is written.
const CHANGES_MAX: usize = 1 << 17;

/// What survives the end of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Nothing.
    None,
    /// Everything up to 100 ms before a crash.
    Periodic,
    /// Everything that was acknowledged: an acknowledgement waits for the disk.
    EveryMessage,
}

/// The list of changes, and who waits for commits.
pub(super) struct Journal {
    durability: Durability,
    /// Held shared by changes of several parts, exclusively while the changes are taken.
    gate: RwLock<()>,
    changes: Mutex<Changes>,
    wake: Condvar,
    /// The number of the batch that takes the present changes.
    batch: AtomicU64,
    /// The number of the last batch that is on the disk.
    durable: watch::Sender<u64>,
    metrics: JournalMetrics,
}

#[derive(Default)]
struct Changes {
    sessions: Vec<Arc<Client>>,
    ended: Vec<u64>,
    topics: HashSet<Box<str>>,
    /// The whole state is to be written.
    all: bool,
    is_stopping: bool,
}

impl Changes {
    fn any(&self) -> bool {
        self.all || !self.sessions.is_empty() || !self.ended.is_empty() || !self.topics.is_empty()
    }

    fn bound(&mut self) {
        if self.sessions.len().max(self.ended.len()).max(self.topics.len()) > CHANGES_MAX {
            self.set_all();
        }
    }

    /// The whole state is to be written, so what has changed of it need not be listed.
    fn set_all(&mut self) {
        self.all = true;
        (self.sessions, self.ended, self.topics) = Default::default();
    }
}

/// What a commit writes.
struct Taken {
    extent: Extent,
    batch: u64,
    clock: Clock,
    sessions: Vec<SessionChange>,
    ended: Vec<u64>,
    retained: Vec<Arc<StoredMessage>>,
    not_retained: Vec<Box<str>>,
}

/// An opened journal, with the state that it has kept.
pub(super) struct Opened {
    pub(super) journal: Arc<Journal>,
    pub(super) image: Image,
    log: Log<Directory>,
}

impl Journal {
    /// Reads the directory. A directory that cannot be made or locked because the disk is full or read-only is no error
    /// with [`Durability::Periodic`]: it is tried again.
    ///
    /// # Errors
    ///
    /// Those of the disk, and a directory that another process uses.
    pub(super) fn open(dir: PathBuf, durability: Durability, metrics: JournalMetrics) -> io::Result<Opened> {
        let clock = clock();
        let started = clock.now;
        let mut directory = Directory::new(&dir);
        let recovered = match directory.open(clock) {
            Ok(recovered) => recovered,
            Err(error) if durability == Durability::Periodic && is_of_the_disk(&error) => {
                tracing::warn!(dir = %dir.display(), %error, "the broker's state cannot be written; it is kept in memory");
                metrics.failing.set(1);
                Recovered::default()
            }
            Err(error) => return Err(error),
        };
        let Recovered { image, len, rest } = recovered;
        match rest {
            Rest::Nothing => {}
            Rest::Torn { bytes } => {
                tracing::warn!(dir = %dir.display(), bytes, "the last write of the broker's state was interrupted; it is left out");
            }
            Rest::Damaged => {
                let kept = directory.quarantined(clock);
                tracing::error!(
                    kept = %kept.display(),
                    "the broker's state is damaged; the state before the damage is used, and the file is kept"
                );
                metrics.damaged.inc();
            }
        }
        if len > 0 {
            tracing::info!(
                retained = image.retained().count(),
                sessions = image.sessions.len(),
                bytes = len,
                ms = started.elapsed().as_millis(),
                "the broker's state is restored"
            );
        }
        let is_new = len == 0 || rest == Rest::Damaged;
        let journal = Arc::new(Self::new(durability, metrics, is_new));
        Ok(Opened { journal, image, log: Log::new(directory, if is_new { 0 } else { len }) })
    }

    /// `is_new`: there is no log yet, so the whole state is to be written.
    fn new(durability: Durability, metrics: JournalMetrics, is_new: bool) -> Self {
        Self {
            durability,
            gate: RwLock::new(()),
            changes: Mutex::new(Changes { all: is_new, ..Changes::default() }),
            wake: Condvar::new(),
            batch: AtomicU64::new(1),
            durable: watch::Sender::new(0),
            metrics,
        }
    }

    /// Holds commits off while a change of several parts is going on: it is written as a whole or not at all.
    pub(super) fn begin(&self) -> RwLockReadGuard<'_, ()> {
        // A waiting commit comes before the next change, so that no load holds it off for long.
        self.gate.read()
    }

    /// Lists a session; says whether it is in the list now.
    pub(super) fn session_changed(&self, client: &Arc<Client>) -> bool {
        let mut changes = self.changes.lock();
        if changes.all || changes.is_stopping {
            return false;
        }
        changes.sessions.push(client.clone());
        changes.bound();
        self.wake.notify_one();
        true
    }

    pub(super) fn session_ended(&self, serial: u64) {
        let mut changes = self.changes.lock();
        if !changes.all && !changes.is_stopping {
            changes.ended.push(serial);
            changes.bound();
            self.wake.notify_one();
        }
    }

    /// The retained message of a topic has changed.
    pub(super) fn topic_changed(&self, topic: &str) {
        let mut changes = self.changes.lock();
        if changes.all || changes.is_stopping {
            return;
        }
        if !changes.topics.contains(topic) {
            changes.topics.insert(topic.into());
        }
        changes.bound();
        self.wake.notify_one();
    }

    /// The batch that an acknowledgement of what has been done so far has to wait for; `None` when it need not wait.
    pub(super) fn position(&self) -> Option<u64> {
        if self.durability != Durability::EveryMessage {
            return None;
        }
        let changes = self.changes.lock();
        let batch = self.batch.load(Ordering::Acquire);
        let last = if changes.any() { batch } else { batch - 1 };
        drop(changes);
        (last > *self.durable.borrow()).then_some(last)
    }

    /// Shows the number of the last batch that is on the disk.
    pub(super) fn durable(&self) -> watch::Receiver<u64> {
        self.durable.subscribe()
    }

    /// Returns when a batch is on the disk.
    pub(super) async fn wait(&self, batch: u64) {
        // The sender lives as long as this.
        drop(self.durable().wait_for(|durable| *durable >= batch).await);
    }

    /// Writes what has changed a last time, and ends the thread. A second call does nothing.
    pub(super) fn stop(&self) {
        self.changes.lock().is_stopping = true;
        self.wake.notify_one();
    }
}

/// Whether a directory cannot be written, but may be later.
fn is_of_the_disk(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::ReadOnlyFilesystem
    )
}

fn clock() -> Clock {
    Clock { now: Instant::now(), now_ms: now_ms() }
}

impl Opened {
    /// Starts the thread that commits.
    ///
    /// # Errors
    ///
    /// The system has no thread left.
    pub(super) fn start(self, router: &Arc<Router>) -> io::Result<Thread> {
        let Self { journal, log, .. } = self;
        let router = Arc::downgrade(router);
        let handle = std::thread::Builder::new()
            .name("broker-journal".to_owned())
            .spawn(move || Committer { log, router, journal, compacted: 0, failed: false }.run())?;
        Ok(Thread(Mutex::new(Some(handle))))
    }
}

/// The running thread.
pub(super) struct Thread(Mutex<Option<std::thread::JoinHandle<()>>>);

impl Thread {
    /// Waits for the end of the thread, after [`Journal::stop`].
    pub(super) async fn join(&self) {
        let handle = self.0.lock().take();
        let Some(handle) = handle else { return };
        let joined = tokio::task::spawn_blocking(move || handle.join()).await;
        if !matches!(joined, Ok(Ok(()))) {
            tracing::error!("the thread of the broker's journal has panicked");
        }
    }
}

struct Committer<S> {
    log: Log<S>,
    router: Weak<Router>,
    journal: Arc<Journal>,
    /// Bytes of the log when it was written anew.
    compacted: u64,
    failed: bool,
}

impl<S: Storage> Committer<S> {
    fn run(mut self) {
        loop {
            let is_last = self.wait();
            // What the router still had to say at its end was committed by `Broker::shutdown`.
            let Some(router) = self.router.upgrade() else { return };
            if let Some(taken) = take(&self.journal, &router) {
                self.commit(taken);
            }
            if is_last {
                return;
            }
        }
    }

    /// Returns when there is something to commit and its time has come, or at the end; says whether it is the end.
    fn wait(&self) -> bool {
        let mut changes = self.journal.changes.lock();
        while !changes.any() && !changes.is_stopping {
            self.journal.wake.wait(&mut changes);
        }
        let delay = match self.journal.durability {
            _ if self.failed => RETRY,
            Durability::Periodic => PERIOD,
            Durability::EveryMessage | Durability::None => return changes.is_stopping,
        };
        let until = Instant::now() + delay;
        while !changes.is_stopping && !self.journal.wake.wait_until(&mut changes, until).timed_out() {}
        changes.is_stopping
    }

    fn commit(&mut self, taken: Taken) {
        let batch = taken.batch;
        let written = match taken.extent {
            Extent::Changes => self.log.append(|batch| write(batch, &taken)),
            Extent::All => self.log.replace(|batch| write(batch, &taken)),
        };
        let metrics = &self.journal.metrics;
        match written {
            Ok(()) => {
                if taken.extent == Extent::All {
                    self.compacted = self.log.len();
                }
                metrics.commits.inc();
                metrics.bytes.set(i64::try_from(self.log.len()).unwrap_or(i64::MAX));
                metrics.failing.set(0);
                if std::mem::take(&mut self.failed) {
                    tracing::info!("the broker's state is on the disk again");
                }
                self.journal.durable.send_replace(batch);
                if self.log.len() > COMPACT_BYTES_MIN.max(2 * self.compacted) {
                    self.journal.changes.lock().set_all();
                }
            }
            Err(error) => {
                metrics.write_errors.inc();
                metrics.failing.set(1);
                if !std::mem::replace(&mut self.failed, true) {
                    tracing::warn!(%error, "the broker's state cannot be written; it is kept in memory until it can");
                }
                self.journal.changes.lock().set_all();
            }
        }
    }
}

/// Takes the changes at one moment.
fn take(journal: &Journal, router: &Router) -> Option<Taken> {
    let _moment = journal.gate.write();
    let (changes, batch) = {
        let mut changes = journal.changes.lock();
        if !changes.any() {
            return None;
        }
        let is_stopping = changes.is_stopping;
        let taken = std::mem::replace(&mut *changes, Changes { is_stopping, ..Changes::default() });
        (taken, journal.batch.fetch_add(1, Ordering::AcqRel))
    };
    let mut taken = Taken {
        extent: if changes.all { Extent::All } else { Extent::Changes },
        batch,
        clock: clock(),
        sessions: Vec::new(),
        ended: changes.ended,
        retained: Vec::new(),
        not_retained: Vec::new(),
    };
    if changes.all {
        taken.sessions = router.clients().all().iter().filter_map(|client| client.take_change(Extent::All)).collect();
        taken.retained = router.all_retained();
    } else {
        let changed = changes.sessions.iter().filter_map(|client| client.take_change(Extent::Changes));
        taken.sessions = changed.collect();
        for topic in changes.topics {
            match router.retained_message(&topic) {
                Some(message) => taken.retained.push(message),
                None => taken.not_retained.push(topic),
            }
        }
    }
    Some(taken)
}

fn write<S: Storage>(batch: &mut Batch<'_, S>, taken: &Taken) -> io::Result<()> {
    let clock = taken.clock;
    let mut written = HashSet::new();
    let mut message = |batch: &mut Batch<'_, S>, message: &StoredMessage| {
        if written.insert(message.number) {
            batch.record(&Record::Message(MessageRecord::new(message, clock)))?;
        }
        Ok::<_, io::Error>(message.number)
    };
    for topic in &taken.not_retained {
        batch.record(&Record::NotRetained { topic })?;
    }
    for retained in &taken.retained {
        let number = message(batch, retained)?;
        batch.record(&Record::Retained { number })?;
    }
    for session in &taken.sessions {
        let serial = session.serial;
        if session.replaces_filters {
            // The records that follow bring everything of it again, but for its messages.
            batch.record(&Record::AllUnsubscribed { serial })?;
        }
        batch.record(&Record::Session(SessionRecord {
            serial,
            id: &session.id,
            username: &session.username,
            expiry_ms: millis(session.expiry),
            expires_ms: session.expires.map(|expires| clock.to_ms(expires)),
            will: session.will.as_deref().map(WillRecord::new),
            will_due_ms: session.will_due.map(|due| clock.to_ms(due)),
        }))?;
        for (filter, subscription) in &session.filters {
            batch.record(&match subscription {
                Some((options, id)) => Record::Subscribed { serial, filter, options: options_byte(*options), id: *id },
                None => Record::Unsubscribed { serial, filter },
            })?;
        }
        for queued in &session.queued {
            let delivery = &queued.message;
            let number = message(batch, &delivery.message)?;
            batch.record(&Record::Queued {
                serial,
                seq: queued.seq,
                number,
                qos: queued.qos as u8,
                retain: delivery.retain,
                subscription_ids: delivery.subscription_ids.as_deref().unwrap_or_default().to_vec(),
                bytes: queued.bytes as u64,
            })?;
        }
        batch.record(&Record::Outline { serial, outline: session.outline.clone() })?;
        batch.record(&Record::Unreleased { serial, packet_ids: session.unreleased.clone() })?;
    }
    // Behind the sessions: one that has ended may have been in the list before.
    for serial in &taken.ended {
        batch.record(&Record::SessionEnded { serial: *serial })?;
    }
    Ok(())
}
