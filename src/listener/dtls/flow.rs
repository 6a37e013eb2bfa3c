//! A session and the flow that carries it.

use std::future::poll_fn;
use std::io;
use std::task::{Context as TaskContext, Poll, ready};

use super::{Context, Event, Handshake, Progress, SendError, Session, Taken};
use crate::conn::Certificate;
use crate::listener::tls::name;
use crate::listener::{Flow, HandshakeError, Received};

/// Datagrams without an event that are looked at in one go: a peer that floods its flow with them must not keep the
/// worker thread from everybody else.
const FRUITLESS_MAX: usize = 32;

/// A flow whose datagrams are protected.
#[derive(Debug)]
pub struct SecureFlow {
    session: Session,
    flow: Flow,
}

/// Does the handshake of a flow whose first datagram has passed the door; gives besides what the client's certificate says.
///
/// It waits for the peer as long as openssl goes on retransmitting, which is minutes: the caller sets the deadline.
///
/// # Errors
///
/// Why there is no session. The peer has been told, as far as there are words for it.
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
    tracing::trace!(peer = %flow.peer(), cipher = handshake.cipher(), "a DTLS handshake is over");
    if let Some(identity) = handshake.identity().filter(|_| certificate.is_none()) {
        tracing::debug!(peer = %flow.peer(), %identity, "a peer has shown its pre-shared key");
    }
    Ok((SecureFlow { session: handshake.into_session(), flow }, certificate))
}

impl SecureFlow {
    /// The data of the peer's next record; the end when it has closed the session, or begun anew.
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
            // What a record asked for, such as the last flight again. Nothing more is read while the socket does not take it,
            // so that what waits there has a bound.
            ready!(self.poll_flush(cx))?;
            match ready!(self.flow.poll_receive(cx)) {
                Some(datagram) => self.session.handle_datagram(datagram),
                None => return Poll::Ready(Ok(Received::End)),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Sends data as one datagram. Data that no record of this peer can carry is dropped and counted.
    ///
    /// # Errors
    ///
    /// The session has ended, or the runtime is ending.
    pub fn poll_send(&mut self, cx: &mut TaskContext<'_>, data: &[u8]) -> Poll<io::Result<()>> {
        // What waits already goes first, so that there is at most one datagram of ours behind it.
        ready!(self.poll_flush(cx))?;
        match self.session.send(data) {
            // Taken: should the socket be busy, the flow holds it until the next flush.
            Ok(()) => Poll::Ready(match self.poll_flush(cx) {
                Poll::Ready(flushed) => flushed,
                Poll::Pending => Ok(()),
            }),
            Err(error @ SendError::TooLong { .. }) => {
                tracing::debug!(peer = %self.flow.peer(), %error, "dropped what was to be sent");
                self.flow.dropped("datagram_too_large", 1);
                Poll::Ready(Ok(()))
            }
            Err(SendError::Ended) => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    /// Whether something waits for the socket.
    pub fn holds_bytes(&self) -> bool {
        self.session.transmit().is_some()
    }

    /// Sends what waits.
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

    /// Tells the peer that the session is closed.
    ///
    /// # Errors
    ///
    /// The runtime is ending.
    pub fn poll_shutdown(&mut self, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        self.session.close();
        self.poll_flush(cx)
    }
}
