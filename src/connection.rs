//! Connection task: owns the socket, the handler attachment, the bounded queues, the deadlines and the close of one
//! connection.
//!
//! It starts when a peer is accepted and ends when the peer, the handler, a deadline or the operator closes the
//! connection. It never drops bytes of a stream, and never holds more than its limits.
#![doc = include_str!("connection/LIFECYCLE.md")]

use std::sync::Arc;
use std::time::Instant;

use crate::adapter::{Adapter, AdapterSlot, Outbound, Services};
use crate::byte_budget::ByteBudget;
use crate::conn::limit::{self, ConnectionLimit};
use crate::conn::registry::{Mail, MailReceiver, Mailbox, MessageBounds, MessageQuota, Registration, Registry};
use crate::conn::{CloseReason, ConnIds, ConnInfo, Event, Refused, Timer};
use crate::dispatch::{Chain, Link};
use crate::framing::{Framer, Framing};
use crate::handler::Attachment;
use crate::listener::{Place, Socket};
use crate::tap::{Tap, Taps};
use crate::telemetry::ListenerMetrics;

mod close;
mod delivery;
mod event_queue;
mod handler_slot;
mod inbound;
mod ingress_limit;
mod io;
mod migrate;
mod outbound;
mod shadow;
mod state;
mod unverified;

pub use ingress_limit::Rates;
pub(crate) use state::Timeouts;
pub(crate) use state::{Phase, State};
pub(crate) use unverified::Limits as UnverifiedLimits;

use close::linger;
use handler_slot::HandlerSlot;
use inbound::Inbound;
use io::{ConnectionGauges, DeadlineTimer, WaitFor, Wakeup, is_reset, socket_error};
use outbound::{Output, SocketWriter};
use state::Due;
use unverified::Unverified;

/// Maximum number of mails taken from the mailbox in one wakeup; the messages among them become one event.
const MAILS_AT_ONCE: usize = 64;

/// Options of all connections of a listener.
#[derive(Clone, Debug)]
pub struct Options {
    pub listener: Arc<str>,
    /// Maximum number of open connections, `1..`.
    pub connections_max: usize,
    pub timeouts: Timeouts,
    /// Limits of unverified peers, over plain UDP.
    pub unverified: UnverifiedLimits,
    /// Maximum bytes of a stream queued for the handler; one read, of at most 64 KiB, may exceed it.
    pub inbound_bytes_max: usize,
    /// Limits of the messages queued for the handler.
    pub messages: MessageBounds,
    /// Maximum bytes queued for the socket.
    pub outbound_bytes_max: usize,
    /// Ingress rate limits of one device.
    pub rates: Rates,
    /// Framing of a stream; `None`: the handler gets each read. A datagram is a frame already.
    pub framing: Option<Arc<Framing>>,
}

/// Opens the connections of one listener; cheap to clone.
#[derive(Clone, Debug)]
pub struct Connections(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    options: Options,
    common: Common,
    services: Arc<Services>,
    chain: Chain,
    limit: ConnectionLimit,
    metrics: ListenerMetrics,
}

/// Shared by the connections of all listeners.
#[derive(Clone, Debug)]
pub struct Common {
    pub ids: Arc<ConnIds>,
    pub registry: Registry,
    pub taps: Taps,
    /// Connection limit of the whole gateway, where connections use a resource that the process has a fixed amount of.
    pub limit: Option<ConnectionLimit>,
    /// Bytes in the queues of all connections.
    pub queued: Arc<ByteBudget>,
}

/// Permit for one open connection: of its listener, and of the gateway if a gateway limit applies.
#[derive(Debug)]
pub struct Permit {
    _listener: limit::Permit,
    _gateway: Option<limit::Permit>,
}

impl Connections {
    pub fn new(options: Options, common: Common, services: Services, chain: Chain, metrics: ListenerMetrics) -> Self {
        let limit = ConnectionLimit::new(options.connections_max);
        Self(Arc::new(Shared { options, common, services: Arc::new(services), chain, limit, metrics }))
    }

    /// The same listener with other options, services and handlers for new connections. Existing connections keep
    /// theirs, and count against the new limit.
    #[must_use]
    pub fn revised(&self, options: Options, services: Services, chain: Chain) -> Self {
        let last = &self.0;
        last.limit.resize(options.connections_max);
        Self(Arc::new(Shared {
            options,
            common: last.common.clone(),
            services: Arc::new(services),
            chain,
            limit: last.limit.clone(),
            metrics: last.metrics.clone(),
        }))
    }

    /// Waits until the limits allow one more connection.
    pub async fn permit(&self) -> Permit {
        let listener = self.0.limit.permit().await;
        let gateway = match &self.0.common.limit {
            Some(limit) => Some(limit.permit().await),
            None => None,
        };
        Permit { _listener: listener, _gateway: gateway }
    }

    /// A permit, if the limits allow one more connection now.
    pub fn try_permit(&self) -> Option<Permit> {
        let listener = self.0.limit.try_permit()?;
        let gateway = match &self.0.common.limit {
            Some(limit) => Some(limit.try_permit()?),
            None => None,
        };
        Some(Permit { _listener: listener, _gateway: gateway })
    }

    /// A connection for an accepted peer, which is unverified if it has a place. Adapter operations reach it from now on;
    /// `run` serves it.
    pub fn open(&self, info: ConnInfo, place: Option<Place>, permit: Permit) -> Connection {
        let shared = Arc::clone(&self.0);
        let now = Instant::now();
        let id = shared.common.ids.next();
        let info = Arc::new(info);
        let (dropped, queued) = (shared.metrics.messages_dropped.clone(), Arc::clone(&shared.common.queued));
        let (mailbox, receiver) = Mailbox::new(id, shared.options.messages, dropped, queued);
        let outbound = if info.kind.has_datagrams() { Outbound::of_datagrams } else { Outbound::of_stream };
        let mut adapter = Adapter::new(
            Arc::clone(&info),
            Arc::clone(&shared.services),
            mailbox.clone(),
            outbound(shared.options.outbound_bytes_max),
        );
        let framing = shared.options.framing.as_ref().filter(|_| !info.kind.has_datagrams());
        let framer = framing.map(|framing| Box::new(Framer::new(Arc::clone(framing))));
        let handler = HandlerSlot::choose(&shared.chain, id, &info);
        adapter.enable_command_log(handler.shadow.is_some());
        let mut registration = shared.common.registry.enter(mailbox.clone());
        registration.set_remote(matches!(handler.attachment, Attachment::Grpc(_)));
        let inbox = Inbox { receiver, quota: Arc::clone(mailbox.quota()), served_last: false };
        Connection {
            adapter: AdapterSlot::new(adapter),
            handler,
            tap: None,
            state: State::new(now, shared.options.timeouts),
            inbound: Inbound::new(shared.options.inbound_bytes_max, framer, now),
            outbound: SocketWriter::new(),
            registration,
            inbox,
            info,
            unverified: place.map(|place| Box::new(Unverified::new(place, shared.options.unverified, now))),
            deadline_timer: None,
            gauges: ConnectionGauges::new(Arc::clone(&shared)),
            shared,
            _permit: permit,
        }
    }
}

/// One connection, from its first event to its last.
#[derive(Debug)]
pub struct Connection {
    shared: Arc<Shared>,
    info: Arc<ConnInfo>,
    state: State,
    inbound: Inbound,
    outbound: SocketWriter,
    adapter: AdapterSlot,
    handler: HandlerSlot,
    inbox: Inbox,
    tap: Option<Box<Tap>>,
    unverified: Option<Box<Unverified>>,
    deadline_timer: Option<DeadlineTimer>,
    gauges: ConnectionGauges,
    registration: Registration,
    _permit: Permit,
}

/// Receiving side of a connection's mailbox.
#[derive(Debug)]
struct Inbox {
    receiver: MailReceiver,
    quota: Arc<MessageQuota>,
    /// The last wakeup was mail, so the socket is polled first next time.
    served_last: bool,
}

impl Connection {
    /// Closes the connection before it runs.
    pub fn end(&mut self, reason: CloseReason) {
        self.state.close(reason);
    }

    /// Serves the peer on its socket until the connection has closed.
    pub async fn run(mut self, mut socket: Socket) {
        let metrics = &self.shared.metrics;
        metrics.accepted.inc();
        metrics.connections.inc();
        self.gauges.is_live = true;
        tracing::debug!(conn = %self.conn(), listener = %self.shared.options.listener, peer = %self.info.peer, "connected");

        let reason = self.serve(&mut socket).await;
        self.state.close(reason);
        let reason = self.finish(&mut socket).await;
        self.notify_closed(reason).await;
        if self.inbound.is_open() && self.outbound.output() == Output::Ended && !self.info.kind.has_datagrams() {
            linger(&mut socket).await;
        }
    }

    fn conn(&self) -> crate::conn::ConnId {
        self.registration.conn()
    }

    /// The handler in use.
    fn link(&self) -> &Link {
        self.handler.link(&self.shared.chain)
    }

    /// From the first event to the decision to close.
    async fn serve(&mut self, socket: &mut Socket) -> CloseReason {
        let created = Event::SocketCreated(Arc::clone(&self.info));
        if let Err(reason) = self.deliver(socket, created).await {
            return reason;
        }
        loop {
            if let Some(reason) = self.closes_immediately() {
                return reason;
            }
            if let Some(turn) = self.handler.reconcile.take() {
                self.reconcile_version(socket).await;
                drop(turn);
                continue;
            }
            // Back-pressure: while the outbound queue is full, the handler gets no further event that it would answer.
            if !self.adapter.outbound().is_full()
                && let Some(event) = self.pop()
            {
                let delivered = self.deliver(socket, event).await;
                self.gauges.event_bytes = 0;
                if let Err(reason) = delivered {
                    // What the handler makes of it is its consequence.
                    return if self.adapter.is_unconfirmed() { CloseReason::Unconfirmed } else { reason };
                }
                continue;
            }
            if self.inbound.is_empty() {
                match (self.state.phase(), self.inbound.ended()) {
                    (Phase::Closing(reason), _) | (Phase::Open, Some(reason)) => return reason.clone(),
                    (Phase::Open, None) => {}
                }
            }
            let next_wakeup = self.next_wakeup(socket, WaitFor::Anything).await;
            self.handle(next_wakeup).await;
        }
    }

    /// Takes the next event for the handler, and counts it.
    fn pop(&mut self) -> Option<Event> {
        self.limit_outbound();
        let mut event = self.next_event()?;
        self.gauges.event_bytes = event.received_bytes();
        let metrics = &self.shared.metrics;
        match &mut event {
            Event::ReceivedMessages(messages) => {
                metrics.delivered.inc_by(messages.len() as u64);
                self.inbox.quota.remove(messages);
                for message in messages {
                    self.adapter.unmount(message);
                }
            }
            Event::ReceivedBytes(_) | Event::SocketCreated(_) | Event::TimerTimeout(_) | Event::SocketClosed(_) => {}
        }
        Some(event)
    }

    async fn handle(&mut self, next_wakeup: Wakeup) {
        match next_wakeup {
            Wakeup::Mail(Some(mail)) => {
                self.handle_mail(*mail).await;
                // Messages that are already in the mailbox go to the handler as one event.
                for _ in 1..MAILS_AT_ONCE {
                    // The outbound queue is full: the next command waits in the mailbox.
                    if self.adapter.outbound().is_full() {
                        break;
                    }
                    match self.inbox.receiver.try_recv() {
                        Ok(mail) => self.handle_mail(*mail).await,
                        Err(_) => break,
                    }
                }
            }
            // The registry holds a sender as long as this task lives; without one, nothing can reach the connection.
            Wakeup::Mail(None) => self.state.close(CloseReason::Draining),
            Wakeup::Read | Wakeup::OutboundWritable | Wakeup::Flushed => {}
            Wakeup::WriteFailed(error) => {
                self.outbound.break_off();
                if is_reset(&error) {
                    self.inbound.reset(socket_error(&error));
                } else {
                    self.inbound.end(socket_error(&error));
                }
            }
            Wakeup::Displaced => self.state.close(CloseReason::Unverified),
            Wakeup::Deadline => {
                self.deadline_timer = None;
                let now = Instant::now();
                if self.unverified.as_ref().is_some_and(|unverified| unverified.deadline() <= now) {
                    self.unverified = None;
                    self.state.close(CloseReason::Unverified);
                }
                let was_paused = self.inbound.is_paused();
                if *self.state.phase() == Phase::Open {
                    self.inbound.handle_timeout(now);
                }
                if was_paused {
                    // The gateway was not reading the socket, so the silence is not the peer's.
                    self.state.handle_received(now);
                }
                match self.state.handle_timeout(now) {
                    Some(Due::Keepalive) => self.inbound.push_timer(Timer::Keepalive),
                    Some(Due::Write) => {
                        self.outbound.break_off();
                        self.inbound.end(CloseReason::WriteTimedOut);
                    }
                    Some(Due::Idle | Due::Login) | None => {}
                }
            }
        }
    }

    /// The oldest queued event, or the next frame. Invalid framing closes the connection; the events behind it are
    /// still delivered.
    fn next_event(&mut self) -> Option<Event> {
        loop {
            let polled = self.inbound.poll_event(Instant::now(), self.handler.messages_max());
            self.count_skipped();
            match polled {
                Ok(event) => return event,
                Err(broken) => self.state.close(CloseReason::FramingBroken(broken.to_string())),
            }
        }
    }

    fn count_skipped(&mut self) {
        let skipped = self.inbound.take_skipped();
        if skipped > 0 {
            self.count_unframed(skipped, "skipped bytes outside of frames");
        }
    }

    fn count_unframed(&self, bytes: u64, what: &'static str) {
        self.shared.metrics.unframed_bytes.inc_by(bytes);
        tracing::debug!(conn = %self.conn(), listener = %self.shared.options.listener, bytes, "{what}");
    }

    async fn handle_mail(&mut self, mail: Mail) {
        match mail {
            Mail::Ask(handler_conn, command, reply) => {
                let result = if self.registration.is_remote() && handler_conn == self.registration.handler_conn() {
                    self.adapter.apply(command).await
                } else {
                    Err(Refused::Gone)
                };
                self.follow_adapter();
                self.show_asked();
                if let Err(_unread) = reply.send(result) {
                    tracing::trace!(conn = %self.conn(), "the caller did not wait for the answer");
                }
            }
            Mail::Deliver(message) => {
                // Unmounted when it is delivered: its charged size must stay the same until then.
                self.inbound.push_message(message);
            }
            Mail::End(reason) => self.state.close(reason),
            Mail::ReconcileVersion(permit) => self.handler.reconcile = Some(permit),
        }
    }

    fn follow_adapter(&mut self) {
        if let Some(change) = self.adapter.take_timer_change() {
            self.state.handle_timer(Instant::now(), change);
        }
        if self.adapter.client_id().is_some() {
            self.state.handle_authenticated();
            self.unverified = None;
        }
    }
}
