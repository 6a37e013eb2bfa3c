//! Outbound side of a connection: moves queued bytes from the adapter's [`Outbound`] queue into the socket.

use std::io;
use std::task::{Context, Poll};

use crate::adapter::Outbound;
use crate::listener::Socket;

use super::unverified::Proof;

/// State of the gateway's side of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Output {
    Open,
    /// The gateway has ended its side of the stream.
    Ended,
    Broken,
}

/// Result of one round of writes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Written {
    pub(super) bytes: usize,
    /// Datagrams that an unverified peer may not get.
    pub(super) dropped: u64,
    /// Bytes remain in the queue or in the socket's own buffer.
    pub(super) is_pending: bool,
}

#[derive(Debug)]
pub(super) struct SocketWriter {
    output: Output,
    /// The socket (TLS) may hold bytes that it accepted.
    unflushed: bool,
    sent_bytes: u64,
}

impl SocketWriter {
    pub(super) fn new() -> Self {
        Self { output: Output::Open, unflushed: false, sent_bytes: 0 }
    }

    pub(super) fn output(&self) -> Output {
        self.output
    }

    /// Marks the gateway's side of the stream as ended; `false` if it was ended or broken before.
    pub(super) fn end(&mut self) -> bool {
        std::mem::replace(&mut self.output, Output::Ended) == Output::Open
    }

    pub(super) fn break_off(&mut self) {
        self.output = Output::Broken;
    }

    /// Whether all bytes of `queue` are written to the network.
    pub(super) fn is_flushed(&self, queue: &Outbound) -> bool {
        queue.is_empty() && !self.unflushed
    }

    /// Bytes sent since the start.
    pub(super) fn sent_bytes(&self) -> u64 {
        self.sent_bytes
    }

    /// Writes what the socket accepts now; after the end of the output the queue is discarded. `None`: there was nothing to write.
    ///
    /// # Errors
    ///
    /// The socket's error, after which no more can be written.
    pub(super) fn poll_write(
        &mut self,
        queue: &mut Outbound,
        socket: &mut Socket,
        mut unverified: Option<&mut Proof>,
        cx: &mut Context<'_>,
    ) -> (Option<Written>, io::Result<()>) {
        if self.is_flushed(queue) {
            return (None, Ok(()));
        }
        if self.output != Output::Open {
            queue.clear();
            self.unflushed = false;
            return (None, Ok(()));
        }
        let (mut bytes, mut dropped) = (0, 0);
        let mut result = loop {
            if queue.is_empty() {
                break Ok(());
            }
            let written = match queue.only() {
                Some(datagram) if unverified.as_ref().is_some_and(|proof| !proof.may_send(datagram.len())) => {
                    let length = datagram.len();
                    queue.advance(length);
                    dropped += 1;
                    continue;
                }
                Some(bytes) => socket.poll_send(cx, bytes),
                None => {
                    let (slices, count) = queue.slices();
                    socket.poll_send_vectored(cx, &slices[..count])
                }
            };
            match written {
                Poll::Pending => break Ok(()),
                Poll::Ready(Ok(0)) => break Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(accepted)) => {
                    queue.advance(accepted);
                    if let Some(proof) = &mut unverified {
                        proof.handle_sent(accepted, socket.queued_datagrams());
                    }
                    bytes += accepted;
                    self.unflushed = socket.holds_bytes();
                }
                Poll::Ready(Err(error)) => break Err(error),
            }
        };
        if result.is_ok()
            && self.unflushed
            && let Poll::Ready(flushed) = socket.poll_flush(cx)
        {
            self.unflushed = false;
            result = flushed;
        }
        self.sent_bytes += bytes as u64;
        (Some(Written { bytes, dropped, is_pending: !self.is_flushed(queue) }), result)
    }
}
