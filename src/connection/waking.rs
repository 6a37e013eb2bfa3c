//! What wakes a connection's task: its socket, its mailbox, its alarm.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::time::Sleep;

use super::meter::Rates;
use super::{Connection, Input, Output, Phase, Shared};
use crate::conn::CloseReason;
use crate::conn::table::Mail;
use crate::listener::{Received, Socket};

/// One read takes at most this many bytes; each worker thread has one buffer of that size for all its
/// connections, so an idle connection holds none.
const READ_BYTES_MAX: usize = 64 * 1024;

/// Wakes the task for its next deadline. Deadlines move with every read, so the alarm is let ring early
/// and set again rather than moved each time.
#[derive(Debug)]
pub(super) struct Alarm {
    sleep: Pin<Box<Sleep>>,
    rings: Instant,
}

/// What the gauges have been told of this connection's queues; taken back when it ends, however it does.
#[derive(Debug)]
pub(super) struct Shown {
    shared: Arc<Shared>,
    inbound: usize,
    outbound: usize,
    messages: usize,
}

impl Shown {
    /// Nothing yet.
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, inbound: 0, outbound: 0, messages: 0 }
    }

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
pub(super) enum Happening {
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
pub(super) enum Until {
    AnythingHappens,
    Flushed,
}

impl Connection {
    /// Waits for the next thing that concerns this connection. Can be dropped and called again.
    pub(super) async fn happening(&mut self, socket: &mut Socket, until: Until) -> Happening {
        poll_fn(|cx| self.poll_happening(socket, until, cx)).await
    }

    fn poll_happening(&mut self, socket: &mut Socket, until: Until, cx: &mut Context<'_>) -> Poll<Happening> {
        let was_full = self.adapter.outbound().is_full();
        if let Err(error) = self.poll_write(socket, cx) {
            return Poll::Ready(Happening::WriteFailed(error));
        }
        if was_full && !self.adapter.outbound().is_full() {
            // An event may have waited for nothing else.
            return Poll::Ready(Happening::Room);
        }
        if until == Until::Flushed && self.adapter.outbound().is_empty() && !self.unflushed {
            return Poll::Ready(Happening::Flushed);
        }
        // After a mail it is the socket's turn: a flood of messages must not keep the device from being heard.
        if std::mem::take(&mut self.had_mail) && self.may_read() && self.poll_read(socket, cx).is_ready() {
            return Poll::Ready(Happening::Read);
        }
        // While the peer's queue is full its handler waits with the next command, instead of being refused.
        if !self.adapter.outbound().is_full()
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
    pub(super) fn show_fill(&mut self) {
        let outbound = self.adapter.outbound().bytes();
        self.shown.show(self.inbound_bytes(), outbound, self.waiting.messages());
    }

    pub(super) fn may_read(&self) -> bool {
        *self.state.phase() == Phase::Open
            && !matches!(self.input, Input::Ended(_))
            && self.has_room_for_bytes()
            && self.held_back.is_none()
    }

    /// One read, through a buffer that all connections of this thread share.
    fn poll_read(&mut self, socket: &mut Socket, cx: &mut Context<'_>) -> Poll<()> {
        thread_local! {
            static BUFFER: std::cell::RefCell<Box<[u8]>> = std::cell::RefCell::new(vec![0; READ_BYTES_MAX].into());
        }
        BUFFER.with_borrow_mut(|buffer| {
            let rates = self.shared.options.rates;
            let piece = rates.piece(READ_BYTES_MAX);
            match socket.poll_receive(cx, &mut buffer[..piece]) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(Received::End)) => self.end_input(CloseReason::PeerClosed),
                Poll::Ready(Ok(Received::Bytes(bytes))) => {
                    self.count_received(bytes.len());
                    self.push_received(bytes);
                    self.hold_back(&rates, bytes.len());
                }
                Poll::Ready(Ok(Received::Datagram(datagram))) => {
                    self.count_received(datagram.len());
                    match self.meter.over(&rates, Instant::now()) {
                        Some((_, over)) => self.shared.metrics.shed(over.name()),
                        None => {
                            self.meter.charge(&rates, Instant::now(), datagram.len());
                            self.waiting.push_whole(datagram);
                        }
                    }
                }
                Poll::Ready(Err(error)) => self.end_input(socket_error(&error)),
            }
            Poll::Ready(())
        })
    }

    /// Counts what was read of a stream against its rates. What goes over them is not read again for a while: its bytes wait in
    /// the socket, and the peer's own writes wait when that is full.
    fn hold_back(&mut self, rates: &Rates, bytes: usize) {
        if *rates == Rates::default() {
            return;
        }
        let now = Instant::now();
        self.meter.charge(rates, now, bytes);
        self.held_back = self.meter.over(rates, now).map(|(until, _)| until);
        if self.held_back.is_some() {
            self.shared.metrics.held_back.inc();
        }
    }

    fn count_received(&mut self, bytes: usize) {
        self.state.handle_received(Instant::now());
        self.received_bytes += bytes as u64;
        self.shared.metrics.received_bytes.inc_by(bytes as u64);
    }

    /// Nothing more can be read; a reset that was known before is the reason.
    pub(super) fn end_input(&mut self, reason: CloseReason) {
        self.input = match std::mem::replace(&mut self.input, Input::Open) {
            Input::Open => Input::Ended(reason),
            Input::Reset(reason) | Input::Ended(reason) => Input::Ended(reason),
        };
        self.end_frames();
    }

    /// Writes what the socket takes now.
    fn poll_write(&mut self, socket: &mut Socket, cx: &mut Context<'_>) -> io::Result<()> {
        let outbound = self.adapter.outbound();
        if outbound.is_empty() && !self.unflushed {
            return Ok(());
        }
        if self.output != Output::Open {
            outbound.clear();
            self.unflushed = false;
            return Ok(());
        }
        let mut taken_in_all = 0;
        let result = loop {
            if outbound.is_empty() {
                break Ok(());
            }
            let written = match outbound.only() {
                Some(bytes) => socket.poll_send(cx, bytes),
                None => {
                    let (slices, count) = outbound.slices();
                    socket.poll_send_vectored(cx, &slices[..count])
                }
            };
            match written {
                Poll::Pending => break Ok(()),
                Poll::Ready(Ok(0)) => break Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(taken)) => {
                    outbound.advance(taken);
                    taken_in_all += taken;
                    self.unflushed = socket.holds_bytes();
                }
                Poll::Ready(Err(error)) => break Err(error),
            }
        };
        let result = match result {
            Ok(()) if self.unflushed => match socket.poll_flush(cx) {
                Poll::Pending => Ok(()),
                Poll::Ready(flushed) => {
                    self.unflushed = false;
                    flushed
                }
            },
            result => result,
        };
        let some_wait = !outbound.is_empty() || self.unflushed;
        if taken_in_all > 0 {
            self.sent_bytes += taken_in_all as u64;
            self.shared.metrics.sent_bytes.inc_by(taken_in_all as u64);
        }
        self.state.handle_written(Instant::now(), taken_in_all > 0, some_wait);
        result
    }

    fn set_alarm(&mut self) {
        let deadlines = [self.state.poll_timeout(), self.silence_deadline(), self.held_back];
        let Some(deadline) = deadlines.into_iter().flatten().min() else {
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
