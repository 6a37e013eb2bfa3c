//! Socket of an established peer, of any transport: receive, send, flush, shut down.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::dtls::SecureFlow;
use super::{Flow, tls};

/// The socket of an accepted peer, of any transport.
#[derive(Debug)]
pub enum Socket {
    /// Plain TCP.
    Tcp(TcpStream),
    /// Plain UDP.
    Udp(Flow),
    /// DTLS over UDP.
    Dtls(Box<SecureFlow>),
    /// TLS over TCP.
    Tls(tls::Stream),
}

/// Received data.
#[derive(Debug)]
pub enum Received<'b> {
    /// The next bytes of the stream, at least one.
    Bytes(&'b [u8]),
    /// One datagram, perhaps an empty one.
    Datagram(Bytes),
    /// The peer has closed its side.
    End,
}

impl Socket {
    /// The next received data. Bytes of a stream are read into `buffer`.
    ///
    /// # Errors
    ///
    /// Those of the socket; there is no data after one.
    pub fn poll_receive<'b>(&mut self, cx: &mut Context<'_>, buffer: &'b mut [u8]) -> Poll<io::Result<Received<'b>>> {
        match self {
            Self::Tcp(stream) => poll_read(stream, cx, buffer),
            Self::Udp(flow) => {
                flow.poll_receive(cx).map(|datagram| Ok(datagram.map_or(Received::End, Received::Datagram)))
            }
            Self::Dtls(flow) => flow.poll_receive(cx),
            Self::Tls(stream) => poll_read(stream, cx, buffer),
        }
    }

    /// Datagrams that have arrived and are not received yet; 0 for a stream.
    pub fn queued_datagrams(&self) -> usize {
        match self {
            Self::Udp(flow) => flow.queued(),
            Self::Tcp(_) | Self::Dtls(_) | Self::Tls(_) => 0,
        }
    }

    /// Sends bytes: the next ones of the stream, or one datagram, which is taken whole.
    ///
    /// # Errors
    ///
    /// Those of the socket; it takes nothing more after one.
    pub fn poll_send(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Udp(flow) => flow.poll_send(cx, bytes).map_ok(|()| bytes.len()),
            Self::Dtls(flow) => flow.poll_send(cx, bytes).map_ok(|()| bytes.len()),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    /// As [`poll_send`](Self::poll_send), for bytes of a stream in several buffers.
    ///
    /// # Errors
    ///
    /// The socket's.
    pub fn poll_send_vectored(&mut self, cx: &mut Context<'_>, bytes: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bytes),
            Self::Udp(flow) => {
                let first = bytes.first().map_or(&[][..], |first| first);
                flow.poll_send(cx, first).map_ok(|()| first.len())
            }
            Self::Dtls(flow) => {
                let first = bytes.first().map_or(&[][..], |first| first);
                flow.poll_send(cx, first).map_ok(|()| first.len())
            }
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bytes),
        }
    }

    /// Whether it may hold accepted bytes that are not written yet; [`poll_flush`](Self::poll_flush) writes them.
    pub fn holds_bytes(&self) -> bool {
        match self {
            Self::Tcp(_) | Self::Udp(_) => false,
            Self::Dtls(flow) => flow.holds_bytes(),
            Self::Tls(stream) => stream.holds_bytes(),
        }
    }

    /// Writes the held bytes.
    ///
    /// # Errors
    ///
    /// The socket's.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Udp(_) => Poll::Ready(Ok(())),
            Self::Dtls(flow) => flow.poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    /// Shuts the sending side down: FIN, or `close_notify`.
    ///
    /// # Errors
    ///
    /// The socket's.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Udp(flow) => {
                // UDP has no end of a session, so datagrams that the peer sends while the handler gets the end must
                // open a new flow.
                flow.close();
                Poll::Ready(Ok(()))
            }
            Self::Dtls(flow) => flow.poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// One read of a stream.
fn poll_read<'b>(
    stream: &mut (impl AsyncRead + Unpin),
    cx: &mut Context<'_>,
    buffer: &'b mut [u8],
) -> Poll<io::Result<Received<'b>>> {
    let mut read = ReadBuf::new(buffer);
    ready!(Pin::new(stream).poll_read(cx, &mut read))?;
    let count = read.filled().len();
    let bytes = buffer.get(..count).unwrap_or_default();
    Poll::Ready(Ok(if bytes.is_empty() { Received::End } else { Received::Bytes(bytes) }))
}
