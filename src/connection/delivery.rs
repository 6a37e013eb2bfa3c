//! Event delivery to the handler, and failure recovery: hold and retry with backoff, replay in a fresh instance, fall
//! back along the chain.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::io::{WaitFor, Wakeup};
use super::shadow::{Compared, Shadow};
use super::{Connection, Output};
use crate::adapter::{CommandLog, LoggedCommand};
use crate::conn::{CloseReason, Event};
use crate::dispatch::{Next, Recovery};
use crate::handler::{Attachment, CallError, grpc};
use crate::listener::Socket;
use crate::tap::ConnectionView;
use crate::telemetry::{LogDecision, PAYLOAD_LOG};

/// Time limit of finding out whether a server still answers.
const PROBE_MAX: Duration = Duration::from_secs(10);

impl Connection {
    /// Delivers one event and waits until it is handled, by this handler or by another one of the chain. `Err`: the
    /// reason why the connection must close.
    pub(super) async fn deliver(&mut self, socket: &mut Socket, event: Event) -> Result<(), CloseReason> {
        self.show_event(&event);
        // The fast path: nearly every event is handled at the first attempt.
        let mut error = match self.attempt(socket, &event).await {
            Ok(()) => {
                self.settle(&event).await;
                self.recycle_instance().await;
                return Ok(());
            }
            Err(error) => error,
        };
        // A shadow version sees no failures of the active one, so from here on the two cannot be compared.
        self.end_shadow().await;
        let created = Event::SocketCreated(Arc::clone(&self.info));
        let is_created = matches!(event, Event::SocketCreated(_));
        let mut recovery = self.recovery();
        // A handler that takes over gets `OnSocketCreated` before any other event.
        let mut introduced = true;
        loop {
            let ends = self.closes_immediately();
            let next = match ends {
                // The connection closes anyway: another handler must not repeat side effects of this event.
                Some(_) => Next::GiveUp,
                None => recovery.handle_failure(Instant::now(), &error, self.jitter()),
            };
            self.log_failure(&event, &error, next);
            if let Some(tap) = &mut self.tap {
                tap.gap(&format!("the handler failed ({}): {error}; next: {}", error.kind(), next.name()));
            }
            match next {
                Next::Hold { until } => {
                    introduced &= self.keeps_state_when_held();
                    self.hold(socket, until).await?;
                    if self.is_replaced() {
                        self.renew();
                        introduced = false;
                    }
                }
                Next::Renew => {
                    self.renew();
                    if let Attachment::Wasm(guest) = &mut self.handler.attachment {
                        guest.quarantine();
                    }
                    introduced = false;
                }
                Next::FallBack => {
                    if !self.fall_back() {
                        return Err(failed(&event, &error));
                    }
                    recovery = self.recovery();
                    introduced = false;
                }
                Next::GiveUp => return Err(ends.unwrap_or_else(|| failed(&event, &error))),
            }
            let mut result = Ok(());
            if !introduced && !is_created {
                result = self.attempt(socket, &created).await;
                introduced = result.is_ok();
            }
            if result.is_ok() {
                result = self.attempt(socket, &event).await;
            }
            match result {
                Ok(()) => {
                    self.settle(&event).await;
                    return Ok(());
                }
                Err(another) => error = another,
            }
        }
    }

    /// Delivers `OnSocketClosed`. It is held for a handler that is unavailable, but never falls back: only the handler
    /// that knows the connection has a use for it.
    pub(super) async fn deliver_last(&mut self, event: &Event) {
        self.show_event(event);
        self.tap = None;
        if matches!(&self.handler.attachment, Attachment::Wasm(guest) if guest.has_failed()) {
            // Its failure is counted, and no instance is left to get the event.
            self.link().metrics.undelivered(event.name());
            self.end_shadow().await;
            return;
        }
        let mut recovery = self.recovery();
        let error = loop {
            let started = Instant::now();
            let result = match &mut self.handler.attachment {
                Attachment::Wasm(guest) => {
                    let (backend, result) = guest.call(self.adapter.take(), event).await;
                    self.adapter.restore(backend);
                    result
                }
                Attachment::Grpc(remote) => {
                    let timeout = remote.call_timeout();
                    match tokio::time::timeout(timeout, remote.call(event)).await {
                        Ok(result) => result,
                        Err(_) => Err(CallError::Timeout(timeout)),
                    }
                }
            };
            let link = self.link();
            link.metrics.seconds(event.name()).observe(started.elapsed().as_secs_f64());
            // A failure counts as an undelivered event, not against the handler: it does the device no harm any more.
            let Err(error) = result else {
                link.versions.report(self.handler.version(), event, &Ok(()));
                self.settle(event).await;
                return;
            };
            // A gateway that stops does not wait for an unavailable handler.
            let is_stopping = matches!(event, Event::SocketClosed(CloseReason::Draining));
            let may_hold = matches!(self.handler.attachment, Attachment::Grpc(_)) && !is_stopping;
            match recovery.handle_failure(Instant::now(), &error, self.jitter()) {
                Next::Hold { until } if may_hold => tokio::time::sleep_until(until.into()).await,
                Next::Hold { .. } | Next::Renew | Next::FallBack | Next::GiveUp => break error,
            }
        };
        self.end_shadow().await;
        self.link().metrics.undelivered(event.name());
        tracing::debug!(conn = %self.conn(), "the handler did not get the last event: {error}");
    }

    /// One call for one event. The commands that a guest had collected when it failed are rolled back: the event has
    /// had no effect on the peer, and may be delivered again.
    async fn attempt(&mut self, socket: &mut Socket, event: &Event) -> Result<(), CallError> {
        let started = Instant::now();
        tracing::trace!(target: PAYLOAD_LOG, conn = %self.conn(), ?event, "to the handler");
        let result = match &mut self.handler.attachment {
            Attachment::Wasm(guest) => {
                let savepoint = self.adapter.savepoint();
                let (backend, result) = guest.call(self.adapter.take(), event).await;
                self.adapter.restore(backend);
                if result.is_err() {
                    self.adapter.roll_back(savepoint);
                    if let Some(command_log) = self.adapter.command_log() {
                        // Commands rolled back were not executed.
                        command_log.take();
                    }
                }
                result
            }
            Attachment::Grpc(remote) => {
                let (call, timeout) = (remote.call(event), remote.call_timeout());
                match self.while_calling(socket, call, timeout).await {
                    Err(CallError::Timeout(timeout)) => Err(self.explain_timeout(socket, timeout).await),
                    result => result,
                }
            }
        };
        self.observe(event, started, &result);
        self.follow_adapter();
        result
    }

    /// A server that answers no HTTP/2 ping has not timed out, but is away: stopped, or behind a path that loses packets.
    async fn explain_timeout(&mut self, socket: &mut Socket, timeout: Duration) -> CallError {
        let Attachment::Grpc(remote) = &self.handler.attachment else { return CallError::Timeout(timeout) };
        let is_alive = remote.is_alive();
        let probe = Box::pin(async move {
            match is_alive.await {
                true => Ok(()),
                false => {
                    Err(CallError::Unavailable("the server answers neither the call nor an HTTP/2 ping".to_owned()))
                }
            }
        });
        self.while_calling(socket, probe, PROBE_MAX).await.err().unwrap_or(CallError::Timeout(timeout))
    }

    fn observe(&self, event: &Event, started: Instant, result: &Result<(), CallError>) {
        let link = self.link();
        link.metrics.seconds(event.name()).observe(started.elapsed().as_secs_f64());
        link.versions.report(self.handler.version(), event, result);
        if let Err(error) = result {
            link.metrics.failed(error.kind());
        }
    }

    /// Reports the event to the tap of this connection; attaches a tap if a subscription waits for one.
    fn show_event(&mut self, event: &Event) {
        if self.tap.is_none() && self.shared.common.taps.are_waiting() {
            let is_new = matches!(event, Event::SocketCreated(_));
            let who = ConnectionView {
                conn: self.conn(),
                listener: &self.shared.options.listener,
                info: &self.info,
                client_id: self.adapter.client_id(),
            };
            self.tap = self.shared.common.taps.tap(&who, is_new);
            if self.tap.is_some() {
                self.adapter.enable_command_log(true);
            }
        }
        if let Some(tap) = &mut self.tap {
            tap.event(event);
        }
    }

    /// Reports the commands that the handler sent outside of an event to the tap.
    pub(super) fn show_asked(&mut self) {
        if self.handler.shadow.is_none()
            && let (Some(tap), Some(command_log)) = (&mut self.tap, self.adapter.command_log())
        {
            tap.done(&command_log.take().0);
        }
    }

    /// After a handled event: reports the handler's commands to the tap, and runs the shadow version.
    async fn settle(&mut self, event: &Event) {
        if self.tap.is_none() && self.handler.shadow.is_none() {
            return;
        }
        let (done, left_out) = self.adapter.command_log().map(CommandLog::take).unwrap_or_default();
        if let Some(tap) = &mut self.tap {
            tap.done(&done);
            if left_out > 0 {
                tap.gap(&format!("{left_out} more commands of the handler are omitted here"));
            }
            if tap.is_over() {
                self.tap = None;
                self.adapter.enable_command_log(self.handler.shadow.is_some());
            }
        }
        self.follow_with_shadow(event, &done, left_out).await;
    }

    /// Runs the event in the shadow version and compares its commands with those of the active version.
    async fn follow_with_shadow(&mut self, event: &Event, done: &[LoggedCommand], left_out: u64) {
        let is_wanted = |shadow: &Shadow| left_out == 0 && shadow.is_wanted(&self.link().versions);
        if !self.handler.shadow.as_deref().is_some_and(is_wanted) {
            self.end_shadow().await;
            return;
        }
        let Some(shadow) = &mut self.handler.shadow else {
            return;
        };
        let compared = shadow.follow(event, done).await;
        let link = self.link();
        let (conn, handler, name) = (self.conn(), link.versions.name(), event.name());
        match compared {
            Compared::Same => link.versions.compared(true),
            Compared::Different(what) => {
                link.versions.compared(false);
                tracing::info!(%conn, %handler, event = name, "the shadow version differs: {what}");
            }
            Compared::Failed(error) => {
                link.versions.compared(false);
                tracing::warn!(%conn, %handler, event = name, "the shadow version failed: {error}");
                self.end_shadow().await;
            }
        }
    }

    pub(super) async fn end_shadow(&mut self) {
        let Some(shadow) = self.handler.shadow.take() else {
            return;
        };
        self.adapter.enable_command_log(self.tap.is_some());
        shadow.leave().await;
    }

    fn recovery(&self) -> Recovery {
        self.handler.recovery(&self.shared.chain)
    }

    /// This connection's jitter of the backoff, `0.0..1.0`. It spreads the retries of all connections over the pause,
    /// so any fixed value will do.
    fn jitter(&self) -> f64 {
        // Ids are pseudo-random already.
        (self.conn().to_u64() % (1 << 24)) as f64 / (1u64 << 24) as f64
    }

    fn log_failure(&self, event: &Event, error: &CallError, next: Next) {
        let link = self.link();
        link.metrics.recovered(next.name());
        macro_rules! log_with {
            ($level:ident) => {
                tracing::$level!(
                    conn = %self.conn(),
                    listener = %self.shared.options.listener,
                    handler = %link.versions.name(),
                    version = self.handler.version().number(),
                    event = event.name(),
                    kind = error.kind(),
                    next = next.name(),
                    "the handler failed: {error}"
                )
            };
        }
        match next {
            // An unavailable handler affects all its connections, again and again; the log reports its health once.
            Next::Hold { .. } => log_with!(debug),
            Next::Renew | Next::FallBack | Next::GiveUp => match link.failures.handle_line() {
                LogDecision::No => log_with!(debug),
                LogDecision::Yes => log_with!(warn),
                LogDecision::After(left_out) => {
                    tracing::warn!(
                        listener = %self.shared.options.listener,
                        handler = %link.versions.name(),
                        left_out,
                        "log of handler failures rate-limited"
                    );
                    log_with!(warn);
                }
            },
        }
    }

    /// Waits until the next attempt, or until the handler has a new version. Meanwhile the socket and the mailbox are
    /// served, up to their limits.
    async fn hold(&mut self, socket: &mut Socket, until: Instant) -> Result<(), CloseReason> {
        let mut pause = pin!(tokio::time::sleep_until(until.into()));
        loop {
            if let Some(reason) = self.closes_immediately() {
                return Err(reason);
            }
            if self.handler.reconcile.is_some() && self.is_replaced() {
                // A new version can take the event now, and other connections wait for the migration permit.
                return Ok(());
            }
            tokio::select! {
                () = &mut pause => return Ok(()),
                next_wakeup = self.next_wakeup(socket, WaitFor::Anything) => self.handle(next_wakeup).await,
            }
        }
    }

    /// Prepares the next attempt at an unavailable handler. Returns whether the handler still knows the connection.
    fn keeps_state_when_held(&mut self) -> bool {
        match &mut self.handler.attachment {
            // No instance was made, so none can know the connection.
            Attachment::Wasm(_) => {
                self.renew();
                false
            }
            Attachment::Grpc(remote) => {
                // The call may have failed after an Authenticate of this event succeeded.
                self.adapter.allow_reauthentication();
                !remote.next_endpoint()
            }
        }
    }

    /// Attaches the same handler anew: a guest in a fresh instance. If its version has been replaced meanwhile, the
    /// active version is used.
    fn renew(&mut self) {
        if self.is_replaced() {
            self.forget_remote();
            self.handler.select_active(&self.shared.chain, self.conn());
        }
        let conn = self.registration.handler_conn();
        self.handler.reattach(conn, &self.info);
        self.registration.set_remote(matches!(self.handler.attachment, Attachment::Grpc(_)));
        self.adapter.set_handler_conn(conn);
    }

    /// Whether another version is to serve the connection.
    fn is_replaced(&self) -> bool {
        self.handler.is_replaced(&self.shared.chain)
    }

    /// The next handler of the chain takes the connection over, with its identity, subscriptions and timers. `false`:
    /// the chain has no next handler.
    fn fall_back(&mut self) -> bool {
        let (from, conn) = (Arc::clone(self.link().versions.name()), self.conn());
        if !self.handler.select_next(&self.shared.chain, conn) {
            return false;
        }
        self.forget_remote();
        self.renew();
        tracing::info!(conn = %self.conn(), %from, to = %self.link().versions.name(), "fell back to the next handler");
        true
    }

    /// Gives the connection a new id towards handlers, so that a remote handler that has lost the connection cannot
    /// reach it: the handler may still be at work on the event that it did not answer in time.
    pub(super) fn forget_remote(&mut self) {
        if matches!(self.handler.attachment, Attachment::Grpc(_)) {
            let alias = self.shared.common.ids.next();
            self.registration.rename(alias);
            tracing::debug!(conn = %self.conn(), handler_conn = %alias, "handlers get a new id for the connection");
        }
    }

    /// Drives a call to a remote handler while serving the socket and the mailbox: the handler calls the adapter from
    /// inside the callback and waits for the answers.
    pub(super) async fn while_calling(
        &mut self,
        socket: &mut Socket,
        mut call: grpc::Call,
        timeout: Duration,
    ) -> Result<(), CallError> {
        let mut deadline = Box::pin(tokio::time::sleep(timeout));
        self.adapter.take_waited();
        loop {
            let is_to_end = self.outbound.output() == Output::Open && self.closes_immediately().is_some();
            let until = if is_to_end { WaitFor::Flushed } else { WaitFor::Anything };
            tokio::select! {
                biased;
                done = &mut call => return done,
                () = &mut deadline => {
                    if !self.adapter.outbound().is_full() {
                        return Err(CallError::Timeout(timeout));
                    }
                    // The handler waits until the peer reads; that wait has its own timeout.
                    deadline.as_mut().reset(tokio::time::Instant::now() + timeout);
                }
                next_wakeup = self.next_wakeup(socket, until) => {
                    if matches!(next_wakeup, Wakeup::Flushed) {
                        self.end_output(socket).await;
                    } else {
                        self.handle(next_wakeup).await;
                        let waited = self.adapter.take_waited();
                        if !waited.is_zero() {
                            // The server waited for the gateway or the broker.
                            let later = deadline.deadline() + waited;
                            deadline.as_mut().reset(later);
                        }
                    }
                }
            }
        }
    }
}

fn failed(event: &Event, error: &CallError) -> CloseReason {
    CloseReason::HandlerFailed { event: event.name(), error: error.to_string() }
}
