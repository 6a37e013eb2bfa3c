//! A scripted gateway.

use std::future::Future;
use std::time::Duration;

use polygate::testing::conversation::play::GatewayAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Timeout of every wait.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Serves every connection with `serve`, on a free port, as long as the test's runtime lives.
pub async fn gateway<F, S>(serve: F) -> GatewayAddr
where
    F: Fn(Peer) -> S + Send + 'static,
    S: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(serve(Peer(stream)));
        }
    });
    address.into()
}

/// The gateway's end of a connection. When it is dropped the connection is closed.
pub struct Peer(TcpStream);

impl Peer {
    /// The next bytes from the device; `None` when it has ended its side.
    pub async fn take(&mut self, count: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; count];
        self.0.read_exact(&mut bytes).await.ok().map(|_| bytes)
    }

    /// Sends, and has the kernel send at once.
    pub async fn send(&mut self, bytes: &[u8]) {
        self.0.set_nodelay(true).unwrap();
        self.0.write_all(bytes).await.unwrap();
    }

    /// Reads until the device has ended its side.
    pub async fn until_end(mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.0.read_to_end(&mut bytes).await.unwrap();
        bytes
    }
}
