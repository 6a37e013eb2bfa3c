//! Instance of a guest: its wasmtime store, its exports, and calls of them.
//!
//! It is instantiated at its first call, ends when dropped, and is never called again after a failure.

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

/// Wall-clock limit of an event, in addition to its CPU time. Host operations of a guest (publish, authentication) have
/// shorter timeouts of their own; this limit ends a guest that sleeps.
const WAITING_MAX: Duration = Duration::from_secs(30);

/// Memory, in bytes, above which an instance is dropped by a background thread: the kernel takes milliseconds to free
/// it.
const MEMORY_BYTES_QUICK: usize = 2 << 20;

/// Maximum number of payload bytes in the trace line of a failed call.
const LOGGED_BYTES_MAX: usize = 64;

/// State of one connection, exported by a guest for its next version.
pub(crate) use migrate::State as Snapshot;

#[derive(Clone, Copy, Debug)]
pub(super) enum Call<'a> {
    Event(&'a Event),
    Snapshot,
    Restore(&'a ConnInfo, Option<&'a Snapshot>),
}

/// Result of a successful call.
#[derive(Debug)]
pub(super) enum Answer {
    Done,
    Snapshot(Option<Snapshot>),
    Restored(Result<(), String>),
}

pub(super) struct Instance {
    guest: Arc<LoadedGuest>,
    clock: Arc<EventClock>,
    /// Calls run at idle priority from their beginning, until one has succeeded (besides `on-socket-created`).
    quarantined: bool,
    /// `None` from the beginning of a call until it has succeeded.
    live: Option<Box<LiveInstance>>,
    failure: Option<wasmtime::Error>,
    /// Usage at the failure.
    final_usage: Usage,
    /// Linear memory after the first call, or after a failed replacement, in bytes.
    initial_bytes: usize,
}

/// The part of an instance that a call owns and takes to a background thread.
struct LiveInstance {
    guest: Arc<LoadedGuest>,
    store: Store<GuestState>,
    exports: Option<Exports>,
    failure: Option<wasmtime::Error>,
}

/// Output of a call: everything it owned, and its result.
type CallOutput = (Box<LiveInstance>, Backend, Result<Answer, CallError>);

struct Exports {
    handler: ConnectionHandler,
    migration: Option<Migration>,
}

impl std::fmt::Debug for Instance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Instance")
            .field("handler", &self.guest.config.options.name)
            .field("live", &self.live.as_ref().is_some_and(|live| live.exports.is_some()))
            .field("failed", &self.has_failed())
            .finish()
    }
}

impl Instance {
    /// An instance for `conn`, not instantiated yet.
    pub(super) fn new(guest: Arc<LoadedGuest>, conn: ConnId) -> Self {
        let (name, handler_limiter) = (Arc::clone(&guest.config.options.name), guest.log.clone());
        let log = GuestLog::new(conn, name, handler_limiter, guest.config.metrics.suppressed_log_lines.clone());
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
            tracing::error!(%error, "cannot set the fuel of a metered instance");
        }
        let live = Some(Box::new(LiveInstance { guest: Arc::clone(&guest), store, exports: None, failure: None }));
        Self { guest, clock, quarantined: false, live, failure: None, final_usage: Usage::default(), initial_bytes: 0 }
    }

    /// Current usage; after a failure, the usage at the failure.
    pub(super) fn usage(&self) -> Usage {
        self.live.as_ref().map_or(self.final_usage, |live| live.usage())
    }

    /// Backtrace of the failure.
    pub(super) fn backtrace(&self) -> Option<String> {
        self.failure.as_ref()?.downcast_ref::<WasmBacktrace>().map(frames)
    }

    /// Whether it has failed and accepts no further call.
    pub(super) fn has_failed(&self) -> bool {
        self.live.is_none()
    }

    /// Runs its calls at idle priority until one succeeds (besides `on-socket-created`): the instance replaces a failed
    /// one and gets the same event, or its handler keeps failing.
    pub(super) fn quarantine(&mut self) {
        self.quarantined = true;
    }

    #[cfg(test)]
    pub(super) fn is_quarantined(&self) -> bool {
        self.quarantined
    }

    /// Whether its memory has grown to three quarters of the limit and to twice its initial size, so that a growth will
    /// soon be refused. Linear memory never shrinks, so only a new instance has less.
    pub(super) fn needs_recycle(&self) -> bool {
        let bytes = self.usage().memory_bytes;
        bytes >= self.guest.config.options.memory_bytes_max / 4 * 3 && bytes >= self.initial_bytes.saturating_mul(2)
    }

    /// Keeps the instance after a failed replacement: its current memory becomes its initial size.
    pub(super) fn keep(&mut self) {
        self.initial_bytes = self.usage().memory_bytes;
    }

    /// Sets the connection of the following log lines.
    pub(super) fn set_conn(&mut self, conn: ConnId) {
        if let Some(live) = &self.live {
            live.store.data().log.lock().set_conn(conn);
        }
    }

    /// Calls an export and waits for its return; a long call continues in the [background
    /// pools](super::fairness::BackgroundPools). The backend is returned with the result; only a drop of the future
    /// drops it, which fails the instance as well.
    ///
    /// # Errors
    ///
    /// [`CallError::Unavailable`]: no instance could be created. [`CallError::Timeout`]: the call exceeded its CPU
    /// time. [`CallError::Fault`]: the guest trapped; the text has the trap. [`CallError::Unfit`]: the guest does not
    /// have the export.
    pub(super) async fn call(&mut self, backend: Backend, call: Call<'_>) -> (Backend, Result<Answer, CallError>) {
        // Restored only after a success: dropping the future leaves a guest suspended in the middle of its call.
        let Some(live) = self.live.take() else {
            return (backend, Err(CallError::Unavailable("the instance has already failed".to_owned())));
        };
        let is_created = matches!(call, Call::Event(Event::SocketCreated(_)));
        // Owned, so that it can continue in another thread.
        let future = Box::pin(live.call(backend, Entry::of(call)));
        let (mut live, backend, result) = if self.quarantined {
            run_in_background(&self.guest, &self.clock, future).await
        } else {
            run_on_worker(&self.guest, &self.clock, future).await
        };
        self.clock.end();
        if self.initial_bytes == 0 {
            self.initial_bytes = live.memory_bytes();
        }
        if let Err(error) = &result {
            self.guest.config.failures.handle(error, live.cpu_time());
            self.final_usage = live.usage();
            self.failure = live.failure.take();
            self.guest.background.discard(live);
        } else {
            self.quarantined &= is_created;
            self.live = Some(live);
        }
        (backend, result)
    }

    /// Instantiates the guest without a call, and drops the instance.
    ///
    /// # Errors
    ///
    /// As [`Self::call`].
    pub(super) async fn try_out(mut self, conn: ConnId) -> Result<(), CallError> {
        let Some(mut live) = self.live.take() else {
            return Err(CallError::Unavailable("the instance has already failed".to_owned()));
        };
        let within = live.begin_event() + WAITING_MAX;
        let instantiated = tokio::time::timeout(within, live.instantiate(conn)).await;
        instantiated.unwrap_or(Err(CallError::Timeout(within))).map(drop)
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if let Some(live) = self.live.take_if(|live| live.memory_bytes() > MEMORY_BYTES_QUICK) {
            self.guest.background.discard(live);
        }
    }
}

/// Runs a call in this worker thread, and in the background pools once it is long.
async fn run_on_worker(
    guest: &LoadedGuest,
    clock: &Arc<EventClock>,
    mut call: Pin<Box<impl Future<Output = CallOutput> + Send + 'static>>,
) -> CallOutput {
    loop {
        if clock.is_long() {
            return guest.background.finish(call, clock).await;
        }
        match futures::poll!(call.as_mut()) {
            Poll::Ready(output) => return output,
            Poll::Pending if clock.is_long() => {}
            Poll::Pending => woken().await,
        }
    }
}

/// Runs a call at idle priority; while the handler keeps failing, memory growth of the call is rate-limited.
async fn run_in_background(
    guest: &LoadedGuest,
    clock: &EventClock,
    call: Pin<Box<impl Future<Output = CallOutput> + Send + 'static>>,
) -> CallOutput {
    let LoadedGuest { config, memory_rate, background, .. } = guest;
    config.metrics.deprioritized_by_failures.inc();
    if config.failures.are_many() {
        clock.begin_waiting();
    }
    let (live, backend, result) = background.run_in_background(call).await;
    let taken = clock.end_waiting();
    if result.is_ok() {
        memory_rate.give_back(taken);
    }
    (live, backend, result)
}

/// Pending once: returns at the next poll of the enclosing task, which the waker of the call causes.
async fn woken() {
    let mut is_first = true;
    poll_fn(|_| if std::mem::take(&mut is_first) { Poll::Pending } else { Poll::Ready(()) }).await;
}

/// A call with its arguments in the types of the WIT interface.
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

    /// Name in the log.
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

    /// Total length of the payload, and the payload (of the first message only).
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

    /// CPU time of the last event, up to its last tick.
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

    /// Runs one call with the wall-clock limit; the limit of CPU time is in the epoch deadline callback.
    async fn call(mut self: Box<Self>, backend: Backend, entry: Entry) -> CallOutput {
        let conn = backend.conn();
        self.store.data_mut().backend = Some(backend);
        let timeout = self.begin_event();
        let result = {
            let mut entered = pin!(self.enter(conn, entry));
            // Most events complete at the first poll; a timer would cost more than the rest of this function.
            match futures::poll!(entered.as_mut()) {
                Poll::Ready(result) => result,
                Poll::Pending => {
                    let within = timeout + WAITING_MAX;
                    let mut deadline = pin!(tokio::time::sleep(within));
                    let mut was_polled = true;
                    poll_fn(|context| {
                        // The guest has just yielded: it continues in another thread or at the next poll.
                        if !std::mem::take(&mut was_polled)
                            && let Poll::Ready(result) = entered.as_mut().poll(context)
                        {
                            return Poll::Ready(result);
                        }
                        deadline.as_mut().poll(context).map(|()| Err(CallError::Timeout(within)))
                    })
                    .await
                }
            }
        };
        // No other code takes it.
        let backend = self.store.data_mut().backend.take().expect("the backend stays in the store during a call");
        (self, backend, result)
    }

    /// Resets CPU time, budget and epoch deadline for an event; returns the limit of its CPU time.
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
            return Err(CallError::Unavailable("the guest is not instantiated".to_owned()));
        };
        let handler = exports.handler.polygate_handler_handler();
        let migrate = exports.migration.as_ref().map(Migration::polygate_handler_migrate);
        let unfit = || CallError::Unfit("the guest does not export the migrate interface".to_owned());
        let id = conn.to_u64();
        let result = match &entry {
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
        result.map_err(|error| {
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
        let instantiated = async {
            let instance = guest.pre.instantiate_async(&mut self.store).await?;
            let handler = guest.handler_exports.load(&mut self.store, &instance)?;
            let migration = match &guest.migration_exports {
                Some(exports) => Some(exports.load(&mut self.store, &instance)?),
                None => None,
            };
            Ok(Exports { handler, migration })
        };
        let instantiated = instantiated.await;
        self.store.data_mut().limit.handle_instantiated();
        instantiated.map_err(|error| match self.failure(conn, "instantiation", 0, &[], error) {
            CallError::Fault(text) => CallError::Unavailable(format!("cannot instantiate the guest: {text}")),
            other @ (CallError::Unavailable(_) | CallError::Timeout(_) | CallError::Unfit(_)) => other,
        })
    }

    /// Converts the error of a failed call, and logs it with its backtrace for the guest's author.
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
        // Payload may be confidential: it is logged only with an explicit log filter for its target.
        let first = &payload[..payload.len().min(LOGGED_BYTES_MAX)];
        let (handler, first) = (&options.name, Hex(first));
        tracing::trace!(target: PAYLOAD_LOG, %conn, %handler, call, bytes, %first, "payload of the failed call");
        // The backtrace has function names if the file has a name section, and lines if it has DWARF. The lines are
        // rate-limited: a device may make its guest fail again and again.
        if state.config.failures.should_log() {
            let report = format_args!("{error:?}");
            tracing::warn!(%conn, %handler, call, bytes, %report, "guest failed");
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

/// The frames of a backtrace, without its heading and without the module names, which components lack.
fn frames(backtrace: &WasmBacktrace) -> String {
    let text = backtrace.to_string();
    text.split_once('\n').map_or("", |(_, frames)| frames).replace("<unknown>!", "")
}

/// Resources used by an instance since its instantiation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Total size of its linear memories, which never shrink.
    pub memory_bytes: usize,
    /// Consumed fuel (wasmtime), roughly the number of instructions. `None` without metering.
    pub fuel: Option<u64>,
}

struct Hex<'a>(&'a [u8]);

impl std::fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
