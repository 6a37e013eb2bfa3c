//! DTLS handshake, from the ClientHello with a valid cookie to the session.

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

/// A handshake with one peer: datagrams in and out; the retransmission timer is OpenSSL's.
#[derive(Debug)]
pub(crate) struct Handshake {
    stream: SslStream<DatagramBio>,
    /// The bytes after the ClientHello in its datagram, which OpenSSL reads after it.
    behind: Option<Bytes>,
    /// The datagrams of our last flight.
    flight: Vec<Bytes>,
    /// Datagrams with encrypted records, which may belong to the session.
    early: VecDeque<Bytes>,
    /// Bytes that the peer may still send.
    bytes_left: usize,
}

/// Bytes that a peer may send in one handshake. Flights with a certificate chain have some KiB and may be sent a dozen
/// times; reassembly is in OpenSSL, with a bound of its own that is three times as high.
const BYTES_MAX: usize = 128 << 10;

/// Datagrams with encrypted records that are kept until the handshake is over: the peer's last flight, and early
/// application data. More are dropped.
const EARLY_MAX: usize = 8;

/// Undecryptable last flights of a client with a pre-shared key after which its key counts as wrong. Most clients send
/// the third one three seconds after the first, and a spoofer would have to hit these seconds.
const UNREADABLE_MAX: usize = 3;

/// The state of a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// It waits for the peer.
    Waiting,
    /// It has succeeded; pending datagrams go to the session.
    Done,
}

/// The result of a received datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// It is processed.
    Kept,
    /// It exceeds a bound.
    Dropped,
}

impl Handshake {
    /// Begins with the datagram that has passed the [`CookieVerifier`](super::CookieVerifier).
    ///
    /// # Errors
    ///
    /// OpenSSL does not accept its ClientHello, or has no memory.
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

    /// Whether the client retransmits an undecryptable last flight, as with a wrong pre-shared key: OpenSSL reports
    /// nothing, because an undecryptable record is no record.
    pub(crate) fn has_wrong_key(&self) -> bool {
        self.early.len() >= UNREADABLE_MAX && Psk::of(self.stream.ssl()).is_some()
    }

    /// Takes in the next datagram for [`Handshake::advance`], unless the peer has sent more than any handshake
    /// needs.
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

    /// The time to the next [`Handshake::handle_timeout`].
    pub(crate) fn timeout(&self) -> Option<Duration> {
        ffi::timeout(self.stream.ssl())
    }

    /// Retransmits, if the timer has expired.
    ///
    /// # Errors
    ///
    /// After a dozen retransmissions, over many minutes.
    pub(crate) fn handle_timeout(&mut self) -> Result<(), HandshakeError> {
        if ffi::handle_timeout(&mut self.stream) { Ok(()) } else { Err(HandshakeError::Closed) }
    }

    /// The next outbound datagram.
    pub(crate) fn poll_transmit(&mut self) -> Option<Bytes> {
        self.stream.get_mut().outbound().pop_front()
    }

    /// Processes the received datagrams. Outbound datagrams are in [`Handshake::poll_transmit`], also after a failure:
    /// the alert.
    ///
    /// # Errors
    ///
    /// Why the handshake failed.
    pub(crate) fn advance(&mut self) -> Result<Progress, HandshakeError> {
        loop {
            let sent_before = self.stream.get_mut().outbound().len();
            let Err(error) = self.stream.accept() else {
                // The peer's last flight was complete, and ours was the answer.
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

    /// The client's certificate in DER, if it has a valid one.
    pub(crate) fn certificate(&self) -> Option<Vec<u8>> {
        self.stream.ssl().peer_certificate()?.to_der().ok()
    }

    /// The identity of the client, if it has proved its pre-shared key.
    pub(crate) fn identity(&self) -> Option<&str> {
        Psk::of(self.stream.ssl()).filter(|psk| psk.is_known).map(|psk| &*psk.identity)
    }

    /// The cipher suite, in OpenSSL's notation.
    pub(crate) fn cipher(&self) -> &'static str {
        self.stream.ssl().current_cipher().map_or("none", |cipher| cipher.name())
    }

    /// The session, after [`Progress::Done`].
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
