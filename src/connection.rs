//! The task that owns one connection: its socket, its handler's side, its queues, its end.
//!
//! It begins when the peer is accepted and ends when the peer, the handler, a deadline or the operator ends it.
//! It never drops bytes of the stream, and never holds more than its bounds.
#![doc = include_str!("connection/LIFECYCLE.md")]

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;

use crate::adapter::{Adapter, Services};
use crate::conn::table::{Entered, Held, Mail, Mailbox, Mails, MessageBounds, Table};
use crate::conn::{CloseReason, ConnIds, ConnInfo, Event, Timer};
use crate::dispatch::Chain;
use crate::handler::{Attached, CallError, grpc};
use crate::telemetry::{HandlerMetrics, ListenerMetrics, PAYLOAD_LOG};

mod state;
mod waiting;

pub use state::{Phase, State, Timeouts};
pub use waiting::Waiting;

use state::Due;

/// One read takes at most this many bytes; each worker thread has one buffer of that size for all its
/// connections, so an idle connection holds none.
const READ_BYTES_MAX: usize = 64 * 1024;

/// Mails that are taken out together: the messages among them become one event.
const MAILS_AT_ONCE: usize = 64;

/// After our side of the stream has ended, how long the peer may take to end its own. A socket that is
/// closed with bytes unread resets the stream, and the peer would lose the last bytes that it was sent.
const LINGER: Duration = Duration::from_secs(1);

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
}

/// Opens the connections of one listener; cheap to clone.
#[derive(Clone, Debug)]
pub struct Connections(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    options: Options,
    ids: Arc<ConnIds>,
    table: Table,
    services: Arc<Services>,
    chain: Chain,
    permits: Arc<Semaphore>,
    metrics: ListenerMetrics,
}

/// The right to hold one connection.
#[derive(Debug)]
pub struct Permit(#[expect(dead_code, reason = "held, never read")] Option<OwnedSemaphorePermit>);

impl Connections {
    /// What the connections of a listener share.
    pub fn new(
        options: Options,
        ids: Arc<ConnIds>,
        table: Table,
        services: Services,
        chain: Chain,
        metrics: ListenerMetrics,
    ) -> Self {
        let permits = Arc::new(Semaphore::new(options.connections_max.min(Semaphore::MAX_PERMITS)));
        Self(Arc::new(Shared { options, ids, table, services: Arc::new(services), chain, permits, metrics }))
    }

    /// Waits until one more connection may be held.
    pub async fn permit(&self) -> Permit {
        // The semaphore is never closed.
        Permit(Arc::clone(&self.0.permits).acquire_owned().await.ok())
    }

    /// A connection for an accepted peer. It can be asked for things from now on, and lives by its `run`.
    pub fn open(&self, info: ConnInfo, permit: Permit) -> Connection {
        let shared = Arc::clone(&self.0);
        let now = Instant::now();
        let id = shared.ids.next();
        let info = Arc::new(info);
        let (mailbox, mails) = Mailbox::new(id, shared.options.messages, shared.metrics.messages_shed.clone());
        let adapter = Adapter::new(
            Arc::clone(&info),
            Arc::clone(&shared.services),
            mailbox.clone(),
            shared.options.outbound_bytes_max,
        );
        let link = shared.chain.first();
        Connection {
            attached: link.handler.attach(Box::new(adapter)),
            handler: link.metrics.clone(),
            state: State::new(now, shared.options.timeouts),
            waiting: Waiting::new(shared.options.inbound_bytes_max),
            held: Arc::clone(mailbox.held()),
            entered: shared.table.enter(mailbox),
            mails,
            info,
            input: Input::Open,
            output: Output::Open,
            counted: false,
            had_mail: false,
            alarm: None,
            received_bytes: 0,
            sent_bytes: 0,
            shown: Shown { shared: Arc::clone(&shared), inbound: 0, outbound: 0, messages: 0 },
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
    attached: Attached,
    handler: HandlerMetrics,
    state: State,
    waiting: Waiting,
    held: Arc<Held>,
    mails: Mails,
    input: Input,
    output: Output,
    /// It is among the live connections of the metrics.
    counted: bool,
    /// The last thing that happened was a mail.
    had_mail: bool,
    alarm: Option<Alarm>,
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

/// Wakes the task for its next deadline. Deadlines move with every read, so the alarm is let ring early
/// and set again rather than moved each time.
#[derive(Debug)]
struct Alarm {
    sleep: Pin<Box<Sleep>>,
    rings: Instant,
}

/// What the gauges have been told of this connection's queues; taken back when it ends, however it does.
#[derive(Debug)]
struct Shown {
    shared: Arc<Shared>,
    inbound: usize,
    outbound: usize,
    messages: usize,
}

impl Shown {
    fn show(&mut self, inbound: usize, outbound: usize, messages: usize) {
        let metrics = &self.shared.metrics;
        let gauges = [
            (&metrics.inbound_queue_bytes, &mut self.inbound, inbound),
            (&metrics.outbound_queue_bytes, &mut self.outbound, outbound),
            (&metrics.queued_messages, &mut self.messages, messages),
        ];
        for (gauge, shown, now) in gauges {
            if *shown != now {
                gauge.inc_by(as_gauge(now) - as_gauge(*shown));
                *shown = now;
            }
        }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.show(0, 0, 0);
    }
}

/// What the task is woken for.
enum Happening {
    Mail(Option<Box<Mail>>),
    /// Bytes have been read and wait; or the input has ended.
    Read,
    WriteFailed(io::Error),
    /// The queue to the peer is full no more.
    Room,
    /// What waited for the socket has been written.
    Flushed,
    /// The alarm has rung.
    Alarm,
}

/// When [`Connection::happening`] may return for a flush alone.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    AnythingHappens,
    Flushed,
}

impl Connection {
    /// Serves the peer on its socket until the connection has ended.
    pub async fn run<S>(mut self, mut socket: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let metrics = &self.shared.metrics;
        metrics.accepted.inc();
        metrics.connections.inc();
        self.counted = true;
        tracing::debug!(conn = %self.conn(), listener = %self.shared.options.listener, peer = %self.info.peer, "connected");

        let reason = self.serve(&mut socket).await;
        self.state.close(reason);
        let reason = self.finish(&mut socket).await;
        self.tell_closed(reason).await;
        if matches!((&self.input, self.output), (Input::Open, Output::Ended)) {
            linger(&mut socket).await;
        }
    }

    fn conn(&self) -> crate::conn::ConnId {
        self.entered.conn()
    }

    /// Everything between the first event and the decision to end.
    async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send>(&mut self, socket: &mut S) -> CloseReason {
        let created = Event::SocketCreated(Arc::clone(&self.info));
        if let Err(reason) = self.deliver(socket, created).await {
            return reason;
        }
        loop {
            if self.attached.adapter().close_asked() {
                self.state.close(CloseReason::HandlerAsked);
            }
            if let Phase::Closing(reason) = self.state.phase()
                && !hears_the_rest(reason)
            {
                return reason.clone();
            }
            // While the peer does not take what it is sent, its handler is not given more to answer.
            if !self.attached.adapter().outbound().is_full()
                && let Some(event) = self.pop()
            {
                if let Err(reason) = self.deliver(socket, event).await {
                    return reason;
                }
                continue;
            }
            if self.waiting.is_empty() {
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
        let mut event = self.waiting.pop()?;
        let metrics = &self.shared.metrics;
        match &mut event {
            Event::ReceivedMessages(messages) => {
                metrics.delivered.inc_by(messages.len() as u64);
                self.held.remove(messages);
                for message in messages {
                    self.attached.adapter().unmount(message);
                }
            }
            Event::ReceivedBytes(_) | Event::SocketCreated(_) | Event::TimerTimeout(_) | Event::SocketClosed(_) => {}
        }
        Some(event)
    }

    /// Gives one event to the handler and waits until it is handled, or tells why the connection must end.
    async fn deliver<S>(&mut self, socket: &mut S, event: Event) -> Result<(), CloseReason>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let started = Instant::now();
        let name = event.name();
        tracing::trace!(target: PAYLOAD_LOG, conn = %self.conn(), ?event, "to the handler");
        let result = match &mut self.attached {
            Attached::Wasm(guest) => guest.call(&event).await,
            Attached::Grpc { remote, .. } => {
                let (call, timeout) = (remote.call(&event), remote.call_timeout());
                self.while_calling(socket, call, timeout).await
            }
        };
        self.handler.seconds(name).observe(started.elapsed().as_secs_f64());
        self.follow_timer();
        result.map_err(|error| {
            self.handler.failed(error.kind());
            tracing::warn!(
                conn = %self.conn(),
                listener = %self.shared.options.listener,
                handler = %self.shared.chain.first().handler.name(),
                event = name,
                kind = error.kind(),
                "the handler failed: {error}"
            );
            CloseReason::HandlerFailed { event: name, error: error.to_string() }
        })
    }

    /// Drives a call to a remote handler, and meanwhile the socket and the mailbox: the handler asks for
    /// things from inside the callback and waits for the answers.
    async fn while_calling<S>(
        &mut self,
        socket: &mut S,
        mut call: grpc::Call,
        timeout: Duration,
    ) -> Result<(), CallError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let mut deadline = Box::pin(tokio::time::sleep(timeout));
        loop {
            let until = if self.is_to_end_at_once() { Until::Flushed } else { Until::AnythingHappens };
            tokio::select! {
                biased;
                done = &mut call => return done,
                () = &mut deadline => {
                    if !self.attached.adapter().outbound().is_full() {
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

    /// Whether the peer is to see the end although a callback still runs: it was asked for or forced, and
    /// what was read before does not matter any more.
    fn is_to_end_at_once(&mut self) -> bool {
        if self.attached.adapter().close_asked() {
            self.state.close(CloseReason::HandlerAsked);
        }
        self.output == Output::Open && matches!(self.state.phase(), Phase::Closing(reason) if !hears_the_rest(reason))
    }

    /// Ends our side of the stream, once.
    async fn end_output<S: AsyncWrite + Unpin>(&mut self, socket: &mut S) {
        if self.output != Output::Open {
            return;
        }
        self.output = Output::Ended;
        if let Err(error) = socket.shutdown().await {
            tracing::trace!(conn = %self.conn(), %error, "the peer was gone before the end of the stream");
        }
    }

    /// Waits for the next thing that concerns this connection. Can be dropped and called again.
    async fn happening<S>(&mut self, socket: &mut S, until: Until) -> Happening
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        poll_fn(|cx| self.poll_happening(socket, until, cx)).await
    }

    fn poll_happening<S>(&mut self, socket: &mut S, until: Until, cx: &mut Context<'_>) -> Poll<Happening>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let was_full = self.attached.adapter().outbound().is_full();
        if let Err(error) = self.poll_write(socket, cx) {
            return Poll::Ready(Happening::WriteFailed(error));
        }
        if was_full && !self.attached.adapter().outbound().is_full() {
            // An event may have waited for nothing else.
            return Poll::Ready(Happening::Room);
        }
        if until == Until::Flushed && self.attached.adapter().outbound().is_empty() {
            return Poll::Ready(Happening::Flushed);
        }
        // After a mail it is the socket's turn: a flood of messages must not keep the device from being heard.
        if std::mem::take(&mut self.had_mail) && self.may_read() && self.poll_read(socket, cx).is_ready() {
            return Poll::Ready(Happening::Read);
        }
        // While the peer's queue is full its handler waits with the next command, instead of being refused.
        if !self.attached.adapter().outbound().is_full()
            && let Poll::Ready(mail) = self.mails.poll_recv(cx)
        {
            self.had_mail = true;
            return Poll::Ready(Happening::Mail(mail));
        }
        if self.may_read() && self.poll_read(socket, cx).is_ready() {
            return Poll::Ready(Happening::Read);
        }
        self.show_fill();
        // Last, because what could not be written a moment ago has a deadline since then.
        self.set_alarm();
        match &mut self.alarm {
            Some(alarm) => alarm.sleep.as_mut().poll(cx).map(|()| Happening::Alarm),
            None => Poll::Pending,
        }
    }

    /// Brings the gauges up to date when the task comes to rest: what passes through the queues at once is
    /// not worth their cost.
    fn show_fill(&mut self) {
        let outbound = self.attached.adapter().outbound().bytes();
        self.shown.show(self.waiting.bytes(), outbound, self.waiting.messages());
    }

    fn may_read(&self) -> bool {
        *self.state.phase() == Phase::Open
            && !matches!(self.input, Input::Ended(_))
            && self.waiting.has_room_for_bytes()
    }

    /// One read, through a buffer that all connections of this thread share.
    fn poll_read<S: AsyncRead + Unpin>(&mut self, socket: &mut S, cx: &mut Context<'_>) -> Poll<()> {
        thread_local! {
            static BUFFER: std::cell::RefCell<Box<[u8]>> = std::cell::RefCell::new(vec![0; READ_BYTES_MAX].into());
        }
        BUFFER.with_borrow_mut(|buffer| {
            let mut read = ReadBuf::new(buffer);
            match Pin::new(socket).poll_read(cx, &mut read) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) if read.filled().is_empty() => self.end_input(CloseReason::PeerClosed),
                Poll::Ready(Ok(())) => {
                    let bytes = read.filled();
                    self.state.handle_received(Instant::now());
                    self.received_bytes += bytes.len() as u64;
                    self.shared.metrics.received_bytes.inc_by(bytes.len() as u64);
                    self.waiting.push_bytes(bytes);
                }
                Poll::Ready(Err(error)) => self.end_input(socket_error(&error)),
            }
            Poll::Ready(())
        })
    }

    /// Nothing more can be read; a reset that was known before is the reason.
    fn end_input(&mut self, reason: CloseReason) {
        self.input = match std::mem::replace(&mut self.input, Input::Open) {
            Input::Open => Input::Ended(reason),
            Input::Reset(reason) | Input::Ended(reason) => Input::Ended(reason),
        };
    }

    /// Writes what the socket takes now.
    fn poll_write<S: AsyncWrite + Unpin>(&mut self, socket: &mut S, cx: &mut Context<'_>) -> io::Result<()> {
        let outbound = self.attached.adapter().outbound();
        if outbound.is_empty() {
            return Ok(());
        }
        if self.output != Output::Open {
            outbound.clear();
            return Ok(());
        }
        let mut taken_in_all = 0;
        let result = loop {
            if outbound.is_empty() {
                break Ok(());
            }
            let written = match outbound.only() {
                Some(bytes) => Pin::new(&mut *socket).poll_write(cx, bytes),
                None => {
                    let (slices, count) = outbound.slices();
                    Pin::new(&mut *socket).poll_write_vectored(cx, &slices[..count])
                }
            };
            match written {
                Poll::Pending => break Ok(()),
                Poll::Ready(Ok(0)) => break Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(taken)) => {
                    outbound.advance(taken);
                    taken_in_all += taken;
                }
                Poll::Ready(Err(error)) => break Err(error),
            }
        };
        let some_wait = !outbound.is_empty();
        if taken_in_all > 0 {
            self.sent_bytes += taken_in_all as u64;
            self.shared.metrics.sent_bytes.inc_by(taken_in_all as u64);
        }
        self.state.handle_written(Instant::now(), taken_in_all > 0, some_wait);
        result
    }

    /// Acts on what has happened.
    async fn handle(&mut self, happening: Happening) {
        match happening {
            Happening::Mail(Some(mail)) => {
                self.handle_mail(*mail).await;
                // Messages that are there already go to the handler as one event.
                for _ in 1..MAILS_AT_ONCE {
                    // At the bound the next command waits, whichever of them has reached it.
                    if self.attached.adapter().outbound().is_full() {
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
                if !self.waiting.has_room_for_bytes() {
                    // The socket is not read while its handler is behind: the silence is ours, not the peer's.
                    self.state.handle_received(Instant::now());
                }
                match self.state.handle_timeout(Instant::now()) {
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
            Mail::Ask(command, reply) => {
                let result = self.attached.adapter().apply(command).await;
                self.follow_timer();
                if let Err(_unread) = reply.send(result) {
                    tracing::trace!(conn = %self.conn(), "the caller did not wait for the answer");
                }
            }
            Mail::Deliver(message) => {
                // Unmounted when it is handed on: its weight must be the same until then.
                self.waiting.push_message(message);
            }
            Mail::End(reason) => self.state.close(reason),
        }
    }

    fn follow_timer(&mut self) {
        if let Some(change) = self.attached.adapter().take_timer_change() {
            self.state.handle_timer(Instant::now(), change);
        }
    }

    fn set_alarm(&mut self) {
        let Some(deadline) = self.state.poll_timeout() else {
            return;
        };
        match &mut self.alarm {
            // It rings early and is set again: cheaper than moving it with every read.
            Some(alarm) if alarm.rings <= deadline => {}
            Some(alarm) => {
                alarm.rings = deadline;
                alarm.sleep.as_mut().reset(deadline.into());
            }
            None => {
                self.alarm =
                    Some(Alarm { sleep: Box::pin(tokio::time::sleep_until(deadline.into())), rings: deadline });
            }
        }
    }

    /// Writes what waits, at most for the write timeout, and ends our side of the stream.
    async fn finish<S>(&mut self, socket: &mut S) -> CloseReason
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        loop {
            let happening = self.happening(socket, Until::Flushed).await;
            if matches!(happening, Happening::Flushed) {
                break;
            }
            self.handle(happening).await;
        }
        let Phase::Closing(reason) = self.state.phase().clone() else {
            return CloseReason::Draining;
        };
        self.end_output(socket).await;
        reason
    }

    /// The last event and the last line of the log.
    async fn tell_closed(&mut self, reason: CloseReason) {
        // Whoever asks for something from now on is told that the connection is gone, at once.
        self.mails.close();
        while let Ok(unanswered) = self.mails.try_recv() {
            drop(unanswered);
        }
        let adapter = self.attached.adapter();
        let client_id = adapter.client_id().map(str::to_owned);
        adapter.end();
        self.waiting = Waiting::new(0);
        self.show_fill();
        tracing::info!(
            conn = %self.conn(),
            listener = %self.shared.options.listener,
            peer = %self.info.peer,
            client_id,
            received_bytes = self.received_bytes,
            sent_bytes = self.sent_bytes,
            age_ms = self.state.age(Instant::now()).as_millis() as u64,
            %reason,
            "closed"
        );
        self.counted = false;
        self.shared.metrics.closed(reason.name());
        self.shared.metrics.connections.dec();

        let event = Event::SocketClosed(reason);
        let name = event.name();
        let started = Instant::now();
        let result = match &mut self.attached {
            Attached::Wasm(guest) => guest.call(&event).await,
            Attached::Grpc { remote, .. } => {
                let timeout = remote.call_timeout();
                match tokio::time::timeout(timeout, remote.call(&event)).await {
                    Ok(result) => result,
                    Err(_) => Err(CallError::Timeout(timeout)),
                }
            }
        };
        self.handler.seconds(name).observe(started.elapsed().as_secs_f64());
        if let Err(error) = result {
            self.handler.undelivered(name);
            tracing::debug!(conn = %self.conn(), "the handler was not told of the end: {error}");
        }
    }
}

/// A connection that is dropped before its end, because the drain timeout is over.
impl Drop for Connection {
    fn drop(&mut self) {
        if self.counted {
            tracing::info!(conn = %self.conn(), listener = %self.shared.options.listener, peer = %self.info.peer, "cut off");
            self.shared.metrics.closed("cut_off");
            self.shared.metrics.connections.dec();
        }
    }
}

/// Reads and drops what the peer still sends, until it has ended its side too.
async fn linger<S: AsyncRead + Unpin>(socket: &mut S) {
    let until_the_end = async { while matches!(socket.read(&mut [0; 1024]).await, Ok(1..)) {} };
    if tokio::time::timeout(LINGER, until_the_end).await.is_err() {
        tracing::trace!("the peer did not end its side of the stream");
    }
}

/// Whether the handler still gets what was read before the end was decided. One that asked for the end does
/// not want it, and one that failed cannot have it.
fn hears_the_rest(reason: &CloseReason) -> bool {
    match reason {
        CloseReason::PeerClosed
        | CloseReason::SocketError(_)
        | CloseReason::WriteTimedOut
        | CloseReason::KeepaliveExpired
        | CloseReason::Draining => true,
        CloseReason::IdleTimedOut
        | CloseReason::HandlerAsked
        | CloseReason::HandlerFailed { .. }
        | CloseReason::Replaced
        | CloseReason::Kicked
        | CloseReason::Expired => false,
    }
}

/// Whether a failed write tells that the stream is over both ways, so that reading comes to its end too.
fn is_reset(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset)
}

/// A socket's error in the words of errno(3), which ExProto handlers know.
#[expect(clippy::wildcard_enum_match_arm, reason = "the operating system's errors have no end")]
fn socket_error(error: &io::Error) -> CloseReason {
    use io::ErrorKind::{
        BrokenPipe, ConnectionAborted, ConnectionReset, HostUnreachable, NetworkUnreachable, TimedOut, WriteZero,
    };
    CloseReason::SocketError(match error.kind() {
        ConnectionReset => "econnreset",
        BrokenPipe | WriteZero => "epipe",
        ConnectionAborted => "econnaborted",
        TimedOut => "etimedout",
        HostUnreachable => "ehostunreach",
        NetworkUnreachable => "enetunreach",
        _ => "eio",
    })
}

fn as_gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
