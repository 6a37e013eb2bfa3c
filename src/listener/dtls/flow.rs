//! DTLS session over its flow.

use std::future::poll_fn;
use std::io;
use std::task::{Context as TaskContext, Poll, ready};

use super::{Context, Event, Handshake, Progress, SendError, Session, Taken};
use crate::conn::Certificate;
use crate::listener::tls::name;
use crate::listener::{Flow, HandshakeError, Received};

/// Datagrams without an event that are processed in one poll: a flood of them must not occupy the worker thread.
const FRUITLESS_MAX: usize = 32;

/// A flow whose datagrams are protected.
#[derive(Debug)]
pub struct SecureFlow {
    session: Session,
    flow: Flow,
}

/// Performs the handshake of an admitted flow; also returns the subject of the client's certificate.
///
/// It waits for the peer as long as OpenSSL retransmits, which is minutes: the caller sets the deadline.
///
/// # Errors
///
/// Why there is no session. The peer has got an alert, if there is one for the error.
pub(crate) async fn establish(
    mut flow: Flow,
    context: &Context,
) -> Result<(SecureFlow, Option<Certificate>), HandshakeError> {
    let first = poll_fn(|cx| flow.poll_receive(cx)).await.ok_or(HandshakeError::Closed)?;
    let mut handshake = Handshake::new(context, first)?;
    loop {
        let progress = handshake.advance();
        while let Some(datagram) = handshake.poll_transmit() {
            poll_fn(|cx| flow.poll_send(cx, &datagram)).await.map_err(|_| HandshakeError::Closed)?;
        }
        match progress? {
            Progress::Done => break,
            Progress::Waiting if handshake.has_wrong_key() => return Err(HandshakeError::WrongKey),
            Progress::Waiting => {}
        }
        let received = poll_fn(|cx| flow.poll_receive(cx));
        let received = match handshake.timeout() {
            Some(timeout) => tokio::time::timeout(timeout, received).await.ok(),
            None => Some(received.await),
        };
        match received {
            Some(Some(datagram)) => {
                if handshake.handle_datagram(datagram) == Taken::Dropped {
                    flow.dropped("handshake_full", 1);
                }
            }
            Some(None) => return Err(HandshakeError::Closed),
            None => handshake.handle_timeout()?,
        }
    }
    let certificate = handshake.certificate().map(|leaf| name::subject(&leaf)).transpose();
    let certificate = certificate.map_err(|error| HandshakeError::BadCertificate(error.to_string()))?;
    tracing::trace!(peer = %flow.peer(), cipher = handshake.cipher(), "DTLS handshake completed");
    if let Some(identity) = handshake.identity().filter(|_| certificate.is_none()) {
        tracing::debug!(peer = %flow.peer(), %identity, "peer authenticated with a pre-shared key");
    }
    Ok((SecureFlow { session: handshake.into_session(), flow }, certificate))
}

impl SecureFlow {
    /// The data of the peer's next record; [`Received::End`] when it has closed the session, or restarted.
    ///
    /// # Errors
    ///
    /// The peer has ended the session with an alert.
    pub fn poll_receive(&mut self, cx: &mut TaskContext<'_>) -> Poll<io::Result<Received<'static>>> {
        let received = self.poll_next(cx);
        self.flow.dropped("record_dropped", self.session.take_dropped());
        received
    }

    fn poll_next(&mut self, cx: &mut TaskContext<'_>) -> Poll<io::Result<Received<'static>>> {
        for _ in 0..FRUITLESS_MAX {
            match self.session.poll_event() {
                Some(Event::Data(data)) => return Poll::Ready(Ok(Received::Datagram(data))),
                Some(Event::Closed) => return Poll::Ready(Ok(Received::End)),
                Some(Event::Aborted) => return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
                None => {}
            }
            // Responses to a record, such as a retransmitted flight. No further datagram is read before they are sent,
            // so that their queue is bounded.
            ready!(self.poll_flush(cx))?;
            match ready!(self.flow.poll_receive(cx)) {
                Some(datagram) => self.session.handle_datagram(datagram),
                None => return Poll::Ready(Ok(Received::End)),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Sends data as one datagram. Data beyond the record limit of this peer is dropped and counted.
    ///
    /// # Errors
    ///
    /// The session has ended, or the runtime is ending.
    pub fn poll_send(&mut self, cx: &mut TaskContext<'_>, data: &[u8]) -> Poll<io::Result<()>> {
        // Pending datagrams go first, so that at most one is queued behind them.
        ready!(self.poll_flush(cx))?;
        match self.session.send(data) {
            // Accepted: if the socket is busy, the flow holds it until the next flush.
            Ok(()) => Poll::Ready(match self.poll_flush(cx) {
                Poll::Ready(flushed) => flushed,
                Poll::Pending => Ok(()),
            }),
            Err(error @ SendError::TooLong { .. }) => {
                tracing::debug!(peer = %self.flow.peer(), %error, "outbound datagram dropped");
                self.flow.dropped("datagram_too_large", 1);
                Poll::Ready(Ok(()))
            }
            Err(SendError::Ended) => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    /// Whether datagrams wait for the socket.
    pub fn holds_bytes(&self) -> bool {
        self.session.transmit().is_some()
    }

    /// Sends the pending datagrams.
    ///
    /// # Errors
    ///
    /// The runtime is ending.
    pub fn poll_flush(&mut self, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        while let Some(datagram) = self.session.transmit() {
            ready!(self.flow.poll_send(cx, datagram))?;
            self.session.handle_transmitted();
        }
        Poll::Ready(Ok(()))
    }

    /// Sends `close_notify`.
    ///
    /// # Errors
    ///
    /// The runtime is ending.
    pub fn poll_shutdown(&mut self, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        self.session.close();
        self.poll_flush(cx)
    }
}
