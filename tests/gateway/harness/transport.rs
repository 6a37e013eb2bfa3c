use std::net::SocketAddr;

use super::peer::RawPeer;

/// What devices speak below their own protocol, and what both sides need for it.
#[derive(Clone, Debug)]
pub enum Transport {
    Tcp,
    Udp,
}

impl Transport {
    /// Where the listener binds.
    pub fn bind(&self) -> String {
        match self {
            Self::Tcp => "tcp://127.0.0.1:0".to_owned(),
            Self::Udp => "udp://127.0.0.1:0".to_owned(),
        }
    }

    /// Further keys of the listener.
    pub fn keys(&self) -> String {
        match self {
            Self::Tcp | Self::Udp => String::new(),
        }
    }

    /// A device's socket.
    pub async fn connect(&self, address: SocketAddr) -> RawPeer {
        match self {
            Self::Tcp => RawPeer::connect(address).await,
            Self::Udp => RawPeer::connect_udp(address).await,
        }
    }
}
