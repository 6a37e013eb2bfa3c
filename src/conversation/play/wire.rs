//! The device's end of a TCP connection, merged with the messages of the MQTT observer.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::mqtt_observer::{Inbox, ObserverError};
use super::{GatewayAddr, PlayError};
use crate::conversation::run::Published;

/// The size of a read.
const READ_BYTES_MAX: usize = 64 * 1024;

/// A received event.
pub(super) enum WireEvent {
    Bytes(Bytes),
    Published(Published),
    /// The gateway ended the connection, by FIN or reset.
    Closed,
}

pub(super) struct Wire {
    read: OwnedReadHalf,
    write: OwnedWriteHalf,
    inbox: Option<Inbox>,
    buffer: BytesMut,
    open: bool,
    sent_bytes: u64,
    received_bytes: u64,
}

impl Wire {
    pub(super) async fn connect(to: &GatewayAddr, inbox: Option<Inbox>, timeout: Duration) -> Result<Self, PlayError> {
        let connecting = tokio::time::timeout(timeout, TcpStream::connect((to.host(), to.port()))).await;
        let connected = connecting.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        // Frames are small and a reply is awaited: Nagle's algorithm would only add its delay.
        let stream = connected.and_then(|stream| stream.set_nodelay(true).map(|()| stream));
        let stream = stream.map_err(|source| PlayError::Connect { to: to.clone(), source })?;
        let (read, write) = stream.into_split();
        Ok(Self { read, write, inbox, buffer: BytesMut::new(), open: true, sent_bytes: 0, received_bytes: 0 })
    }

    /// Whether no end of the gateway has been read yet.
    pub(super) fn is_open(&self) -> bool {
        self.open
    }

    /// Bytes to the gateway and from it.
    pub(super) fn counts(&self) -> (u64, u64) {
        (self.sent_bytes, self.received_bytes)
    }

    /// The next event; waits for ever if there can be none. Bytes are read only if there is `room` for them.
    ///
    /// Cancel safe.
    pub(super) async fn next(&mut self, room: bool) -> Result<WireEvent, ObserverError> {
        let published = async {
            match &mut self.inbox {
                Some(inbox) => inbox.next().await,
                None => std::future::pending().await,
            }
        };
        self.buffer.reserve(READ_BYTES_MAX);
        tokio::select! {
            read = self.read.read_buf(&mut self.buffer), if room && self.open => Ok(self.was_read(read)),
            message = published => message.map(WireEvent::Published),
        }
    }

    /// The next event that is already available.
    pub(super) fn try_next(&mut self) -> Result<Option<WireEvent>, ObserverError> {
        if let Some(inbox) = &mut self.inbox
            && let Some(message) = inbox.try_next()?
        {
            return Ok(Some(WireEvent::Published(message)));
        }
        if !self.open {
            return Ok(None);
        }
        self.buffer.reserve(READ_BYTES_MAX);
        match self.read.try_read_buf(&mut self.buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            read => Ok(Some(self.was_read(read))),
        }
    }

    /// Writes some of `rest` and advances it, or returns an event that came first if there is `room` for it. A failed
    /// write is the end of the connection.
    pub(super) async fn write(&mut self, rest: &mut &[u8], room: bool) -> Option<WireEvent> {
        self.buffer.reserve(READ_BYTES_MAX);
        tokio::select! {
            biased;
            written = self.write.write(rest) => match written {
                Ok(count) if count > 0 => {
                    *rest = rest.get(count..).unwrap_or_default();
                    self.sent_bytes += count as u64;
                    None
                }
                Ok(_) | Err(_) => {
                    self.open = false;
                    Some(WireEvent::Closed)
                }
            },
            read = self.read.read_buf(&mut self.buffer), if room && self.open => Some(self.was_read(read)),
        }
    }

    /// Shuts the sending side down; ignored if the gateway has closed already.
    pub(super) async fn end_writing(&mut self) {
        drop(self.write.shutdown().await);
    }

    fn was_read(&mut self, read: io::Result<usize>) -> WireEvent {
        match read {
            Ok(count) if count > 0 => {
                self.received_bytes += count as u64;
                WireEvent::Bytes(self.buffer.split().freeze())
            }
            // A conversation does not distinguish a reset from an orderly end.
            Ok(_) | Err(_) => {
                self.open = false;
                WireEvent::Closed
            }
        }
    }
}
