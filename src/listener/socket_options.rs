//! Socket options of listeners: buffers, `TCP_NODELAY`, TCP keepalive, `SO_REUSEPORT`, `SO_BINDTODEVICE`, `IPV6_V6ONLY`.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::TcpStream;

/// Options of a listener's sockets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketOptions {
    /// `SO_RCVBUF` in bytes; the kernel's default if `None`. `net.core.rmem_max` bounds it.
    pub receive_buffer_bytes: Option<usize>,
    /// `SO_SNDBUF` in bytes; the kernel's default if `None`. `net.core.wmem_max` bounds it.
    pub send_buffer_bytes: Option<usize>,
    /// The network device to accept from (`SO_BINDTODEVICE`); all if `None`.
    pub device: Option<String>,
    /// `SO_REUSEPORT`: whether other processes of the same user may bind the same address, and share the peers.
    pub reuse_port: bool,
    /// `IPV6_V6ONLY`: whether an IPv6 wildcard excludes IPv4 peers.
    pub ipv6_only: bool,
    /// Streams: `TCP_NODELAY`.
    pub nodelay: bool,
    /// Streams: `SO_KEEPALIVE`.
    pub keepalive: Option<Keepalive>,
}

/// TCP keepalive probes of the kernel (RFC 9293 section 3.8.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// `TCP_KEEPIDLE`: the silence before the first probe, from a second.
    pub idle: Duration,
    /// `TCP_KEEPINTVL`: between two probes, from a second.
    pub interval: Duration,
    /// `TCP_KEEPCNT`: unanswered probes that end the connection, `1..=127`.
    pub probes: u32,
}

impl Default for SocketOptions {
    /// The kernel's defaults, with `TCP_NODELAY`.
    fn default() -> Self {
        Self {
            receive_buffer_bytes: None,
            send_buffer_bytes: None,
            device: None,
            reuse_port: false,
            ipv6_only: false,
            nodelay: true,
            keepalive: None,
        }
    }
}

impl SocketOptions {
    /// An unbound socket.
    pub(super) fn open(&self, address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
        socket.set_nonblocking(true)?;
        socket.set_reuse_port(self.reuse_port)?;
        if address.is_ipv6() {
            socket.set_only_v6(self.ipv6_only)?;
        }
        socket.bind_device(self.device.as_ref().map(String::as_bytes))?;
        self.size(SockRef::from(&socket))?;
        Ok(socket)
    }

    /// Sets the buffers; accepted sockets inherit those of the listening one.
    pub(super) fn size(&self, socket: SockRef<'_>) -> io::Result<()> {
        if let Some(bytes) = self.receive_buffer_bytes {
            socket.set_recv_buffer_size(bytes)?;
        }
        if let Some(bytes) = self.send_buffer_bytes {
            socket.set_send_buffer_size(bytes)?;
        }
        Ok(())
    }

    /// Sets the options of an accepted socket.
    pub(super) fn prepare(&self, stream: &TcpStream) -> io::Result<()> {
        stream.set_nodelay(self.nodelay)?;
        if let Some(Keepalive { idle, interval, probes }) = self.keepalive {
            let keepalive = TcpKeepalive::new().with_time(idle).with_interval(interval).with_retries(probes);
            SockRef::from(stream).set_tcp_keepalive(&keepalive)?;
        }
        Ok(())
    }

    /// Whether a socket that was made with these options can get the new ones.
    ///
    /// # Errors
    ///
    /// The first option that needs another socket.
    pub(super) fn followed_by(&self, asked: &Self) -> io::Result<()> {
        let unlike = [
            ("device", self.device != asked.device),
            ("reuse_port", self.reuse_port != asked.reuse_port),
            ("ipv6_only", self.ipv6_only != asked.ipv6_only),
        ];
        match unlike.into_iter().find(|(_, differs)| *differs) {
            Some((key, _)) => Err(io::Error::other(format!("{key} needs a restart, or another address"))),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel reports the requested options, before and after an accept.
    #[tokio::test]
    async fn options_reach_the_kernel() {
        let keepalive = Keepalive { idle: Duration::from_secs(300), interval: Duration::from_secs(20), probes: 3 };
        let socket_options = SocketOptions {
            receive_buffer_bytes: Some(16 << 10),
            send_buffer_bytes: Some(16 << 10),
            reuse_port: true,
            ipv6_only: true,
            nodelay: false,
            keepalive: Some(keepalive),
            ..SocketOptions::default()
        };
        let address: SocketAddr = "[::1]:0".parse().unwrap();
        let socket = socket_options.open(address, Type::STREAM, Protocol::TCP).unwrap();
        assert!(socket.only_v6().unwrap() && socket.reuse_port().unwrap());
        // The kernel doubles it, for its own bookkeeping.
        assert_eq!((socket.recv_buffer_size().unwrap(), socket.send_buffer_size().unwrap()), (32 << 10, 32 << 10));
        socket.bind(&address.into()).unwrap();
        socket.listen(1).unwrap();
        let listener = tokio::net::TcpListener::from_std(socket.into()).unwrap();
        let _peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        socket_options.prepare(&stream).unwrap();
        assert!(!stream.nodelay().unwrap());
        let seen = SockRef::from(&stream);
        assert!(seen.keepalive().unwrap());
        assert_eq!(seen.tcp_keepalive_time().unwrap(), keepalive.idle);
        assert_eq!(seen.tcp_keepalive_interval().unwrap(), keepalive.interval);
        assert_eq!(seen.tcp_keepalive_retries().unwrap(), keepalive.probes);
        assert_eq!(seen.recv_buffer_size().unwrap(), 32 << 10);
    }

    /// An unknown device is refused, with the error of the operating system.
    #[test]
    fn an_unknown_device_is_refused() {
        let socket_options = SocketOptions { device: Some("no-such-device".to_owned()), ..SocketOptions::default() };
        let error = socket_options.open("127.0.0.1:0".parse().unwrap(), Type::STREAM, Protocol::TCP).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::NODEV.raw_os_error()), "{error}");
    }

    /// Only options that need another socket are reported.
    #[test]
    fn options_that_need_another_socket() {
        let plain = SocketOptions::default();
        let followed = |asked: SocketOptions| plain.followed_by(&asked).map_err(|error| error.to_string());
        assert_eq!(
            followed(SocketOptions { nodelay: false, send_buffer_bytes: Some(1), ..SocketOptions::default() }),
            Ok(())
        );
        let error = "reuse_port needs a restart, or another address".to_owned();
        assert_eq!(followed(SocketOptions { reuse_port: true, ..SocketOptions::default() }), Err(error));
    }
}
