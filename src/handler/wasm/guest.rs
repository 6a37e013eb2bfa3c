use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use parking_lot::Mutex;
use wasmtime::{Store, Trap};

use super::Shared;
use super::limits::{self, InstancePermit, MemoryLimit, TimeUsedUp};
use super::log::GuestLog;
use super::wasi::Wasi;
use crate::adapter::Adapter;
use crate::conn::Event;
use crate::handler::CallError;
use crate::wit::bindings::ConnectionHandler;
use crate::wit::types;

/// How long an event may take in all, on top of its CPU time: what a guest waits for (the broker, the
/// authentication) has timeouts of its own below this, and a guest that sleeps is ended by it.
const WAITING_MAX: Duration = Duration::from_secs(30);

/// What the store of one instance holds for the host.
pub(super) struct GuestState {
    /// The connection's operations: the instance reaches them during a call, the connection between calls.
    pub(super) adapter: Box<Adapter>,
    pub(super) shared: Arc<Shared>,
    pub(super) limit: MemoryLimit,
    /// Shared with the streams that WASI makes of it, which live in tasks of their own.
    pub(super) log: Arc<Mutex<GuestLog>>,
    /// Ticks of the clock that the event in progress may still see.
    pub(super) ticks_left: u32,
    /// Made when the guest first uses WASI; most never do.
    pub(super) wasi: Option<Box<Wasi>>,
    permit: Option<InstancePermit>,
}

impl std::fmt::Debug for GuestState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuestState").field("adapter", &self.adapter).finish_non_exhaustive()
    }
}

/// One connection's instance. It is made for the first event, and after a failure never entered again.
pub struct Guest {
    store: Store<GuestState>,
    exports: Option<ConnectionHandler>,
    failed: bool,
}

impl std::fmt::Debug for Guest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guest")
            .field("handler", &self.store.data().shared.options.name)
            .field("live", &self.exports.is_some())
            .field("failed", &self.failed)
            .finish()
    }
}

impl Guest {
    pub(super) fn new(shared: Arc<Shared>, adapter: Box<Adapter>) -> Self {
        let limit = MemoryLimit::new(shared.options.memory_bytes_max, shared.metrics.clone());
        let log =
            GuestLog::new(adapter.conn(), Arc::clone(&shared.options.name), shared.metrics.log_lines_shed.clone());
        let log = Arc::new(Mutex::new(log));
        let state =
            GuestState { adapter, limit, log, ticks_left: 0, wasi: None, permit: None, shared: Arc::clone(&shared) };
        let mut store = Store::new(&shared.engine, state);
        store.limiter(|state| &mut state.limit);
        store.epoch_deadline_callback(limits::on_tick);
        Self { store, exports: None, failed: false }
    }

    /// The connection's operations.
    pub fn adapter(&mut self) -> &mut Adapter {
        &mut self.store.data_mut().adapter
    }

    /// Calls the export for an event and waits until it returns.
    ///
    /// Dropping the future fails the instance.
    ///
    /// # Errors
    ///
    /// [`CallError::Unavailable`]: no instance could be made. [`CallError::Timeout`]: the event's CPU time was
    /// used up. [`CallError::Fault`]: the guest trapped; the text says how.
    pub async fn call(&mut self, event: &Event) -> Result<(), CallError> {
        if self.failed {
            return Err(CallError::Unavailable("the instance has failed before".to_owned()));
        }
        // Until the call has returned: a future that is dropped leaves a guest stopped in its middle.
        self.failed = true;
        let timeout = self.begin_event();
        let result = {
            let mut entered = pin!(self.enter(event));
            // Most events are over when they are first polled; a timer would cost them more than the rest of this.
            match futures::poll!(entered.as_mut()) {
                Poll::Ready(result) => result,
                Poll::Pending => tokio::time::timeout(timeout + WAITING_MAX, entered)
                    .await
                    .unwrap_or(Err(CallError::Timeout(timeout + WAITING_MAX))),
            }
        };
        self.failed = result.is_err();
        result
    }

    /// Starts the event's CPU time; gives it as the handler's options have it.
    fn begin_event(&mut self) -> Duration {
        let timeout = self.store.data().shared.options.event_timeout;
        let ticks = timeout.as_millis().div_ceil(limits::TICK.as_millis());
        self.store.data_mut().ticks_left = u32::try_from(ticks).unwrap_or(u32::MAX);
        self.store.set_epoch_deadline(1);
        timeout
    }

    async fn enter(&mut self, event: &Event) -> Result<(), CallError> {
        if self.exports.is_none() {
            self.exports = Some(self.instantiate().await?);
        }
        let (Some(exports), store) = (&self.exports, &mut self.store) else {
            return Err(CallError::Unavailable("there is no instance".to_owned()));
        };
        let handler = exports.polygate_handler_handler();
        let conn = store.data().adapter.conn().to_u64();
        let called = match event {
            Event::ReceivedBytes(bytes) => handler.call_on_received_bytes(&mut *store, conn, bytes).await,
            Event::SocketCreated(info) => {
                handler.call_on_socket_created(&mut *store, conn, &types::ConnInfo::from(info.as_ref())).await
            }
            Event::TimerTimeout(timer) => handler.call_on_timer_timeout(&mut *store, conn, (*timer).into()).await,
            Event::ReceivedMessages(messages) => {
                let messages: Vec<types::Message> = messages.iter().map(Into::into).collect();
                handler.call_on_received_messages(&mut *store, conn, &messages).await
            }
            Event::SocketClosed(reason) => {
                handler.call_on_socket_closed(&mut *store, conn, &types::CloseReason::from(reason)).await
            }
        };
        called.map_err(|error| self.failure(&error))
    }

    async fn instantiate(&mut self) -> Result<ConnectionHandler, CallError> {
        let shared = Arc::clone(&self.store.data().shared);
        let permit =
            shared.ceiling.permit(&shared.metrics).map_err(|reached| CallError::Unavailable(reached.to_string()))?;
        self.store.data_mut().permit = Some(permit);
        shared.pre.instantiate_async(&mut self.store).await.map_err(|error| match self.failure(&error) {
            CallError::Fault(text) => CallError::Unavailable(format!("cannot make an instance: {text}")),
            other @ (CallError::Unavailable(_) | CallError::Timeout(_) | CallError::Unfit(_)) => other,
        })
    }

    /// What a failed call means, and a line in the log that its author can use.
    fn failure(&self, error: &wasmtime::Error) -> CallError {
        let state = self.store.data();
        let options = &state.shared.options;
        if error.downcast_ref::<TimeUsedUp>().is_some() {
            return CallError::Timeout(options.event_timeout);
        }
        // The backtrace names the guest's functions if it has a name section.
        tracing::warn!(conn = %state.adapter.conn(), handler = %options.name, "the guest failed: {error:?}");
        let trap = error.downcast_ref::<Trap>().map_or_else(|| error.root_cause().to_string(), ToString::to_string);
        if state.limit.exceeded {
            CallError::Fault(format!("{trap}, after memory beyond {} bytes was refused", options.memory_bytes_max))
        } else {
            CallError::Fault(trap)
        }
    }
}
