//! The task that owns one connection: its socket, its handler's side, its queues, its end.
//!
//! It begins when the peer is accepted and ends when the peer, the handler, a deadline or the operator ends it.
//! It never drops bytes of the stream, and never holds more than its bounds.
#![doc = include_str!("connection/LIFECYCLE.md")]

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::OwnedSemaphorePermit;

use crate::adapter::{Adapter, Lent, Outbound, Services};
use crate::conn::room::{self, Room};
use crate::conn::table::{Entered, Held, Mail, Mailbox, Mails, MessageBounds, Table};
use crate::conn::{CloseReason, ConnIds, ConnInfo, Event, Refused, Timer};
use crate::dispatch::{Chain, Link, Membership};
use crate::framing::{Framer, Framing};
use crate::handler::Attached;
use crate::listener::Socket;
use crate::tap::{Tap, Taps};
use crate::telemetry::ListenerMetrics;

mod delivery;
mod ending;
mod framed;
mod meter;
mod moving;
mod shadow;
mod state;
mod waiting;
mod waking;

pub use meter::Rates;
pub use state::{Idle, Phase, State, Timeouts};
pub use waiting::Waiting;

use ending::linger;
use meter::Meter;
use shadow::Shadow;
use state::Due;
use waking::{Alarm, Happening, Shown, Until, is_reset, socket_error};

/// Mails that are taken out together: the messages among them become one event.
const MAILS_AT_ONCE: usize = 64;

/// What every connection of a listener is given.
#[derive(Clone, Debug)]
pub struct Options {
    /// The listener's name.
    pub listener: Arc<str>,
    /// Connections at a time, `1..`.
    pub connections_max: usize,
    /// The spans that end a connection.
    pub timeouts: Timeouts,
    /// Bytes of the stream that may wait for the handler; one read, of at most 64 KiB, may go over it.
    pub inbound_bytes_max: usize,
    /// Messages that may wait for the handler.
    pub messages: MessageBounds,
    /// Bytes that may wait for the socket.
    pub outbound_bytes_max: usize,
    /// How fast the device may send.
    pub rates: Rates,
    /// How a stream is cut into frames; none: as it is read. A datagram is a frame already.
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
    room: Room,
    metrics: ListenerMetrics,
}

/// What the connections of all listeners share.
#[derive(Clone, Debug)]
pub struct Common {
    /// Names them.
    pub ids: Arc<ConnIds>,
    /// Finds them.
    pub table: Table,
    /// Who watches them.
    pub taps: Taps,
    /// Room for all of them together, where they take something that the process has only so much of.
    pub room: Option<Room>,
}

/// The right to hold one connection: the listener's, and the gateway's where that counts.
#[derive(Debug)]
pub struct Permit {
    _listener: room::Permit,
    _gateway: Option<room::Permit>,
}

impl Connections {
    /// What the connections of a listener share.
    pub fn new(options: Options, common: Common, services: Services, chain: Chain, metrics: ListenerMetrics) -> Self {
        let room = Room::new(options.connections_max);
        Self(Arc::new(Shared { options, common, services: Arc::new(services), chain, room, metrics }))
    }

    /// The same listener with other options, services and handlers, for the connections that it opens from now on; those it
    /// has keep theirs, and their places.
    #[must_use]
    pub fn revised(&self, options: Options, services: Services, chain: Chain) -> Self {
        let last = &self.0;
        last.room.resize(options.connections_max);
        Self(Arc::new(Shared {
            options,
            common: last.common.clone(),
            services: Arc::new(services),
            chain,
            room: last.room.clone(),
            metrics: last.metrics.clone(),
        }))
    }

    /// Waits until one more connection may be held.
    pub async fn permit(&self) -> Permit {
        let listener = self.0.room.permit().await;
        let gateway = match &self.0.common.room {
            Some(room) => Some(room.permit().await),
            None => None,
        };
        Permit { _listener: listener, _gateway: gateway }
    }

    /// The right to hold one more connection, if it may be held now.
    pub fn try_permit(&self) -> Option<Permit> {
        let listener = self.0.room.try_permit()?;
        let gateway = match &self.0.common.room {
            Some(room) => Some(room.try_permit()?),
            None => None,
        };
        Some(Permit { _listener: listener, _gateway: gateway })
    }

    /// A connection for an accepted peer. It can be asked for things from now on, and lives by its `run`.
    pub fn open(&self, info: ConnInfo, permit: Permit) -> Connection {
        let shared = Arc::clone(&self.0);
        let now = Instant::now();
        let id = shared.common.ids.next();
        let info = Arc::new(info);
        let (mailbox, mails) = Mailbox::new(id, shared.options.messages, shared.metrics.messages_shed.clone());
        let outbound = if info.kind.has_datagrams() { Outbound::of_datagrams } else { Outbound::of_stream };
        let mut adapter = Adapter::new(
            Arc::clone(&info),
            Arc::clone(&shared.services),
            mailbox.clone(),
            outbound(shared.options.outbound_bytes_max),
        );
        let framing = shared.options.framing.as_ref().filter(|_| !info.kind.has_datagrams());
        let framer = framing.map(|framing| Box::new(Framer::new(Arc::clone(framing))));
        let position = shared.chain.choose();
        let versions = &shared.chain.link(position).versions;
        let membership = versions.enter(id);
        let shadow = Shadow::of(versions, id, &info);
        adapter.keep_journal(shadow.is_some());
        Connection {
            attached: membership.version().handler().attach(id, &info),
            adapter: Lent::new(adapter),
            position,
            membership,
            shadow,
            tap: None,
            review: None,
            state: State::new(now, shared.options.timeouts),
            waiting: Waiting::new(shared.options.inbound_bytes_max),
            framer,
            held: Arc::clone(mailbox.held()),
            entered: shared.common.table.enter(mailbox),
            mails,
            info,
            input: Input::Open,
            output: Output::Open,
            unflushed: false,
            counted: false,
            had_mail: false,
            alarm: None,
            meter: Meter::new(now),
            held_back: None,
            received_bytes: 0,
            sent_bytes: 0,
            shown: Shown::new(Arc::clone(&shared)),
            shared,
            _permit: permit,
        }
    }
}

/// One accepted peer, from its first event to its last.
#[derive(Debug)]
pub struct Connection {
    shared: Arc<Shared>,
    info: Arc<ConnInfo>,
    adapter: Lent,
    attached: Attached,
    /// Which of the chain's handlers serves.
    position: usize,
    /// Which version of it.
    membership: Membership,
    /// A version of the handler that is tried beside it.
    shadow: Option<Box<Shadow>>,
    /// Somebody watches.
    tap: Option<Box<Tap>>,
    /// Asked to look at the handler's versions, at the next moment between two events.
    review: Option<OwnedSemaphorePermit>,
    state: State,
    waiting: Waiting,
    /// Cuts what waits into frames.
    framer: Option<Box<Framer>>,
    held: Arc<Held>,
    mails: Mails,
    input: Input,
    output: Output,
    /// The socket itself may still hold bytes that it took.
    unflushed: bool,
    /// It is among the live connections of the metrics.
    counted: bool,
    /// The last thing that happened was a mail.
    had_mail: bool,
    alarm: Option<Alarm>,
    meter: Meter,
    /// Until when its stream is not read, because it is over its rate.
    held_back: Option<Instant>,
    received_bytes: u64,
    sent_bytes: u64,
    shown: Shown,
    entered: Entered,
    _permit: Permit,
}

/// Whether more bytes can come from the peer.
#[derive(Debug)]
enum Input {
    Open,
    /// The peer has reset the stream, as a write has found out; what it had sent before can still be read.
    Reset(CloseReason),
    Ended(CloseReason),
}

/// Whether the peer can still be sent bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Output {
    Open,
    /// We have ended our side.
    Ended,
    Broken,
}

impl Connection {
    /// Decides that the connection ends, before it has begun to run.
    pub fn end(&mut self, reason: CloseReason) {
        self.state.close(reason);
    }

    /// Serves the peer on its socket until the connection has ended.
    pub async fn run(mut self, mut socket: Socket) {
        let metrics = &self.shared.metrics;
        metrics.accepted.inc();
        metrics.connections.inc();
        self.counted = true;
        tracing::debug!(conn = %self.conn(), listener = %self.shared.options.listener, peer = %self.info.peer, "connected");

        let reason = self.serve(&mut socket).await;
        self.state.close(reason);
        let reason = self.finish(&mut socket).await;
        self.tell_closed(reason).await;
        if matches!((&self.input, self.output), (Input::Open, Output::Ended)) && !self.info.kind.has_datagrams() {
            linger(&mut socket).await;
        }
    }

    fn conn(&self) -> crate::conn::ConnId {
        self.entered.conn()
    }

    /// The handler that serves.
    fn link(&self) -> &Link {
        self.shared.chain.link(self.position)
    }

    /// Everything between the first event and the decision to end.
    async fn serve(&mut self, socket: &mut Socket) -> CloseReason {
        let created = Event::SocketCreated(Arc::clone(&self.info));
        if let Err(reason) = self.deliver(socket, created).await {
            return reason;
        }
        loop {
            if let Some(reason) = self.ends_at_once() {
                return reason;
            }
            if let Some(turn) = self.review.take() {
                self.review(socket).await;
                drop(turn);
                continue;
            }
            // While the peer does not take what it is sent, its handler is not given more to answer.
            if !self.adapter.outbound().is_full()
                && let Some(event) = self.pop()
            {
                if let Err(reason) = self.deliver(socket, event).await {
                    return reason;
                }
                continue;
            }
            if self.nothing_waits() {
                match (self.state.phase(), &self.input) {
                    (Phase::Closing(reason), _) | (Phase::Open, Input::Ended(reason)) => return reason.clone(),
                    (Phase::Open, Input::Open | Input::Reset(_)) => {}
                }
            }
            let happening = self.happening(socket, Until::AnythingHappens).await;
            self.handle(happening).await;
        }
    }

    /// The next event that waits, with its counters.
    fn pop(&mut self) -> Option<Event> {
        let mut event = self.next_waiting()?;
        let metrics = &self.shared.metrics;
        match &mut event {
            Event::ReceivedMessages(messages) => {
                metrics.delivered.inc_by(messages.len() as u64);
                self.held.remove(messages);
                for message in messages {
                    self.adapter.unmount(message);
                }
            }
            Event::ReceivedBytes(_) | Event::SocketCreated(_) | Event::TimerTimeout(_) | Event::SocketClosed(_) => {}
        }
        Some(event)
    }

    /// Acts on what has happened.
    async fn handle(&mut self, happening: Happening) {
        match happening {
            Happening::Mail(Some(mail)) => {
                self.handle_mail(*mail).await;
                // Messages that are there already go to the handler as one event.
                for _ in 1..MAILS_AT_ONCE {
                    // At the bound the next command waits, whichever of them has reached it.
                    if self.adapter.outbound().is_full() {
                        break;
                    }
                    match self.mails.try_recv() {
                        Ok(mail) => self.handle_mail(*mail).await,
                        Err(_) => break,
                    }
                }
            }
            // The table holds a sender as long as this task lives; without one, nobody can reach it any more.
            Happening::Mail(None) => self.state.close(CloseReason::Draining),
            Happening::Read | Happening::Room | Happening::Flushed => {}
            Happening::WriteFailed(error) => {
                self.output = Output::Broken;
                if matches!(self.input, Input::Open) && is_reset(&error) {
                    self.input = Input::Reset(socket_error(&error));
                } else {
                    self.end_input(socket_error(&error));
                }
            }
            Happening::Alarm => {
                self.alarm = None;
                let now = Instant::now();
                self.handle_silence(now);
                if !self.has_room_for_bytes() || self.held_back.is_some() {
                    // The socket is not read while its handler is behind or its rate is used up: the silence is ours, not the peer's.
                    self.state.handle_received(now);
                }
                self.held_back = self.held_back.filter(|until| *until > now);
                match self.state.handle_timeout(now) {
                    Some(Due::Keepalive) => self.waiting.push_timer(Timer::Keepalive),
                    Some(Due::Write) => {
                        self.output = Output::Broken;
                        self.end_input(CloseReason::WriteTimedOut);
                    }
                    Some(Due::Idle) | None => {}
                }
            }
        }
    }

    async fn handle_mail(&mut self, mail: Mail) {
        match mail {
            Mail::Ask(handler_conn, command, reply) => {
                let result = if handler_conn == self.entered.handler_conn() {
                    self.adapter.apply(command).await
                } else {
                    Err(Refused::Gone)
                };
                self.follow_timer();
                self.show_asked();
                if let Err(_unread) = reply.send(result) {
                    tracing::trace!(conn = %self.conn(), "the caller did not wait for the answer");
                }
            }
            Mail::Deliver(message) => {
                // Unmounted when it is handed on: its weight must be the same until then.
                self.waiting.push_message(message);
            }
            Mail::End(reason) => self.state.close(reason),
            Mail::Review(turn) => self.review = Some(turn),
        }
    }

    fn follow_timer(&mut self) {
        if let Some(change) = self.adapter.take_timer_change() {
            self.state.handle_timer(Instant::now(), change);
        }
    }
}
