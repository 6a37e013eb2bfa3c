//! Datagram BIO: whole datagrams between OpenSSL and the flow, in both directions.

use std::collections::VecDeque;
use std::io::{self, Read, Write};

use bytes::Bytes;

/// The maximum number of outbound datagrams. A flight with a long chain and a small MTU is shorter; further datagrams
/// are lost as in a network, and retransmitted.
const OUTBOUND_MAX: usize = 64;

/// The inbound and outbound datagrams of one `SSL`.
#[derive(Debug, Default)]
pub(super) struct DatagramBio {
    inbound: Option<Bytes>,
    outbound: VecDeque<Bytes>,
}

impl DatagramBio {
    /// Sets the next datagram that OpenSSL reads; an unread one is lost.
    pub(super) fn put(&mut self, datagram: Bytes) {
        self.inbound = Some(datagram);
    }

    /// Whether OpenSSL has read the inbound datagram.
    pub(super) fn is_drained(&self) -> bool {
        self.inbound.is_none()
    }

    /// The outbound datagrams, oldest first.
    pub(super) fn outbound(&mut self) -> &mut VecDeque<Bytes> {
        &mut self.outbound
    }
}

impl Read for DatagramBio {
    /// One datagram a call; a longer one is truncated, as by recv(2).
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
