//! A handshake, from the hello that came with a valid cookie to the session.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use openssl::ssl::{ErrorCode, Ssl, SslStream};

use super::context::Context;
use super::datagram_bio::DatagramBio;
use super::ffi;
use super::hello;
use super::record_layer::has_sealed_record;
use super::session::Session;
use crate::listener::HandshakeError;
use crate::listener::openssl::failure;
use crate::listener::psk::Psk;

/// A handshake with one peer: datagrams go in and come out, and time is told by openssl's own clock.
#[derive(Debug)]
pub(crate) struct Handshake {
    stream: SslStream<DatagramBio>,
    /// What followed the hello in its datagram, which openssl looks at only afterwards.
    behind: Option<Bytes>,
    /// The datagrams of our last flight, once there was one.
    flight: Vec<Bytes>,
    /// Datagrams with records that may belong behind the handshake.
    early: VecDeque<Bytes>,
    /// Bytes that the peer may still send.
    bytes_left: usize,
}

/// Bytes that a peer may send in one handshake. Flights with a chain of certificates have some KiB and may come a dozen times;
/// what does not fit together is kept by openssl, which has a bound of its own that is three times as high.
const BYTES_MAX: usize = 128 << 10;

/// Datagrams with sealed records that are kept until the handshake is over: the peer's last flight, and what it may
/// send at once behind it. More are dropped.
const EARLY_MAX: usize = 8;

/// Last flights of a client with a pre-shared key that cannot be read, after which its key is thought to be wrong. The
/// third comes three seconds after the first from most clients, and a spoofer would have to hit these seconds.
const UNREADABLE_MAX: usize = 3;

/// Where a handshake is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// It needs more from the peer.
    Waiting,
    /// It has succeeded; what is still to be sent goes over to the session.
    Done,
}

/// What became of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// It is looked at.
    Kept,
    /// There was no room for it.
    Dropped,
}

impl Handshake {
    /// Begins with the datagram that has passed the [`CookieVerifier`](super::Door).
    ///
    /// # Errors
    ///
    /// It does not begin with a hello that openssl takes, or openssl has no memory.
    pub(crate) fn new(context: &Context, datagram: Bytes) -> Result<Self, HandshakeError> {
        let hello = hello::read(&datagram).ok_or_else(no_hello)?;
        let first = datagram.slice(..hello.record_len);
        let behind = Some(datagram.slice(hello.record_len..)).filter(|rest| !rest.is_empty());
        let mut ssl = Ssl::new(&context.ssl).map_err(ours)?;
        ssl.set_mtu(u32::from(context.mtu)).map_err(ours)?;
        ssl.set_accept_state();
        let mut bio = DatagramBio::default();
        bio.put(first);
        let mut stream = SslStream::new(ssl, bio).map_err(ours)?;
        if !ffi::listen(&mut stream) {
            return Err(no_hello());
        }
        let bytes_left = BYTES_MAX.saturating_sub(datagram.len());
        Ok(Self { stream, behind, flight: Vec::new(), early: VecDeque::new(), bytes_left })
    }

    /// Whether the client goes on sending a last flight that cannot be read, as it does when its pre-shared key is
    /// another one: openssl says nothing to that, because a record that cannot be read is no record.
    pub(crate) fn has_wrong_key(&self) -> bool {
        self.early.len() >= UNREADABLE_MAX && Psk::of(self.stream.ssl()).is_some()
    }

    /// Takes in the next datagram, which [`Handshake::advance`] then looks at; not if the peer has sent more than any handshake
    /// takes.
    pub(crate) fn handle_datagram(&mut self, datagram: Bytes) -> Taken {
        let Some(left) = self.bytes_left.checked_sub(datagram.len()) else {
            return Taken::Dropped;
        };
        if has_sealed_record(&datagram) {
            if self.early.len() == EARLY_MAX {
                return Taken::Dropped;
            }
            self.early.push_back(datagram.clone());
        }
        self.bytes_left = left;
        self.stream.get_mut().put(datagram);
        Taken::Kept
    }

    /// How long until [`Handshake::handle_timeout`] wants to be called.
    pub(crate) fn timeout(&self) -> Option<Duration> {
        ffi::timeout(self.stream.ssl())
    }

    /// Retransmits, if it is time.
    ///
    /// # Errors
    ///
    /// That was done a dozen times already, over many minutes.
    pub(crate) fn handle_timeout(&mut self) -> Result<(), HandshakeError> {
        if ffi::handle_timeout(&mut self.stream) { Ok(()) } else { Err(HandshakeError::Closed) }
    }

    /// The next datagram that is to be sent.
    pub(crate) fn poll_transmit(&mut self) -> Option<Bytes> {
        self.stream.get_mut().outbound().pop_front()
    }

    /// Goes on as far as what has come in allows. What is to be sent is left to [`Handshake::poll_transmit`], also
    /// after a failure: it is the alert that tells the peer why.
    ///
    /// # Errors
    ///
    /// Why there will be no session.
    pub(crate) fn advance(&mut self) -> Result<Progress, HandshakeError> {
        loop {
            let sent_before = self.stream.get_mut().outbound().len();
            let Err(error) = self.stream.accept() else {
                // The peer's last flight was all there, and ours was the answer.
                self.flight = self.stream.get_mut().outbound().iter().skip(sent_before).cloned().collect();
                return Ok(Progress::Done);
            };
            if error.code() == ErrorCode::WANT_READ {
                let Some(behind) = self.behind.take() else { return Ok(Progress::Waiting) };
                if self.handle_datagram(behind) == Taken::Dropped {
                    return Ok(Progress::Waiting);
                }
            } else {
                return Err(failure(&error, self.stream.ssl()));
            }
        }
    }

    /// The client's certificate in DER, if it has shown one that is valid.
    pub(crate) fn certificate(&self) -> Option<Vec<u8>> {
        self.stream.ssl().peer_certificate()?.to_der().ok()
    }

    /// Who the client says it is, if it has proved that with a pre-shared key.
    pub(crate) fn identity(&self) -> Option<&str> {
        Psk::of(self.stream.ssl()).filter(|psk| psk.is_known).map(|psk| &*psk.identity)
    }

    /// The suite, in openssl's words.
    pub(crate) fn cipher(&self) -> &'static str {
        self.stream.ssl().current_cipher().map_or("none", |cipher| cipher.name())
    }

    /// The session, after [`Handshake::advance`] said that it is there.
    pub(crate) fn into_session(self) -> Session {
        Session::new(self.stream, self.flight, self.early)
    }
}

fn no_hello() -> HandshakeError {
    HandshakeError::Broken("the hello was not accepted".to_owned())
}

fn ours(error: openssl::error::ErrorStack) -> HandshakeError {
    HandshakeError::Ours(error.to_string())
}
