//! What lies between openssl and the flow: whole datagrams in both directions.

use std::collections::VecDeque;
use std::io::{self, Read, Write};

use bytes::Bytes;

/// Datagrams that may wait for the socket. A flight of a handshake with a long chain and a small MTU is shorter;
/// the rest is lost as a network would lose it, and retransmitted.
const OUTBOUND_MAX: usize = 64;

/// The datagrams on their way into and out of openssl.
#[derive(Debug, Default)]
pub(super) struct DatagramBio {
    inbound: Option<Bytes>,
    outbound: VecDeque<Bytes>,
}

impl DatagramBio {
    /// The next datagram that openssl reads; it is lost if openssl has not read the one before.
    pub(super) fn put(&mut self, datagram: Bytes) {
        self.inbound = Some(datagram);
    }

    /// Whether openssl has read what there was.
    pub(super) fn is_drained(&self) -> bool {
        self.inbound.is_none()
    }

    /// The oldest datagram that is to be sent.
    pub(super) fn outbound(&mut self) -> &mut VecDeque<Bytes> {
        &mut self.outbound
    }
}

impl Read for DatagramBio {
    /// One datagram a call; what does not fit is cut off, as recv(2) does.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let datagram = self.inbound.take().ok_or(io::ErrorKind::WouldBlock)?;
        let count = datagram.len().min(buffer.len());
        buffer[..count].copy_from_slice(&datagram[..count]);
        Ok(count)
    }
}

impl Write for DatagramBio {
    /// One datagram a call.
    fn write(&mut self, datagram: &[u8]) -> io::Result<usize> {
        if self.outbound.len() < OUTBOUND_MAX {
            self.outbound.push_back(Bytes::copy_from_slice(datagram));
        }
        Ok(datagram.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
