//! How a connection ends, always in the same order, and who is told.

use std::future::poll_fn;
use std::time::{Duration, Instant};

use super::io::{WaitFor, Wakeup};
use super::{Connection, Phase};
use crate::conn::{CloseReason, Event};
use crate::listener::{Received, Socket};

/// After our side of the stream has ended, how long the peer may take to end its own. A socket that is
/// closed with bytes unread resets the stream, and the peer would lose the last bytes that it was sent.
const LINGER: Duration = Duration::from_secs(1);

impl Connection {
    /// Why the connection ends although its handler has not had everything: the end was asked for or forced, and what
    /// was read before does not matter any more.
    pub(super) fn closes_immediately(&mut self) -> Option<CloseReason> {
        if self.adapter.close_asked() {
            self.state.close(CloseReason::HandlerAsked);
        }
        match self.state.phase() {
            Phase::Closing(reason) if !delivers_pending(reason) => Some(reason.clone()),
            Phase::Open | Phase::Closing(_) => None,
        }
    }

    /// Ends our side of the stream, once.
    pub(super) async fn end_output(&mut self, socket: &mut Socket) {
        if !self.outbound.end() {
            return;
        }
        // A TLS peer that takes nothing any more could keep its own end from being told.
        match tokio::time::timeout(LINGER, poll_fn(|cx| socket.poll_shutdown(cx))).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::trace!(conn = %self.conn(), %error, "the peer was gone before the end of the stream");
            }
            Err(_) => tracing::trace!(conn = %self.conn(), "the peer did not take the end of the stream"),
        }
    }

    /// Writes what waits, at most for the write timeout, and ends our side of the stream.
    pub(super) async fn finish(&mut self, socket: &mut Socket) -> CloseReason {
        loop {
            let next_wakeup = self.next_wakeup(socket, WaitFor::Flushed).await;
            if matches!(next_wakeup, Wakeup::Flushed) {
                break;
            }
            self.handle(next_wakeup).await;
        }
        let Phase::Closing(reason) = self.state.phase().clone() else {
            return CloseReason::Draining;
        };
        self.end_output(socket).await;
        reason
    }

    /// The last event and the last line of the log.
    pub(super) async fn notify_closed(&mut self, reason: CloseReason) {
        // Whoever asks for something from now on is told that the connection is gone, at once.
        self.inbox.receiver.close();
        while let Ok(unanswered) = self.inbox.receiver.try_recv() {
            drop(unanswered);
        }
        let client_id = self.adapter.client_id().map(str::to_owned);
        self.adapter.end();
        self.count_skipped();
        let unfinished = self.inbound.clear();
        if unfinished > 0 {
            self.count_unframed(unfinished, "the stream ended inside a frame");
        }
        self.update_gauges();
        tracing::info!(
            conn = %self.conn(),
            listener = %self.shared.options.listener,
            peer = %self.info.peer,
            client_id,
            received_bytes = self.inbound.received_bytes(),
            sent_bytes = self.outbound.sent_bytes(),
            age_ms = self.state.age(Instant::now()).as_millis() as u64,
            %reason,
            "closed"
        );
        self.gauges.is_live = false;
        self.shared.metrics.closed(reason.name());
        self.shared.metrics.connections.dec();

        self.deliver_last(&Event::SocketClosed(reason)).await;
    }
}

/// A connection that is dropped before its end, because the drain timeout is over.
impl Drop for Connection {
    fn drop(&mut self) {
        if self.gauges.is_live {
            tracing::info!(conn = %self.conn(), listener = %self.shared.options.listener, peer = %self.info.peer, "cut off");
            self.shared.metrics.closed("drain_timeout");
            self.shared.metrics.connections.dec();
        }
    }
}

/// Reads and drops what the peer still sends, until it has ended its side too.
pub(super) async fn linger(socket: &mut Socket) {
    let mut buffer = [0; 1024];
    let until_the_end = async {
        loop {
            let ended = poll_fn(|cx| {
                socket.poll_receive(cx, &mut buffer).map(|received| match received {
                    Ok(Received::Bytes(_) | Received::Datagram(_)) => false,
                    Ok(Received::End) | Err(_) => true,
                })
            });
            if ended.await {
                return;
            }
        }
    };
    if tokio::time::timeout(LINGER, until_the_end).await.is_err() {
        tracing::trace!("the peer did not end its side of the stream");
    }
}

/// Whether the handler still gets what was read before the end was decided. One that asked for the end does
/// not want it, and one that failed cannot have it.
pub(super) fn delivers_pending(reason: &CloseReason) -> bool {
    match reason {
        CloseReason::PeerClosed
        | CloseReason::SocketError(_)
        | CloseReason::WriteTimedOut
        | CloseReason::KeepaliveExpired
        | CloseReason::FramingBroken(_)
        | CloseReason::Draining => true,
        CloseReason::IdleTimedOut
        | CloseReason::LoginTimedOut
        | CloseReason::HandlerAsked
        | CloseReason::HandlerFailed { .. }
        | CloseReason::Replaced
        | CloseReason::Kicked
        | CloseReason::Expired => false,
    }
}
