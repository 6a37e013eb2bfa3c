use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::within;

/// A device that is nothing but a TCP socket.
pub struct RawPeer(TcpStream);

impl RawPeer {
    pub async fn connect(address: SocketAddr) -> Self {
        Self(within("the connection", TcpStream::connect(address)).await.unwrap())
    }

    pub fn local_addr(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        within("the socket to take bytes", self.0.write_all(bytes.as_ref())).await.unwrap();
    }

    /// The next bytes, exactly these.
    pub async fn expect(&mut self, bytes: impl AsRef<[u8]>) {
        let expected = bytes.as_ref();
        let got = self.receive(expected.len()).await;
        assert_eq!(String::from_utf8_lossy(&got), String::from_utf8_lossy(expected));
    }

    /// The next so many bytes.
    pub async fn receive(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        within("bytes from the gateway", self.0.read_exact(&mut bytes)).await.unwrap();
        bytes
    }

    /// Whatever comes until the gateway ends the stream in order.
    pub async fn receive_to_end(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        within("the end of the stream", self.0.read_to_end(&mut bytes)).await.unwrap();
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
        self.0.shutdown().await.unwrap();
    }

    /// Resets the connection, as a device that loses power behind a NAT seems to.
    pub fn reset(self) {
        self.0.set_zero_linger().unwrap();
    }

    pub fn into_stream(self) -> TcpStream {
        self.0
    }
}
