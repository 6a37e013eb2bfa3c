use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::dtls::{DtlsClient, DtlsSocket};
use super::within;

/// A raw device: a socket without a protocol.
pub struct RawPeer(Socket);

/// The socket, of any transport.
enum Socket {
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    Udp(Datagrams),
    Dtls(Box<DtlsSocket>),
}

/// A datagram socket, and the rest of its last datagram.
struct Datagrams {
    socket: UdpSocket,
    rest: Vec<u8>,
}

impl Datagrams {
    async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.rest.is_empty() {
            self.rest.resize(64 * 1024, 0);
            let received = self.socket.recv(&mut self.rest).await;
            self.rest.truncate(*received.as_ref().unwrap_or(&0));
            received?;
        }
        let count = self.rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.rest[..count]);
        self.rest.drain(..count);
        Ok(count)
    }

    /// The bytes received so far.
    fn drain(&mut self) -> Vec<u8> {
        let mut bytes = std::mem::take(&mut self.rest);
        let mut datagram = vec![0; 64 * 1024];
        while let Ok(count) = self.socket.try_recv(&mut datagram) {
            bytes.extend_from_slice(&datagram[..count]);
        }
        bytes
    }
}

impl Socket {
    /// All the bytes at once.
    async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.write_all(bytes).await,
            Self::Udp(datagrams) => datagrams.socket.send(bytes).await.map(|_| ()),
            Self::Dtls(socket) => socket.send(bytes).await,
            Self::Tls(stream) => {
                stream.write_all(bytes).await?;
                stream.flush().await
            }
        }
    }

    /// The next available bytes; 0 at the end.
    async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer).await,
            Self::Udp(datagrams) => datagrams.read(buffer).await,
            Self::Dtls(socket) => socket.read(buffer).await,
            Self::Tls(stream) => stream.read(buffer).await,
        }
    }

    /// Ends this side.
    async fn end(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.shutdown().await,
            Self::Udp(_) => Ok(()),
            Self::Dtls(socket) => socket.end().await,
            Self::Tls(stream) => stream.shutdown().await,
        }
    }
}

impl RawPeer {
    /// Over plain TCP.
    pub async fn connect(address: SocketAddr) -> Self {
        Self(Socket::Tcp(within("the connection", TcpStream::connect(address)).await.unwrap()))
    }

    /// Over plain TCP, from this address of the machine.
    pub async fn connect_from(from: Ipv4Addr, address: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((from, 0).into()).unwrap();
        Self(Socket::Tcp(within("the connection", socket.connect(address)).await.unwrap()))
    }

    /// Over plain UDP: one write is one datagram.
    pub async fn connect_udp(address: SocketAddr) -> Self {
        let any: SocketAddr = if address.is_ipv4() { ([127, 0, 0, 1], 0).into() } else { "[::1]:0".parse().unwrap() };
        let socket = UdpSocket::bind(any).await.unwrap();
        socket.connect(address).await.unwrap();
        Self(Socket::Udp(Datagrams { socket, rest: Vec::new() }))
    }

    /// Over DTLS, with the handshake as seen by a client.
    pub async fn connect_dtls(address: SocketAddr, client: &DtlsClient) -> Result<Self, String> {
        Ok(Self::over_dtls(DtlsSocket::connect(address, client).await?))
    }

    /// Over an existing DTLS session.
    pub fn over_dtls(socket: DtlsSocket) -> Self {
        Self(Socket::Dtls(Box::new(socket)))
    }

    /// Over TLS, as a client of `localhost`; with the handshake as seen by a client.
    pub async fn connect_tls(address: SocketAddr, client: &Arc<rustls::ClientConfig>) -> io::Result<Self> {
        Self::connect(address).await.begin_tls("localhost", client).await
    }

    /// Continues over TLS, as a client of this name.
    pub async fn begin_tls(self, name: &'static str, client: &Arc<rustls::ClientConfig>) -> io::Result<Self> {
        let handshake = TlsConnector::from(Arc::clone(client)).connect(name.try_into().unwrap(), self.into_stream());
        Ok(Self(Socket::Tls(Box::new(within("the handshake", handshake).await?))))
    }

    pub fn local_addr(&self) -> SocketAddr {
        match &self.0 {
            Socket::Tcp(stream) => stream.local_addr().unwrap(),
            Socket::Udp(datagrams) => datagrams.socket.local_addr().unwrap(),
            Socket::Dtls(socket) => socket.socket().local_addr().unwrap(),
            Socket::Tls(stream) => stream.get_ref().0.local_addr().unwrap(),
        }
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        within("the socket to take bytes", self.0.send(bytes.as_ref())).await.unwrap();
    }

    /// The next bytes, exactly these.
    pub async fn expect(&mut self, bytes: impl AsRef<[u8]>) {
        let expected = bytes.as_ref();
        let got = self.receive(expected.len()).await;
        assert_eq!(String::from_utf8_lossy(&got), String::from_utf8_lossy(expected));
    }

    /// The next `n` bytes.
    pub async fn receive(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        let mut so_far = 0;
        within("bytes from the gateway", async {
            while so_far < count {
                match self.0.read(&mut bytes[so_far..]).await.unwrap() {
                    0 => panic!("the end after {so_far} of {count} bytes"),
                    more => so_far += more,
                }
            }
        })
        .await;
        bytes
    }

    /// All bytes until the gateway ends the stream in order. Datagram peers get no end: the bytes so far.
    pub async fn receive_to_end(&mut self) -> Vec<u8> {
        if let Socket::Udp(datagrams) = &mut self.0 {
            return datagrams.drain();
        }
        let mut bytes = Vec::new();
        let mut buffer = vec![0; 64 * 1024];
        within("the end of the stream", async {
            loop {
                match self.0.read(&mut buffer).await.unwrap() {
                    0 => break,
                    more => bytes.extend_from_slice(&buffer[..more]),
                }
            }
        })
        .await;
        bytes
    }

    /// The gateway ends the stream in order, without another byte.
    pub async fn expect_closed(&mut self) {
        assert_eq!(String::from_utf8_lossy(&self.receive_to_end().await), "");
    }

    /// The next byte, or `None` at the end of the stream; an error when it was reset.
    pub async fn read_some(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; 64 * 1024];
        let count = within("bytes from the gateway", self.0.read(&mut bytes)).await?;
        bytes.truncate(count);
        Ok(bytes)
    }

    /// Ends this side of the stream; the other stays open.
    pub async fn shutdown(&mut self) {
        self.0.end().await.unwrap();
    }

    /// Resets the connection, like a device that loses power behind a NAT.
    pub fn reset(self) {
        match self.0 {
            Socket::Tcp(stream) => stream.set_zero_linger().unwrap(),
            Socket::Udp(_) | Socket::Dtls(_) => {}
            Socket::Tls(stream) => stream.get_ref().0.set_zero_linger().unwrap(),
        }
    }

    /// The socket itself, of a device over plain TCP.
    pub fn into_stream(self) -> TcpStream {
        match self.0 {
            Socket::Tcp(stream) => stream,
            Socket::Tls(_) | Socket::Udp(_) | Socket::Dtls(_) => panic!("not plain TCP"),
        }
    }

    /// The stream itself, of a device over TLS.
    pub fn into_tls(self) -> TlsStream<TcpStream> {
        match self.0 {
            Socket::Tls(stream) => *stream,
            Socket::Tcp(_) | Socket::Udp(_) | Socket::Dtls(_) => panic!("not TLS"),
        }
    }
}
