//! MQTT packets over a byte stream, for a server and for a client.
//!
//! One task owns it. Nothing is read while the peer leaves too much unread, so the memory of one stream is bounded:
//! [`OUT_BYTES_HIGH`] and one packet each way. While it is idle it holds no buffer.

use std::cell::RefCell;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

use crate::mqtt::decode::{DecodeError, Decoder};
use crate::mqtt::{Packet, Version, encode};

pub(crate) mod websocket;

/// From this many unwritten bytes on, nothing more is read or appended.
const OUT_BYTES_HIGH: usize = 64 * 1024;

/// How long the last bytes may take when the connection ends.
const LAST_WRITE_TIMEOUT: Duration = Duration::from_secs(2);

/// Bytes that are read at a time.
const READ_BYTES: usize = 16 * 1024;

/// A transport below MQTT.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Packets both ways.
pub(crate) struct PacketStream {
    stream: Box<dyn Stream>,
    pub(crate) decoder: Decoder,
    /// What is to be written.
    pub(crate) out: BytesMut,
    /// The stream may hold bytes that it took and has not written.
    is_unflushed: bool,
    /// Since when nothing of `out` was taken.
    blocked_since: Option<Instant>,
}

impl fmt::Debug for PacketStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PacketStream").field("out_bytes", &self.out.len()).finish_non_exhaustive()
    }
}

/// What [`PacketStream::drive`] waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Driven {
    /// Bytes have arrived in the decoder.
    Read,
    /// Everything is written.
    Written,
    /// The peer has closed its side.
    Closed,
}

/// Why no packet comes any more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    #[error("the peer has closed the connection")]
    Closed,
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

impl PacketStream {
    pub(crate) fn new(stream: Box<dyn Stream>, decoder: Decoder) -> Self {
        Self { stream, decoder, out: BytesMut::new(), is_unflushed: false, blocked_since: None }
    }

    /// Appends a packet to what is to be written. A packet that cannot be expressed is a fault of this program, which
    /// checks what comes from outside before.
    pub(crate) fn send(&mut self, version: Version, packet: &Packet) {
        if let Err(error) = encode::packet(version, packet, &mut self.out) {
            tracing::error!(%error, "an MQTT packet was not sent");
        }
    }

    /// Whether more may be appended.
    pub(crate) fn has_room(&self) -> bool {
        self.out.len() < OUT_BYTES_HIGH
    }

    /// Since when the peer takes nothing of what is to be written.
    pub(crate) fn blocked_since(&self) -> Option<Instant> {
        self.blocked_since
    }

    /// Reads or writes, whichever is possible first; does not read while the peer leaves too much unread. Nothing is
    /// lost when it is cancelled.
    pub(crate) async fn drive(&mut self) -> io::Result<Driven> {
        poll_fn(|cx| self.poll_drive(cx)).await
    }

    fn poll_drive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Driven>> {
        if self.poll_write(cx)?.is_ready() {
            return Poll::Ready(Ok(Driven::Written));
        }
        if !self.has_room() {
            return Poll::Pending;
        }
        self.poll_read(cx)
    }

    /// Ready when something was written and all of it is.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let has_bytes = !self.out.is_empty();
        while !self.out.is_empty() {
            match Pin::new(&mut self.stream).poll_write(cx, &self.out)? {
                Poll::Ready(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(written) => {
                    self.out.advance(written);
                    self.is_unflushed = true;
                    self.blocked_since = None;
                }
                Poll::Pending => {
                    self.blocked_since.get_or_insert_with(Instant::now);
                    return Poll::Pending;
                }
            }
        }
        if self.is_unflushed && Pin::new(&mut self.stream).poll_flush(cx)?.is_ready() {
            self.is_unflushed = false;
        }
        if has_bytes {
            self.out = BytesMut::new();
            return Poll::Ready(Ok(()));
        }
        Poll::Pending
    }

    /// Reads into the decoder, by way of a buffer that all streams of the thread share.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Driven>> {
        thread_local! {
            static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES]);
        }
        BUFFER.with_borrow_mut(|buffer| {
            let mut read = ReadBuf::new(buffer);
            match Pin::new(&mut self.stream).poll_read(cx, &mut read)? {
                Poll::Pending => Poll::Pending,
                Poll::Ready(()) if read.filled().is_empty() => Poll::Ready(Ok(Driven::Closed)),
                Poll::Ready(()) => {
                    self.decoder.push(read.filled());
                    Poll::Ready(Ok(Driven::Read))
                }
            }
        })
    }

    /// The next packet; writes meanwhile. Nothing is lost when it is cancelled.
    ///
    /// # Errors
    ///
    /// The stream has ended, has failed, or cannot be followed.
    pub(crate) async fn packet(&mut self) -> Result<Packet, ReadError> {
        loop {
            if let Some(packet) = self.decoder.next_packet()? {
                return Ok(packet);
            }
            if self.drive().await? == Driven::Closed {
                return Err(ReadError::Closed);
            }
        }
    }

    /// Writes what is left and closes the stream, as far as the peer lets it happen in time.
    pub(crate) async fn close(mut self) {
        let last = async {
            self.stream.write_all(&self.out).await?;
            self.stream.shutdown().await
        };
        match tokio::time::timeout(LAST_WRITE_TIMEOUT, last).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::trace!(%error, "the last bytes were not written"),
            Err(_) => tracing::trace!("the last bytes were not written in time"),
        }
    }
}
