//! Close sequence of a connection: flush, end of the output, `OnSocketClosed`, linger. The order is always the same.

use std::future::poll_fn;
use std::time::{Duration, Instant};

use super::io::{WaitFor, Wakeup};
use super::{Connection, Phase};
use crate::conn::{CloseReason, Event};
use crate::listener::{Received, Socket};

/// How long the peer may take to end its side of the stream after the gateway has ended its own. Closing a socket with
/// unread bytes resets the stream, and the peer would lose the last bytes sent to it.
const LINGER: Duration = Duration::from_secs(1);

impl Connection {
    /// The reason to close at once, without delivering the queued events: the handler asked for the close, or the close
    /// was forced.
    pub(super) fn closes_immediately(&mut self) -> Option<CloseReason> {
        if self.adapter.is_unconfirmed() {
            self.state.close(CloseReason::Unconfirmed);
        } else if self.adapter.close_asked() {
            self.state.close(CloseReason::HandlerAsked);
        }
        match self.state.phase() {
            Phase::Closing(reason) if !delivers_pending(reason) => Some(reason.clone()),
            Phase::Open | Phase::Closing(_) => None,
        }
    }

    /// Ends the gateway's side of the stream, once.
    pub(super) async fn end_output(&mut self, socket: &mut Socket) {
        if !self.outbound.end() {
            return;
        }
        // A TLS peer that stops reading could delay its own close without bound.
        match tokio::time::timeout(LINGER, poll_fn(|cx| socket.poll_shutdown(cx))).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::trace!(conn = %self.conn(), %error, "peer disconnected before the end of the stream");
            }
            Err(_) => tracing::trace!(conn = %self.conn(), "timeout while sending the end of the stream"),
        }
    }

    /// Flushes the outbound queue, within the write timeout, and ends the gateway's side of the stream.
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

    /// Closes the mailbox, writes the last log line, and delivers the last event.
    pub(super) async fn notify_closed(&mut self, reason: CloseReason) {
        // From now on, and for commands still queued, callers get "the connection is gone" at once.
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
        if reason == CloseReason::Unverified {
            // Not at info: spoofed datagrams cause any number of them.
            tracing::debug!(conn = %self.conn(), listener = %self.shared.options.listener, peer = %self.info.peer, %reason, "closed");
        } else {
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
        }
        self.gauges.is_live = false;
        self.shared.metrics.closed(reason.name());
        self.shared.metrics.connections.dec();

        self.deliver_last(&Event::SocketClosed(reason)).await;
    }
}

/// Dropped before its close: the drain timeout has passed.
impl Drop for Connection {
    fn drop(&mut self) {
        if self.gauges.is_live {
            tracing::info!(conn = %self.conn(), listener = %self.shared.options.listener, peer = %self.info.peer, "closed by the drain timeout");
            self.shared.metrics.closed("drain_timeout");
            self.shared.metrics.connections.dec();
        }
    }
}

/// Reads and discards further bytes of the peer until it ends its side too (lingering close).
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
        tracing::trace!("timeout while waiting for the peer to end the stream");
    }
}

/// Whether the handler still gets the events queued before the close was decided. A handler that asked for the close
/// does not want them, and a failed one cannot get them.
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
        | CloseReason::Unverified
        | CloseReason::HandlerAsked
        | CloseReason::HandlerFailed { .. }
        | CloseReason::Replaced
        | CloseReason::Kicked
        | CloseReason::Expired
        | CloseReason::Unconfirmed => false,
    }
}
