//! Wakeups of a connection task: socket, mailbox, deadline timer.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::time::Sleep;

use super::{Connection, Phase, Shared};
use crate::conn::CloseReason;
use crate::conn::registry::Mail;
use crate::listener::{Received, Socket};

/// Maximum size of one read. Each worker thread has one buffer of that size for all its connections, so an idle
/// connection holds none.
const READ_BYTES_MAX: usize = 64 * 1024;

/// The part of the budget of all queues from which a connection with queued bytes is not read: nothing is lost by that.
const PAUSE_READS_PERCENT: usize = 50;

/// The part from which little is queued for a socket: then handlers wait, which loses nothing either. The rest is for the
/// messages and datagrams of others, which are dropped when the budget is used up.
const LIMIT_SENDS_PERCENT: usize = 75;

/// Size of a read above [`PAUSE_READS_PERCENT`], in bytes.
const LIMITED_READ_BYTES: usize = 1 << 10;

/// Bound of the bytes queued for one socket above [`LIMIT_SENDS_PERCENT`].
const LIMITED_OUTBOUND_BYTES: usize = 4 << 10;

/// Wakes the task at its next deadline. Deadlines move with every read, so the timer may fire early and is then set
/// again, which is cheaper than moving it each time.
#[derive(Debug)]
pub(super) struct DeadlineTimer {
    sleep: Pin<Box<Sleep>>,
    fires_at: Instant,
}

/// This connection's share of the queue gauges; subtracted when it is dropped.
#[derive(Debug)]
pub(super) struct ConnectionGauges {
    shared: Arc<Shared>,
    /// The connection counts as live.
    pub(super) is_live: bool,
    /// Bytes of the event that the handler has.
    pub(super) event_bytes: usize,
    /// This connection's part of the budget of all queues.
    queued: usize,
    inbound: usize,
    outbound: usize,
    messages: usize,
}

impl ConnectionGauges {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, is_live: false, event_bytes: 0, queued: 0, inbound: 0, outbound: 0, messages: 0 }
    }

    /// Follows the bytes that wait for the handler and for the socket, and the number of messages, whose bytes are counted
    /// when they are added.
    fn update(&mut self, inbound: usize, outbound: usize, messages: usize) {
        let queued = inbound + outbound + self.event_bytes;
        self.shared.common.queued.update(self.queued, queued);
        self.queued = queued;
        let metrics = &self.shared.metrics;
        let gauges = [
            (&metrics.inbound_queue_bytes, &mut self.inbound, inbound),
            (&metrics.outbound_queue_bytes, &mut self.outbound, outbound),
            (&metrics.queued_messages, &mut self.messages, messages),
        ];
        for (gauge, last, now) in gauges {
            if *last != now {
                gauge.inc_by(as_gauge(now) - as_gauge(*last));
                *last = now;
            }
        }
    }
}

impl Drop for ConnectionGauges {
    fn drop(&mut self) {
        self.event_bytes = 0;
        self.update(0, 0, 0);
    }
}

/// Reason of a wakeup.
pub(super) enum Wakeup {
    Mail(Option<Box<Mail>>),
    /// Bytes were read and queued, or the input has ended.
    Read,
    WriteFailed(io::Error),
    /// The outbound queue has room again.
    OutboundWritable,
    /// The outbound queue is empty and flushed.
    Flushed,
    /// The deadline timer fired.
    Deadline,
    /// Another unverified peer has got the place of this one.
    Displaced,
}

/// Whether [`Connection::next_wakeup`] also returns when the output is flushed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum WaitFor {
    Anything,
    Flushed,
}

impl Connection {
    /// Waits for the next wakeup. Cancel-safe.
    pub(super) async fn next_wakeup(&mut self, socket: &mut Socket, until: WaitFor) -> Wakeup {
        poll_fn(|cx| self.poll_wakeup(socket, until, cx)).await
    }

    fn poll_wakeup(&mut self, socket: &mut Socket, until: WaitFor, cx: &mut Context<'_>) -> Poll<Wakeup> {
        self.limit_outbound();
        let was_full = self.adapter.outbound().is_full();
        if let Err(error) = self.poll_write(socket, cx) {
            return Poll::Ready(Wakeup::WriteFailed(error));
        }
        if was_full && !self.adapter.outbound().is_full() {
            // The next event may have waited for this room alone.
            return Poll::Ready(Wakeup::OutboundWritable);
        }
        if until == WaitFor::Flushed && self.outbound.is_flushed(self.adapter.outbound()) {
            return Poll::Ready(Wakeup::Flushed);
        }
        // Alternates between mail and socket: a flood of messages must not starve the device's bytes.
        if std::mem::take(&mut self.inbox.served_last) && self.may_read() && self.poll_read(socket, cx).is_ready() {
            return Poll::Ready(Wakeup::Read);
        }
        // Back-pressure: while the outbound queue is full, the handler's next command waits in the mailbox instead of
        // being refused.
        if !self.adapter.outbound().is_full()
            && let Poll::Ready(mail) = self.inbox.receiver.poll_recv(cx)
        {
            self.inbox.served_last = true;
            return Poll::Ready(Wakeup::Mail(mail));
        }
        if self.may_read() && self.poll_read(socket, cx).is_ready() {
            return Poll::Ready(Wakeup::Read);
        }
        self.update_gauges();
        if let Some(unverified) = &mut self.unverified
            && *self.state.phase() == Phase::Open
            && unverified.poll_displaced(cx).is_ready()
        {
            self.unverified = None;
            return Poll::Ready(Wakeup::Displaced);
        }
        // Last, because a write that stalled above has set its deadline.
        self.arm_deadline_timer();
        match &mut self.deadline_timer {
            Some(deadline_timer) => deadline_timer.sleep.as_mut().poll(cx).map(|()| Wakeup::Deadline),
            None => Poll::Pending,
        }
    }

    /// Updates the gauges before the task sleeps: updating them for every byte that passes through the queues would
    /// cost too much.
    pub(super) fn update_gauges(&mut self) {
        let outbound = self.adapter.outbound().bytes();
        self.gauges.update(self.inbound.bytes(), outbound, self.inbound.messages());
    }

    /// While the queues of all connections are above a part of their budget, a connection is only read while it has nothing
    /// queued. Its own queue wakes it, so none waits for others.
    fn may_read(&self) -> bool {
        let has_room = self.inbound.bytes() == 0 || !self.shared.common.queued.is_above(PAUSE_READS_PERCENT);
        *self.state.phase() == Phase::Open && self.inbound.may_read() && has_room
    }

    /// Limits what may be queued for the socket while the queues of all connections are above a part of their budget.
    pub(super) fn limit_outbound(&mut self) {
        let is_limited = self.shared.common.queued.is_above(LIMIT_SENDS_PERCENT);
        self.adapter.outbound().limit(if is_limited { LIMITED_OUTBOUND_BYTES } else { usize::MAX });
    }

    /// One read, through the buffer shared by all connections of this thread.
    fn poll_read(&mut self, socket: &mut Socket, cx: &mut Context<'_>) -> Poll<()> {
        thread_local! {
            static BUFFER: std::cell::RefCell<Box<[u8]>> = std::cell::RefCell::new(vec![0; READ_BYTES_MAX].into());
        }
        BUFFER.with_borrow_mut(|buffer| {
            let rates = self.shared.options.rates;
            let is_limited = self.shared.common.queued.is_above(PAUSE_READS_PERCENT);
            let read_size = rates.read_size(if is_limited { LIMITED_READ_BYTES } else { READ_BYTES_MAX });
            match socket.poll_receive(cx, &mut buffer[..read_size]) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(Received::End)) => self.inbound.end(CloseReason::PeerClosed),
                Poll::Ready(Ok(Received::Bytes(bytes))) => {
                    let now = self.count_received(bytes.len());
                    if self.inbound.push_bytes(&rates, now, bytes) {
                        self.shared.metrics.throttled_reads.inc();
                    }
                    self.count_skipped();
                }
                Poll::Ready(Ok(Received::Datagram(datagram))) => {
                    let now = self.count_received(datagram.len());
                    if let Err(exceeded) = self.inbound.push_datagram(&rates, now, datagram) {
                        self.shared.metrics.shed(exceeded.name());
                    }
                }
                Poll::Ready(Err(error)) => self.inbound.end(socket_error(&error)),
            }
            Poll::Ready(())
        })
    }

    fn count_received(&mut self, bytes: usize) -> Instant {
        let now = Instant::now();
        self.state.handle_received(now);
        if self.unverified.as_mut().is_some_and(|unverified| unverified.proof().handle_received(bytes)) {
            self.unverified = None;
        }
        self.shared.metrics.received_bytes.inc_by(bytes as u64);
        now
    }

    /// Writes what the socket accepts now.
    fn poll_write(&mut self, socket: &mut Socket, cx: &mut Context<'_>) -> io::Result<()> {
        let (written, result) = {
            let proof = self.unverified.as_mut().map(|unverified| unverified.proof());
            self.outbound.poll_write(self.adapter.outbound(), socket, proof, cx)
        };
        if let Some(written) = written {
            if written.dropped > 0 {
                self.shared.metrics.dropped("unverified_answer", written.dropped);
            }
            if written.bytes > 0 {
                self.shared.metrics.sent_bytes.inc_by(written.bytes as u64);
            }
            self.state.handle_written(Instant::now(), written.bytes > 0, written.is_pending);
        }
        result
    }

    fn arm_deadline_timer(&mut self) {
        let inbound = self.inbound.poll_timeout().filter(|_| *self.state.phase() == Phase::Open);
        let unverified = self.unverified.as_ref().map(|unverified| unverified.deadline());
        let Some(deadline) = self.state.poll_timeout().into_iter().chain(inbound).chain(unverified).min() else {
            return;
        };
        match &mut self.deadline_timer {
            // It fires early and is set again: cheaper than moving it with every read.
            Some(deadline_timer) if deadline_timer.fires_at <= deadline => {}
            Some(deadline_timer) => {
                deadline_timer.fires_at = deadline;
                deadline_timer.sleep.as_mut().reset(deadline.into());
            }
            None => {
                self.deadline_timer = Some(DeadlineTimer {
                    sleep: Box::pin(tokio::time::sleep_until(deadline.into())),
                    fires_at: deadline,
                });
            }
        }
    }
}

/// Whether a failed write means that the stream is broken in both directions, so that reads end too.
pub(super) fn is_reset(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset)
}

/// Close reason of a socket error, with the errno(3) name that ExProto handlers know.
#[expect(clippy::wildcard_enum_match_arm, reason = "the operating system's errors have no end")]
pub(super) fn socket_error(error: &io::Error) -> CloseReason {
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
