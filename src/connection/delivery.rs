//! How an event reaches a handler, and what is done when it does not.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::shadow::{Compared, Shadow};
use super::waking::{Happening, Until};
use super::{Connection, Output};
use crate::adapter::{Entry, Journal};
use crate::conn::{CloseReason, Event};
use crate::dispatch::{Next, Placement, Recovery};
use crate::handler::wasm::Desk;
use crate::handler::{Attached, CallError, grpc};
use crate::listener::Socket;
use crate::tap::Who;
use crate::telemetry::{MaySay, PAYLOAD_LOG};

impl Connection {
    /// Gives one event to the handler and waits until it is handled, here or by another one of the chain; or
    /// tells why the connection must end.
    pub(super) async fn deliver(&mut self, socket: &mut Socket, event: Event) -> Result<(), CloseReason> {
        self.show_event(&event);
        // Nearly always it is handled at once; what follows then costs nothing.
        let mut error = match self.attempt(socket, &event).await {
            Ok(()) => {
                self.settle(&event).await;
                self.replace_worn().await;
                return Ok(());
            }
            Err(error) => error,
        };
        // What follows is not what a version that is tried would be compared with.
        self.end_shadow().await;
        let created = Event::SocketCreated(Arc::clone(&self.info));
        let is_created = matches!(event, Event::SocketCreated(_));
        let mut recovery = self.recovery();
        // Whoever takes over must be told of the connection before anything else.
        let mut introduced = true;
        loop {
            let ends = self.ends_at_once();
            let next = match ends {
                // Nobody is to take over what ends in any case, and do once more what was done.
                Some(_) => Next::GiveUp,
                None => recovery.handle_failure(Instant::now(), &error, self.spread()),
            };
            self.tell_failure(&event, &error, next);
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
                    if let Attached::Wasm(guest) = &mut self.attached {
                        guest.suspect();
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

    /// The last event. It is held for a handler that cannot be reached, and nothing else is tried: nobody but the
    /// handler that knows the connection has any use for its end.
    pub(super) async fn deliver_last(&mut self, event: &Event) {
        self.show_event(event);
        self.tap = None;
        if matches!(&self.attached, Attached::Wasm(guest) if guest.has_failed()) {
            // Its failure is counted, and there is nobody left to tell.
            self.link().metrics.undelivered(event.name());
            self.end_shadow().await;
            return;
        }
        let mut recovery = self.recovery();
        let error = loop {
            let started = Instant::now();
            let result = match &mut self.attached {
                Attached::Wasm(guest) => {
                    let (desk, result) = guest.call(Desk::Live(self.adapter.lend()), event).await;
                    self.take_back(desk);
                    result
                }
                Attached::Grpc(remote) => {
                    let timeout = remote.call_timeout();
                    match tokio::time::timeout(timeout, remote.call(event)).await {
                        Ok(result) => result,
                        Err(_) => Err(CallError::Timeout(timeout)),
                    }
                }
            };
            let link = self.link();
            link.metrics.seconds(event.name()).observe(started.elapsed().as_secs_f64());
            // A failure counts as an event that nobody got: it does the device no harm any more.
            let Err(error) = result else {
                link.versions.report(self.membership.version(), event, &Ok(()));
                self.settle(event).await;
                return;
            };
            // A gateway that stops does not wait for a handler that is away.
            let is_stopping = matches!(event, Event::SocketClosed(CloseReason::Draining));
            let may_hold = matches!(self.attached, Attached::Grpc(_)) && !is_stopping;
            match recovery.handle_failure(Instant::now(), &error, self.spread()) {
                Next::Hold { until } if may_hold => tokio::time::sleep_until(until.into()).await,
                Next::Hold { .. } | Next::Renew | Next::FallBack | Next::GiveUp => break error,
            }
        };
        self.end_shadow().await;
        self.link().metrics.undelivered(event.name());
        tracing::debug!(conn = %self.conn(), "the handler was not told of the end: {error}");
    }

    /// One call for one event. What a guest had collected when it failed is forgotten: the event has had no effect
    /// on the peer, and may be delivered again.
    async fn attempt(&mut self, socket: &mut Socket, event: &Event) -> Result<(), CallError> {
        let started = Instant::now();
        tracing::trace!(target: PAYLOAD_LOG, conn = %self.conn(), ?event, "to the handler");
        let result = match &mut self.attached {
            Attached::Wasm(guest) => {
                let mark = self.adapter.mark();
                let (desk, result) = guest.call(Desk::Live(self.adapter.lend()), event).await;
                self.take_back(desk);
                if result.is_err() {
                    self.adapter.roll_back(mark);
                    if let Some(journal) = self.adapter.journal() {
                        // What was forgotten was not done.
                        journal.take();
                    }
                }
                result
            }
            Attached::Grpc(remote) => {
                let (call, timeout) = (remote.call(event), remote.call_timeout());
                self.while_calling(socket, call, timeout).await
            }
        };
        self.observe(event, started, &result);
        self.follow_timer();
        result
    }

    fn observe(&self, event: &Event, started: Instant, result: &Result<(), CallError>) {
        let link = self.link();
        link.metrics.seconds(event.name()).observe(started.elapsed().as_secs_f64());
        link.versions.report(self.membership.version(), event, result);
        if let Err(error) = result {
            link.metrics.failed(error.kind());
        }
    }

    /// Tells a watcher what has happened, and looks whether there is one.
    fn show_event(&mut self, event: &Event) {
        if self.tap.is_none() && self.shared.common.taps.are_waiting() {
            let is_new = matches!(event, Event::SocketCreated(_));
            let who = Who {
                conn: self.conn(),
                listener: &self.shared.options.listener,
                info: &self.info,
                client_id: self.adapter.client_id(),
            };
            self.tap = self.shared.common.taps.tap(&who, is_new);
            if self.tap.is_some() {
                self.adapter.keep_journal(true);
            }
        }
        if let Some(tap) = &mut self.tap {
            tap.event(event);
        }
    }

    /// Tells a watcher what the handler has asked for outside of an event.
    pub(super) fn show_asked(&mut self) {
        if self.shadow.is_none()
            && let (Some(tap), Some(journal)) = (&mut self.tap, self.adapter.journal())
        {
            tap.done(&journal.take().0);
        }
    }

    /// An event is handled: tells a watcher what the handler did, and lets a version that is tried do the same.
    async fn settle(&mut self, event: &Event) {
        if self.tap.is_none() && self.shadow.is_none() {
            return;
        }
        let (done, left_out) = self.adapter.journal().map(Journal::take).unwrap_or_default();
        if let Some(tap) = &mut self.tap {
            tap.done(&done);
            if left_out > 0 {
                tap.gap(&format!("{left_out} more things that the handler asked for are left out here"));
            }
            if tap.is_over() {
                self.tap = None;
                self.adapter.keep_journal(self.shadow.is_some());
            }
        }
        self.follow_with_shadow(event, &done, left_out).await;
    }

    /// Lets the version that is tried do what the active one has done, and compares.
    async fn follow_with_shadow(&mut self, event: &Event, done: &[Entry], left_out: u64) {
        let is_wanted = |shadow: &Shadow| left_out == 0 && shadow.is_wanted(&self.link().versions);
        if !self.shadow.as_deref().is_some_and(is_wanted) {
            self.end_shadow().await;
            return;
        }
        let Some(shadow) = &mut self.shadow else {
            return;
        };
        let compared = shadow.follow(event, done).await;
        let link = self.link();
        let (conn, handler, name) = (self.conn(), link.versions.name(), event.name());
        match compared {
            Compared::Same => link.versions.compared(true),
            Compared::Different(what) => {
                link.versions.compared(false);
                tracing::info!(%conn, %handler, event = name, "the version that is tried does something else: {what}");
            }
            Compared::Failed(error) => {
                link.versions.compared(false);
                tracing::warn!(%conn, %handler, event = name, "the version that is tried failed: {error}");
                self.end_shadow().await;
            }
        }
    }

    pub(super) async fn end_shadow(&mut self) {
        let Some(shadow) = self.shadow.take() else {
            return;
        };
        self.adapter.keep_journal(self.tap.is_some());
        shadow.leave().await;
    }

    pub(super) fn take_back(&mut self, desk: Desk) {
        match desk {
            Desk::Live(adapter) => self.adapter.give_back(adapter),
            Desk::Rehearsal(_) => {}
        }
    }

    fn recovery(&self) -> Recovery {
        Recovery::new(self.membership.version().policy(), self.shared.chain.after(self.position).is_some())
    }

    /// Where in the pause between two attempts this connection makes its own; any fixed place will do.
    fn spread(&self) -> f64 {
        // Fibonacci hashing: neighbours among the ids end far apart.
        let hash = self.conn().to_u64().wrapping_mul(0x9E37_79B9_7F4A_7C15);
        (hash >> 40) as f64 / (1u64 << 24) as f64
    }

    fn tell_failure(&self, event: &Event, error: &CallError, next: Next) {
        let link = self.link();
        link.metrics.recovered(next.name());
        macro_rules! tell {
            ($level:ident) => {
                tracing::$level!(
                    conn = %self.conn(),
                    listener = %self.shared.options.listener,
                    handler = %link.versions.name(),
                    version = self.membership.version().number(),
                    event = event.name(),
                    kind = error.kind(),
                    next = next.name(),
                    "the handler failed: {error}"
                )
            };
        }
        match next {
            // A handler that is away concerns all its connections, again and again; its health is told once.
            Next::Hold { .. } => tell!(debug),
            Next::Renew | Next::FallBack | Next::GiveUp => match link.failures.handle_line() {
                MaySay::No => tell!(debug),
                MaySay::Yes => tell!(warn),
                MaySay::After(left_out) => {
                    tracing::warn!(
                        listener = %self.shared.options.listener,
                        handler = %link.versions.name(),
                        left_out,
                        "the handler fails more often than the log takes"
                    );
                    tell!(warn);
                }
            },
        }
    }

    /// Waits for the next attempt, or until the handler's version is another. The socket and the mailbox are served
    /// meanwhile, up to their bounds.
    async fn hold(&mut self, socket: &mut Socket, until: Instant) -> Result<(), CloseReason> {
        let mut pause = pin!(tokio::time::sleep_until(until.into()));
        loop {
            if let Some(reason) = self.ends_at_once() {
                return Err(reason);
            }
            if self.review.is_some() && self.is_replaced() {
                // There is another version to go on with, and others wait for their turn to do so.
                return Ok(());
            }
            tokio::select! {
                () = &mut pause => return Ok(()),
                happening = self.happening(socket, Until::AnythingHappens) => self.handle(happening).await,
            }
        }
    }

    /// Prepares for another attempt at a handler that could not be reached; tells whether it still knows the
    /// connection.
    fn keeps_state_when_held(&mut self) -> bool {
        match &mut self.attached {
            // There was no instance, so there is none that could know it.
            Attached::Wasm(_) => {
                self.renew();
                false
            }
            Attached::Grpc(remote) => {
                // It may have been cut off behind an Authenticate of this event.
                self.adapter.expect_again();
                !remote.turn_to_another()
            }
        }
    }

    /// The same handler starts anew with this connection: a guest in a fresh instance. If its version has been replaced
    /// meanwhile, there is no reason to start the old one again.
    fn renew(&mut self) {
        if self.is_replaced() {
            self.forget_remote();
            self.membership = self.link().versions.active().enter(self.conn());
        }
        let conn = self.entered.handler_conn();
        self.attached = self.membership.version().handler().attach(conn, &self.info);
        self.adapter.reintroduce(conn);
    }

    /// Whether the connection's version is not the one for it any more.
    fn is_replaced(&self) -> bool {
        self.link().versions.placement(self.membership.version()) != Placement::Stay
    }

    /// The next handler of the chain takes the connection over, with its identity, subscriptions and timers.
    /// Tells whether there is one.
    fn fall_back(&mut self) -> bool {
        let Some(position) = self.shared.chain.after(self.position) else {
            return false;
        };
        let from = Arc::clone(self.link().versions.name());
        self.forget_remote();
        self.position = position;
        self.membership = self.link().versions.enter(self.conn());
        self.renew();
        tracing::info!(conn = %self.conn(), %from, to = %self.link().versions.name(), "fell back to the next handler");
        true
    }

    /// A remote handler that has lost the connection must not reach it any more: it may still be at work on the event
    /// that it did not answer in time.
    pub(super) fn forget_remote(&mut self) {
        if matches!(self.attached, Attached::Grpc(_)) {
            let alias = self.shared.common.ids.next();
            self.entered.rename(alias);
            tracing::debug!(conn = %self.conn(), handler_conn = %alias, "handlers know the connection by a new id");
        }
    }

    /// Drives a call to a remote handler, and meanwhile the socket and the mailbox: the handler asks for
    /// things from inside the callback and waits for the answers.
    pub(super) async fn while_calling(
        &mut self,
        socket: &mut Socket,
        mut call: grpc::Call,
        timeout: Duration,
    ) -> Result<(), CallError> {
        let mut deadline = Box::pin(tokio::time::sleep(timeout));
        loop {
            let is_to_end = self.output == Output::Open && self.ends_at_once().is_some();
            let until = if is_to_end { Until::Flushed } else { Until::AnythingHappens };
            tokio::select! {
                biased;
                done = &mut call => return done,
                () = &mut deadline => {
                    if !self.adapter.outbound().is_full() {
                        return Err(CallError::Timeout(timeout));
                    }
                    // The handler waits for the peer to take its bytes; that wait has its own timeout.
                    deadline.as_mut().reset(tokio::time::Instant::now() + timeout);
                }
                happening = self.happening(socket, until) => {
                    if matches!(happening, Happening::Flushed) {
                        self.end_output(socket).await;
                    } else {
                        self.handle(happening).await;
                    }
                }
            }
        }
    }
}

fn failed(event: &Event, error: &CallError) -> CloseReason {
    CloseReason::HandlerFailed { event: event.name(), error: error.to_string() }
}
