//! What wakes a connection's task: its socket, its mailbox, its alarm.

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

/// One read takes at most this many bytes; each worker thread has one buffer of that size for all its
/// connections, so an idle connection holds none.
const READ_BYTES_MAX: usize = 64 * 1024;

/// Wakes the task for its next deadline. Deadlines move with every read, so the alarm is let ring early
/// and set again rather than moved each time.
#[derive(Debug)]
pub(super) struct DeadlineTimer {
    sleep: Pin<Box<Sleep>>,
    fires_at: Instant,
}

/// What the gauges have been told of this connection's queues; taken back when it ends, however it does.
#[derive(Debug)]
pub(super) struct ConnectionGauges {
    shared: Arc<Shared>,
    /// The connection counts as live.
    pub(super) is_live: bool,
    inbound: usize,
    outbound: usize,
    messages: usize,
}

impl ConnectionGauges {
    /// Nothing yet.
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, is_live: false, inbound: 0, outbound: 0, messages: 0 }
    }

    fn update(&mut self, inbound: usize, outbound: usize, messages: usize) {
        let metrics = &self.shared.metrics;
        let gauges = [
            (&metrics.inbound_queue_bytes, &mut self.inbound, inbound),
            (&metrics.outbound_queue_bytes, &mut self.outbound, outbound),
            (&metrics.queued_messages, &mut self.messages, messages),
        ];
        for (gauge, gauges, now) in gauges {
            if *gauges != now {
                gauge.inc_by(as_gauge(now) - as_gauge(*gauges));
                *gauges = now;
            }
        }
    }
}

impl Drop for ConnectionGauges {
    fn drop(&mut self) {
        self.update(0, 0, 0);
    }
}

/// What the task is woken for.
pub(super) enum Wakeup {
    Mail(Option<Box<Mail>>),
    /// Bytes have been read and wait; or the input has ended.
    Read,
    WriteFailed(io::Error),
    /// The queue to the peer is full no more.
    OutboundWritable,
    /// What waited for the socket has been written.
    Flushed,
    /// The alarm has rung.
    Deadline,
}

/// When [`Connection::next_wakeup`] may return for a flush alone.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum WaitFor {
    Anything,
    Flushed,
}

impl Connection {
    /// Waits for the next thing that concerns this connection. Can be dropped and called again.
    pub(super) async fn next_wakeup(&mut self, socket: &mut Socket, until: WaitFor) -> Wakeup {
        poll_fn(|cx| self.poll_wakeup(socket, until, cx)).await
    }

    fn poll_wakeup(&mut self, socket: &mut Socket, until: WaitFor, cx: &mut Context<'_>) -> Poll<Wakeup> {
        let was_full = self.adapter.outbound().is_full();
        if let Err(error) = self.poll_write(socket, cx) {
            return Poll::Ready(Wakeup::WriteFailed(error));
        }
        if was_full && !self.adapter.outbound().is_full() {
            // An event may have waited for nothing else.
            return Poll::Ready(Wakeup::OutboundWritable);
        }
        if until == WaitFor::Flushed && self.outbound.is_flushed(self.adapter.outbound()) {
            return Poll::Ready(Wakeup::Flushed);
        }
        // After a mail it is the socket's turn: a flood of messages must not keep the device from being heard.
        if std::mem::take(&mut self.inbox.served_last) && self.may_read() && self.poll_read(socket, cx).is_ready() {
            return Poll::Ready(Wakeup::Read);
        }
        // While the peer's queue is full its handler waits with the next command, instead of being refused.
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
        // Last, because what could not be written a moment ago has a deadline since then.
        self.arm_deadline_timer();
        match &mut self.deadline_timer {
            Some(deadline_timer) => deadline_timer.sleep.as_mut().poll(cx).map(|()| Wakeup::Deadline),
            None => Poll::Pending,
        }
    }

    /// Brings the gauges up to date when the task comes to rest: what passes through the queues at once is
    /// not worth their cost.
    pub(super) fn update_gauges(&mut self) {
        let outbound = self.adapter.outbound().bytes();
        self.gauges.update(self.inbound.bytes(), outbound, self.inbound.messages());
    }

    fn may_read(&self) -> bool {
        *self.state.phase() == Phase::Open && self.inbound.may_read()
    }

    /// One read, through a buffer that all connections of this thread share.
    fn poll_read(&mut self, socket: &mut Socket, cx: &mut Context<'_>) -> Poll<()> {
        thread_local! {
            static BUFFER: std::cell::RefCell<Box<[u8]>> = std::cell::RefCell::new(vec![0; READ_BYTES_MAX].into());
        }
        BUFFER.with_borrow_mut(|buffer| {
            let rates = self.shared.options.rates;
            let read_size = rates.read_size(READ_BYTES_MAX);
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
        self.shared.metrics.received_bytes.inc_by(bytes as u64);
        now
    }

    /// Writes what the socket accepts now.
    fn poll_write(&mut self, socket: &mut Socket, cx: &mut Context<'_>) -> io::Result<()> {
        let (written, result) = self.outbound.poll_write(self.adapter.outbound(), socket, cx);
        if let Some(written) = written {
            if written.bytes > 0 {
                self.shared.metrics.sent_bytes.inc_by(written.bytes as u64);
            }
            self.state.handle_written(Instant::now(), written.bytes > 0, written.is_pending);
        }
        result
    }

    fn arm_deadline_timer(&mut self) {
        let inbound = self.inbound.poll_timeout().filter(|_| *self.state.phase() == Phase::Open);
        let Some(deadline) = self.state.poll_timeout().into_iter().chain(inbound).min() else {
            return;
        };
        match &mut self.deadline_timer {
            // It rings early and is set again: cheaper than moving it with every read.
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

/// Whether a failed write tells that the stream is over both ways, so that reading comes to its end too.
pub(super) fn is_reset(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset)
}

/// A socket's error in the words of errno(3), which ExProto handlers know.
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
