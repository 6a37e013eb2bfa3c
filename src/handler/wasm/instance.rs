//! One instance of a guest: its store, its exports, and how it is entered.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use wasmtime::{Store, Trap, WasmBacktrace};

use super::fairness::EventClock;
use super::limits::{BudgetUsed, MemoryLimit};
use super::loaded_guest::LoadedGuest;
use super::log::GuestLog;
use super::store::{self, CpuTimeExceeded, GuestState, Metering};
use super::ticker;
use crate::adapter::Backend;
use crate::conn::{ConnId, ConnInfo, Event};
use crate::handler::CallError;
use crate::telemetry::PAYLOAD_LOG;
use crate::wit::bindings::ConnectionHandler;
use crate::wit::migration::{Migration, exports::polygate::handler::migrate};
use crate::wit::types;

/// How long an event may take in all, on top of its CPU time: what a guest waits for (the broker, the
/// authentication) has timeouts of its own below this, and a guest that sleeps is ended by it.
const WAITING_MAX: Duration = Duration::from_secs(30);

/// An instance with more memory than this is dropped where nobody waits for it.
const MEMORY_BYTES_QUICK: usize = 2 << 20;

/// First bytes of an event that the log shows when the guest failed in it.
const SHOWN_BYTES_MAX: usize = 64;

/// The state of one connection, as a guest wrote it for its next version.
pub(crate) use migrate::State as Snapshot;

/// What an instance is entered for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Call<'a> {
    Event(&'a Event),
    Snapshot,
    Restore(&'a ConnInfo, Option<&'a Snapshot>),
}

/// What came of it.
#[derive(Debug)]
pub(super) enum Answer {
    Done,
    Snapshot(Option<Snapshot>),
    Restored(Result<(), String>),
}

/// An instance, made for its first call, and after a failure never entered again.
pub(super) struct Instance {
    guest: Arc<LoadedGuest>,
    clock: Arc<EventClock>,
    /// Its calls are long ones from their beginning, until one has succeeded.
    quarantined: bool,
    /// Nothing from the beginning of a call until it has succeeded.
    inner: Option<Box<LiveInstance>>,
    /// How the guest failed.
    failure: Option<wasmtime::Error>,
    /// What it had used when it failed.
    used: Usage,
    /// Its linear memory after the first call, or when it could not be replaced, in bytes.
    initial_bytes: usize,
}

/// What a call takes along, wherever it runs.
struct LiveInstance {
    guest: Arc<LoadedGuest>,
    store: Store<GuestState>,
    exports: Option<Exports>,
    /// How the guest failed.
    failure: Option<wasmtime::Error>,
}

/// What a call gives back: what it took along, and what came of it.
type Called = (Box<LiveInstance>, Backend, Result<Answer, CallError>);

struct Exports {
    handler: ConnectionHandler,
    migration: Option<Migration>,
}

impl std::fmt::Debug for Instance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Instance")
            .field("handler", &self.guest.config.options.name)
            .field("live", &self.inner.as_ref().is_some_and(|inner| inner.exports.is_some()))
            .field("failed", &self.has_failed())
            .finish()
    }
}

impl Instance {
    /// A place for an instance that speaks about `conn` first.
    pub(super) fn new(guest: Arc<LoadedGuest>, conn: ConnId) -> Self {
        let (name, together) = (Arc::clone(&guest.config.options.name), guest.log.clone());
        let log = GuestLog::new(conn, name, together, guest.config.metrics.suppressed_log_lines.clone());
        let log = Arc::new(Mutex::new(log));
        let clock = Arc::<EventClock>::default();
        let (memory_bytes_max, memory_rate) = (guest.config.options.memory_bytes_max, Arc::clone(&guest.memory_rate));
        let limit = MemoryLimit::new(memory_bytes_max, Arc::clone(&clock), memory_rate, guest.config.metrics.clone());
        let state = GuestState {
            backend: None,
            limit,
            log,
            cpu_left: Duration::ZERO,
            clock: Arc::clone(&clock),
            budget_used: BudgetUsed::default(),
            wasi: None,
            permit: None,
            config: Arc::clone(&guest.config),
        };
        let mut store = Store::new(&guest.engine, state);
        store.limiter_async(|state| &mut state.limit);
        store.epoch_deadline_callback(store::on_tick);
        if guest.config.metering == Metering::Fuel
            && let Err(error) = store.set_fuel(u64::MAX)
        {
            tracing::error!(%error, "an engine that meters takes no fuel");
        }
        let inner = Some(Box::new(LiveInstance { guest: Arc::clone(&guest), store, exports: None, failure: None }));
        Self { guest, clock, quarantined: false, inner, failure: None, used: Usage::default(), initial_bytes: 0 }
    }

    /// What it has used so far, or had when it failed.
    pub(super) fn usage(&self) -> Usage {
        self.inner.as_ref().map_or(self.used, |inner| inner.usage())
    }

    /// Where the guest was when it failed.
    pub(super) fn backtrace(&self) -> Option<String> {
        self.failure.as_ref()?.downcast_ref::<WasmBacktrace>().map(frames)
    }

    /// Whether it must not be entered any more.
    pub(super) fn has_failed(&self) -> bool {
        self.inner.is_none()
    }

    /// It takes over from one that has failed, and its first event is the same; or it is new while others of its handler keep
    /// failing. Whatever its first event does, it does it where nobody waits for it.
    pub(super) fn quarantine(&mut self) {
        self.quarantined = true;
    }

    #[cfg(test)]
    pub(super) fn is_quarantined(&self) -> bool {
        self.quarantined
    }

    /// Whether its memory has grown to where it will soon be refused more: three quarters of what it may have, and twice
    /// of what it began with. Memory of a guest never shrinks, so only a fresh instance has less.
    pub(super) fn needs_recycle(&self) -> bool {
        let bytes = self.usage().memory_bytes;
        bytes >= self.guest.config.options.memory_bytes_max / 4 * 3 && bytes >= self.initial_bytes.saturating_mul(2)
    }

    /// It could not be replaced: what it has now is what it is to have.
    pub(super) fn keep(&mut self) {
        self.initial_bytes = self.usage().memory_bytes;
    }

    /// From now on the instance speaks about this connection.
    pub(super) fn set_conn(&mut self, conn: ConnId) {
        if let Some(inner) = &self.inner {
            inner.store.data().log.lock().set_conn(conn);
        }
    }

    /// Enters the instance and waits until it returns; if that takes long, it goes on among the [long
    /// events](super::long::LongEvents). The desk comes back with the answer; it is lost only when the future is dropped, which
    /// fails the instance as well.
    ///
    /// # Errors
    ///
    /// [`CallError::Unavailable`]: no instance could be made. [`CallError::Timeout`]: the call's CPU time was
    /// used up. [`CallError::Fault`]: the guest trapped; the text says how. [`CallError::Unfit`]: it has no such
    /// export.
    pub(super) async fn call(&mut self, backend: Backend, call: Call<'_>) -> (Backend, Result<Answer, CallError>) {
        // Given back when the call has succeeded: a future that is dropped leaves a guest stopped in its middle.
        let Some(inner) = self.inner.take() else {
            return (backend, Err(CallError::Unavailable("the instance has failed before".to_owned())));
        };
        let introduces = matches!(call, Call::Event(Event::SocketCreated(_)));
        // Owned, so that it can go on in another thread.
        let called = Box::pin(inner.call(backend, Entry::of(call)));
        let (mut inner, backend, result) = if self.quarantined {
            run_in_background(&self.guest, &self.clock, called).await
        } else {
            run_on_worker(&self.guest, &self.clock, called).await
        };
        self.clock.end();
        if self.initial_bytes == 0 {
            self.initial_bytes = inner.memory_bytes();
        }
        if let Err(error) = &result {
            self.guest.config.failures.handle(error, inner.cpu_time());
            self.used = inner.usage();
            self.failure = inner.failure.take();
            self.guest.background.discard(inner);
        } else {
            self.quarantined &= introduces;
            self.inner = Some(inner);
        }
        (backend, result)
    }

    /// Makes the instance, tells it nothing, and drops it.
    ///
    /// # Errors
    ///
    /// As [`Self::call`].
    pub(super) async fn try_out(mut self, conn: ConnId) -> Result<(), CallError> {
        let Some(mut inner) = self.inner.take() else {
            return Err(CallError::Unavailable("the instance has failed before".to_owned()));
        };
        let within = inner.begin_event() + WAITING_MAX;
        let made = tokio::time::timeout(within, inner.instantiate(conn)).await;
        made.unwrap_or(Err(CallError::Timeout(within))).map(drop)
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // To give much memory back takes the kernel milliseconds.
        if let Some(inner) = self.inner.take_if(|inner| inner.memory_bytes() > MEMORY_BYTES_QUICK) {
            self.guest.background.discard(inner);
        }
    }
}

/// Runs a call in this thread, and where nobody waits for it once it is long.
async fn run_on_worker(
    guest: &LoadedGuest,
    clock: &Arc<EventClock>,
    mut called: Pin<Box<impl Future<Output = Called> + Send + 'static>>,
) -> Called {
    loop {
        if clock.is_long() {
            return guest.background.finish(called, clock).await;
        }
        match futures::poll!(called.as_mut()) {
            Poll::Ready(answered) => return answered,
            Poll::Pending if clock.is_long() => {}
            Poll::Pending => woken().await,
        }
    }
}

/// Runs a call where nobody waits for it; while the handler keeps failing, the call waits for its memory.
async fn run_in_background(
    guest: &LoadedGuest,
    clock: &EventClock,
    called: Pin<Box<impl Future<Output = Called> + Send + 'static>>,
) -> Called {
    let LoadedGuest { config, memory_rate, background, .. } = guest;
    config.metrics.deprioritized_by_failures.inc();
    if config.failures.are_many() {
        clock.begin_waiting();
    }
    let (inner, backend, result) = background.run_in_background(called).await;
    let taken = clock.end_waiting();
    if result.is_ok() {
        memory_rate.give_back(taken);
    }
    (inner, backend, result)
}

/// Returns when whoever polls this is polled again.
async fn woken() {
    let mut is_first = true;
    poll_fn(|_| if std::mem::take(&mut is_first) { Poll::Pending } else { Poll::Ready(()) }).await;
}

/// A call with its arguments, as the guest gets them.
enum Entry {
    Bytes(Bytes),
    Created(types::ConnInfo),
    Timer(types::Timer),
    Messages(Vec<types::Message>),
    Closed(types::CloseReason),
    Snapshot,
    Restore(types::ConnInfo, Option<Snapshot>),
}

impl Entry {
    fn of(call: Call<'_>) -> Self {
        match call {
            Call::Event(Event::ReceivedBytes(bytes)) => Self::Bytes(bytes.clone()),
            Call::Event(Event::SocketCreated(info)) => Self::Created(info.as_ref().into()),
            Call::Event(Event::TimerTimeout(timer)) => Self::Timer((*timer).into()),
            Call::Event(Event::ReceivedMessages(messages)) => Self::Messages(messages.iter().map(Into::into).collect()),
            Call::Event(Event::SocketClosed(reason)) => Self::Closed(reason.into()),
            Call::Snapshot => Self::Snapshot,
            Call::Restore(info, state) => Self::Restore(info.into(), state.cloned()),
        }
    }

    /// Its name in the log.
    fn name(&self) -> &'static str {
        match self {
            Self::Bytes(_) => "on_received_bytes",
            Self::Created(_) => "on_socket_created",
            Self::Timer(_) => "on_timer_timeout",
            Self::Messages(_) => "on_received_messages",
            Self::Closed(_) => "on_socket_closed",
            Self::Snapshot => "snapshot",
            Self::Restore(..) => "restore",
        }
    }

    /// How many bytes it carries for the guest, and the first of them.
    fn payload(&self) -> (usize, &[u8]) {
        match self {
            Self::Bytes(bytes) => (bytes.len(), bytes),
            Self::Messages(messages) => (
                messages.iter().map(|message| message.payload.len()).sum(),
                messages.first().map_or(&[], |message| &message.payload),
            ),
            Self::Restore(_, Some(state)) => (state.bytes.len(), &state.bytes),
            Self::Created(_) | Self::Timer(_) | Self::Closed(_) | Self::Snapshot | Self::Restore(_, None) => (0, &[]),
        }
    }
}

impl LiveInstance {
    fn memory_bytes(&self) -> usize {
        self.store.data().limit.bytes()
    }

    /// CPU time of the last event, as far as its ticks have seen it.
    fn cpu_time(&self) -> Duration {
        let state = self.store.data();
        state.config.options.event_timeout.saturating_sub(state.cpu_left)
    }

    fn usage(&self) -> Usage {
        Usage {
            memory_bytes: self.memory_bytes(),
            fuel: match self.store.data().config.metering {
                Metering::None => None,
                Metering::Fuel => self.store.get_fuel().ok().map(|left| u64::MAX - left),
            },
        }
    }

    /// One call, with a bound on its time, but for that one on its CPU time.
    async fn call(mut self: Box<Self>, backend: Backend, entry: Entry) -> Called {
        let conn = backend.conn();
        self.store.data_mut().backend = Some(backend);
        let timeout = self.begin_event();
        let result = {
            let mut entered = pin!(self.enter(conn, entry));
            // Most events are over when they are first polled; a timer would cost them more than the rest of this.
            match futures::poll!(entered.as_mut()) {
                Poll::Ready(result) => result,
                Poll::Pending => {
                    let within = timeout + WAITING_MAX;
                    let mut late = pin!(tokio::time::sleep(within));
                    let mut was_polled = true;
                    poll_fn(|context| {
                        // A guest that has yielded a moment ago goes on elsewhere, or at its next turn.
                        if !std::mem::take(&mut was_polled)
                            && let Poll::Ready(result) = entered.as_mut().poll(context)
                        {
                            return Poll::Ready(result);
                        }
                        late.as_mut().poll(context).map(|()| Err(CallError::Timeout(within)))
                    })
                    .await
                }
            }
        };
        // Nothing takes it away but this.
        let backend =
            self.store.data_mut().backend.take().expect("the desk stays in the store for the length of a call");
        (self, backend, result)
    }

    /// Starts the event's CPU time; gives it as the handler's options have it.
    fn begin_event(&mut self) -> Duration {
        let timeout = self.store.data().config.options.event_timeout;
        self.store.data_mut().cpu_left = timeout;
        self.store.data_mut().budget_used = BudgetUsed::default();
        self.store.data_mut().limit.begin_event();
        self.store.set_epoch_deadline(ticker::FIRST_TICKS);
        timeout
    }

    async fn enter(&mut self, conn: ConnId, entry: Entry) -> Result<Answer, CallError> {
        if self.exports.is_none() {
            self.exports = Some(self.instantiate(conn).await?);
        }
        let (Some(exports), store) = (&self.exports, &mut self.store) else {
            return Err(CallError::Unavailable("there is no instance".to_owned()));
        };
        let handler = exports.handler.polygate_handler_handler();
        let migrate = exports.migration.as_ref().map(Migration::polygate_handler_migrate);
        let unfit = || CallError::Unfit("the guest does not export the migrate interface".to_owned());
        let id = conn.to_u64();
        let called = match &entry {
            Entry::Bytes(bytes) => handler.call_on_received_bytes(&mut *store, id, bytes).await.map(|()| Answer::Done),
            Entry::Created(info) => handler.call_on_socket_created(&mut *store, id, info).await.map(|()| Answer::Done),
            Entry::Timer(timer) => handler.call_on_timer_timeout(&mut *store, id, *timer).await.map(|()| Answer::Done),
            Entry::Messages(messages) => {
                handler.call_on_received_messages(&mut *store, id, messages).await.map(|()| Answer::Done)
            }
            Entry::Closed(reason) => {
                handler.call_on_socket_closed(&mut *store, id, reason).await.map(|()| Answer::Done)
            }
            Entry::Snapshot => migrate.ok_or_else(unfit)?.call_snapshot(&mut *store, id).await.map(Answer::Snapshot),
            Entry::Restore(info, state) => migrate
                .ok_or_else(unfit)?
                .call_restore(&mut *store, id, info, state.as_ref())
                .await
                .map(Answer::Restored),
        };
        called.map_err(|error| {
            let (bytes, payload) = entry.payload();
            self.failure(conn, entry.name(), bytes, payload, error)
        })
    }

    async fn instantiate(&mut self, conn: ConnId) -> Result<Exports, CallError> {
        let guest = Arc::clone(&self.guest);
        let permit = guest
            .instance_limit
            .permit(&guest.config.metrics)
            .map_err(|reached| CallError::Unavailable(reached.to_string()))?;
        self.store.data_mut().permit = Some(permit);
        let made = async {
            let instance = guest.pre.instantiate_async(&mut self.store).await?;
            let handler = guest.handler_exports.load(&mut self.store, &instance)?;
            let migration = match &guest.migration_exports {
                Some(exports) => Some(exports.load(&mut self.store, &instance)?),
                None => None,
            };
            Ok(Exports { handler, migration })
        };
        let made = made.await;
        self.store.data_mut().limit.handle_made();
        made.map_err(|error| match self.failure(conn, "instantiation", 0, &[], error) {
            CallError::Fault(text) => CallError::Unavailable(format!("cannot make an instance: {text}")),
            other @ (CallError::Unavailable(_) | CallError::Timeout(_) | CallError::Unfit(_)) => other,
        })
    }

    /// What a failed call means, and a line in the log that its author can use.
    fn failure(
        &mut self,
        conn: ConnId,
        call: &'static str,
        bytes: usize,
        payload: &[u8],
        error: wasmtime::Error,
    ) -> CallError {
        let error = &*self.failure.insert(error);
        let state = self.store.data();
        let options = &state.config.options;
        // What the device said is its own business: only who asks for it in the log's filter sees it.
        let first = &payload[..payload.len().min(SHOWN_BYTES_MAX)];
        tracing::trace!(target: PAYLOAD_LOG, %conn, handler = %options.name, call, bytes, first = %Hex(first), "the event that the guest failed in");
        // The backtrace names the guest's functions if it has a name section, and their lines if it has DWARF. A device that
        // makes its guest fail again and again is told of only so often.
        if state.config.failures.should_log() {
            tracing::warn!(%conn, handler = %options.name, call, bytes, report = %format_args!("{error:?}"), "the guest failed");
        } else {
            state.config.metrics.suppressed_log_lines.inc();
        }
        if error.downcast_ref::<CpuTimeExceeded>().is_some() {
            return CallError::Timeout(options.event_timeout);
        }
        let trap = error.downcast_ref::<Trap>().map_or_else(|| error.root_cause().to_string(), ToString::to_string);
        if state.limit.exceeded {
            CallError::Fault(format!("{trap}, after memory beyond {} bytes was refused", options.memory_bytes_max))
        } else {
            CallError::Fault(trap)
        }
    }
}

/// The functions of a backtrace, without its heading and without the modules, which have no names in components.
fn frames(backtrace: &WasmBacktrace) -> String {
    let text = backtrace.to_string();
    text.split_once('\n').map_or("", |(_, frames)| frames).replace("<unknown>!", "")
}

/// What an instance has used since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Linear memory of all its memories, which never shrink.
    pub memory_bytes: usize,
    /// Instructions, roughly: what wasmtime calls fuel. `None` on a host that does not meter.
    pub fuel: Option<u64>,
}

/// Bytes as hex digits.
struct Hex<'a>(&'a [u8]);

impl std::fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
