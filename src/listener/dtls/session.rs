//! Established DTLS session: the meaning of its records.

use std::collections::VecDeque;

use bytes::Bytes;
use openssl::ssl::{ErrorCode, SslStream};

use super::datagram_bio::DatagramBio;
use super::etm_filter::EtmFilter;
use super::ffi;
use super::hello::HANDSHAKE;
use super::record_layer::{OpenError, Opened, PLAINTEXT_MAX, Record, RecordLayer};

/// Content types of records (RFC 5246 section 6.2.1).
const ALERT: u8 = 21;
const APPLICATION_DATA: u8 = 23;

/// The handshake message that ends a flight; from a peer with a session it means that our last flight was lost.
const FINISHED: u8 = 20;
/// The handshake message of a renegotiation.
const CLIENT_HELLO: u8 = 1;

/// Levels and descriptions of alerts (RFC 5246 section 7.2).
const WARNING: u8 = 1;
const FATAL: u8 = 2;
const CLOSE_NOTIFY: u8 = 0;
const NO_RENEGOTIATION: u8 = 100;

/// An event from the peer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The data of one record.
    Data(Bytes),
    /// The peer has closed the session.
    Closed,
    /// The peer has ended the session with an alert.
    Aborted,
}

/// Why a datagram was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SendError {
    /// It is larger than a record may be.
    #[error("a datagram of {bytes} bytes does not fit into a record of {bytes_max}")]
    TooLong {
        /// Its length.
        bytes: usize,
        /// The record limit: 16,384 bytes, or the negotiated one.
        bytes_max: usize,
    },
    /// The session has ended.
    #[error("the session has ended")]
    Ended,
}

/// An established session: datagrams in and out, data in and out.
#[derive(Debug)]
pub(crate) struct Session {
    layer: RecordBackend,
    /// Events received during the handshake.
    early: VecDeque<Event>,
    /// Outbound datagrams.
    outbound: VecDeque<Bytes>,
    /// The maximum plaintext of a record.
    plaintext_max: usize,
    /// The peer has ended the session.
    ended: bool,
    /// `close_notify` was sent.
    closed: bool,
    /// Dropped records since the last [`Session::take_dropped`].
    dropped: u64,
}

/// The record layer of the session.
#[derive(Debug)]
enum RecordBackend {
    /// Our own.
    Native(Box<Native>),
    /// OpenSSL's, for suites without authenticated encryption. Costs 40 KiB a session. It reads the records that pass
    /// the filter.
    OpenSsl(Box<SslStream<DatagramBio>>, Option<EtmFilter>),
}

#[derive(Debug)]
struct Native {
    sealed: RecordLayer,
    /// The last flight of our side of the handshake.
    flight: Vec<Bytes>,
    /// The unread rest of the current datagram.
    rest: Bytes,
}

impl Session {
    /// Continues after a handshake that ended with `flight`; `early` are datagrams of the session that came before its
    /// end.
    pub(super) fn new(mut stream: SslStream<DatagramBio>, flight: Vec<Bytes>, early: VecDeque<Bytes>) -> Self {
        let plaintext_max = ffi::max_fragment(stream.ssl()).unwrap_or(PLAINTEXT_MAX);
        let outbound = std::mem::take(stream.get_mut().outbound());
        let layer = match RecordLayer::take_out(stream.ssl(), &flight) {
            Some(sealed) => RecordBackend::Native(Box::new(Native { sealed, flight: Vec::new(), rest: Bytes::new() })),
            None => {
                let etm_filter = EtmFilter::of(stream.ssl(), &early);
                RecordBackend::OpenSsl(Box::new(stream), etm_filter)
            }
        };
        let mut session =
            Self { layer, outbound, early: VecDeque::new(), plaintext_max, ended: false, closed: false, dropped: 0 };
        if matches!(session.layer, RecordBackend::Native(_)) {
            // OpenSSL has read them too; here they are read again, for their data and so that the replay window knows
            // them.
            for datagram in early {
                session.handle_datagram(datagram);
                while let Some(event) = session.next_event() {
                    session.early.push_back(event);
                }
            }
            session.dropped = 0;
        }
        // Only now, because the peer's last flight was among them and has been answered.
        if let RecordBackend::Native(ours) = &mut session.layer {
            ours.flight = flight;
        }
        session
    }

    /// Takes in a datagram; [`Session::poll_event`] then returns its events, until `None`.
    pub(crate) fn handle_datagram(&mut self, datagram: Bytes) {
        match &mut self.layer {
            RecordBackend::Native(ours) => ours.rest = datagram,
            RecordBackend::OpenSsl(stream, Some(etm_filter)) => {
                let (passed, dropped) = etm_filter.filter(&datagram);
                self.dropped += dropped;
                if !passed.is_empty() {
                    stream.get_mut().put(passed);
                }
            }
            RecordBackend::OpenSsl(stream, None) => stream.get_mut().put(datagram),
        }
    }

    /// The next event of the received datagrams; `None` after the end.
    pub(crate) fn poll_event(&mut self) -> Option<Event> {
        if self.ended {
            return None;
        }
        let event = match self.early.pop_front() {
            Some(event) => event,
            None => self.next_event()?,
        };
        self.ended = matches!(event, Event::Closed | Event::Aborted);
        Some(event)
    }

    fn next_event(&mut self) -> Option<Event> {
        loop {
            let RecordBackend::Native(ours) = &mut self.layer else { return self.read() };
            let Some(record) = Record::first(&ours.rest) else {
                // No more records, or malformed bytes.
                self.dropped += u64::from(!ours.rest.is_empty());
                ours.rest = Bytes::new();
                return None;
            };
            let (len, opened) = (record.len, ours.sealed.open(&record));
            ours.rest = ours.rest.slice(len..);
            match opened {
                Some(opened) => {
                    if let Some(event) = self.handle_record(&opened) {
                        return Some(event);
                    }
                }
                None => {
                    self.dropped += 1;
                    if ours.sealed.is_worn_out() {
                        return Some(Event::Aborted);
                    }
                }
            }
        }
    }

    /// Encrypts data as one datagram.
    ///
    /// # Errors
    ///
    /// [`SendError`]; after `TooLong` the session continues.
    pub(crate) fn send(&mut self, data: &[u8]) -> Result<(), SendError> {
        if data.len() > self.plaintext_max {
            return Err(SendError::TooLong { bytes: data.len(), bytes_max: self.plaintext_max });
        }
        if self.closed {
            return Err(SendError::Ended);
        }
        match &mut self.layer {
            RecordBackend::Native(_) => self.push(APPLICATION_DATA, data).map_err(|OpenError| SendError::Ended),
            RecordBackend::OpenSsl(stream, _) => {
                let written = ffi::alloc_buffers(stream).is_ok() && stream.ssl_write(data).is_ok();
                ffi::free_buffers(stream);
                self.outbound.append(stream.get_mut().outbound());
                if written { Ok(()) } else { Err(SendError::Ended) }
            }
        }
    }

    /// The next outbound datagram.
    pub(crate) fn transmit(&self) -> Option<&Bytes> {
        self.outbound.front()
    }

    /// Removes the sent datagram.
    pub(crate) fn handle_transmitted(&mut self) {
        self.outbound.pop_front();
        if self.outbound.is_empty() {
            // An idle session keeps no memory of its queue.
            self.outbound = VecDeque::new();
        }
    }

    /// Sends `close_notify`.
    pub(crate) fn close(&mut self) {
        if std::mem::replace(&mut self.closed, true) {
            return;
        }
        match &mut self.layer {
            // Without memory for it the peer gets no alert, as if the datagram were lost.
            RecordBackend::Native(_) => drop(self.push(ALERT, &[WARNING, CLOSE_NOTIFY])),
            RecordBackend::OpenSsl(stream, _) => {
                if ffi::alloc_buffers(stream).is_ok() {
                    drop(stream.shutdown());
                }
                self.outbound.append(stream.get_mut().outbound());
            }
        }
    }

    /// Dropped records since the last call: malformed, not authentic, replayed, or of an unexpected type.
    pub(crate) fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }

    fn push(&mut self, content: u8, plaintext: &[u8]) -> Result<(), OpenError> {
        if let RecordBackend::Native(ours) = &mut self.layer {
            self.outbound.push_back(ours.sealed.seal(content, plaintext)?);
        }
        Ok(())
    }

    /// The event of an authentic record.
    fn handle_record(&mut self, opened: &Opened) -> Option<Event> {
        match (opened.content, &opened.plaintext[..]) {
            (APPLICATION_DATA, _) => return Some(Event::Data(opened.plaintext.clone())),
            (ALERT, [_, CLOSE_NOTIFY]) => return Some(Event::Closed),
            (ALERT, [FATAL, _]) => return Some(Event::Aborted),
            (ALERT, [WARNING, _]) => {}
            (HANDSHAKE, [FINISHED, ..]) => {
                // Once for each datagram is enough.
                if let RecordBackend::Native(ours) = &self.layer
                    && self.outbound.is_empty()
                {
                    self.outbound.extend(ours.flight.iter().cloned());
                }
            }
            // Once here too: a datagram has room for hundreds of these, and each response would wait for the socket.
            (HANDSHAKE, [CLIENT_HELLO, ..]) => {
                if self.outbound.is_empty() {
                    drop(self.push(ALERT, &[WARNING, NO_RENEGOTIATION]));
                }
            }
            _ => self.dropped += 1,
        }
        None
    }

    /// Reads with OpenSSL.
    fn read(&mut self) -> Option<Event> {
        let RecordBackend::OpenSsl(stream, _) = &mut self.layer else { return None };
        let came = !stream.get_ref().is_drained();
        if ffi::alloc_buffers(stream).is_err() {
            return Some(Event::Aborted);
        }
        let mut buffer = [0; PLAINTEXT_MAX];
        let event = match stream.ssl_read(&mut buffer) {
            Ok(count) => Some(Event::Data(Bytes::copy_from_slice(&buffer[..count]))),
            Err(error) if error.code() == ErrorCode::WANT_READ => None,
            Err(error) if error.code() == ErrorCode::ZERO_RETURN => Some(Event::Closed),
            Err(_) => Some(Event::Aborted),
        };
        let outbound = stream.get_mut().outbound();
        if event.is_none() {
            self.dropped += u64::from(came && outbound.is_empty());
        }
        self.outbound.append(outbound);
        ffi::free_buffers(stream);
        event
    }
}
