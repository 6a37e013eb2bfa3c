//! UDP socket of many flows: batched receive with GRO, sends from the local address of a flow, drop counter of the kernel.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::Arc;

use parking_lot::Mutex;
use quinn_udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSocketState};
use socket2::{Protocol, SockRef, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use super::Options;
use super::inbox::Inbox;
use super::socket_group::ListenerLabels;
use crate::conn::{ListenAddr, PeerAddr};
use crate::listener::flow::{Key, Table};
use crate::listener::{SocketOptions, socket_activation};

/// The default receive buffer of a socket, for pauses of its task; `net.core.rmem_max` bounds it too.
const RECEIVE_BUFFER_BYTES: usize = 4 * 1024 * 1024;

/// A socket with the shared state of its flows.
#[derive(Debug)]
pub(super) struct Socket {
    io: UdpSocket,
    state: UdpSocketState,
    pub(super) local: SocketAddr,
    pub(super) flows: Mutex<Table<Arc<Inbox>>>,
}

impl Socket {
    pub(super) fn bind(address: SocketAddr, options: &Options) -> io::Result<Self> {
        let (datagrams, socket_options) = (&options.datagrams, &options.socket_options);
        let socket = match &options.given {
            Some(_) if datagrams.sockets > 1 => {
                return Err(io::Error::other("one socket was handed over, and `sockets` asks for more"));
            }
            Some(given) => {
                let socket = socket2::Socket::from(socket_activation::duplicate(given)?);
                socket.set_nonblocking(true)?;
                socket_options.size(SockRef::from(&socket))?;
                socket
            }
            None => {
                let socket = socket_options.open(address, Type::DGRAM, Protocol::UDP)?;
                // Only where it is needed: with it, a second gateway could bind the same address and take peers away.
                socket.set_reuse_port(socket_options.reuse_port || datagrams.sockets > 1)?;
                if socket_options.receive_buffer_bytes.is_none() {
                    socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES)?;
                }
                socket.bind(&address.into())?;
                socket
            }
        };
        let io = UdpSocket::from_std(socket.into())?;
        let state = UdpSocketState::new((&io).into())?;
        allow_fragments(&io, address)?;
        Ok(Self { local: io.local_addr()?, io, state, flows: Mutex::new(Table::new(datagrams.flows_max)) })
    }

    /// Applies other sizes of the kernel's buffers.
    pub(super) fn resize(&self, socket_options: &SocketOptions) -> io::Result<()> {
        socket_options.size(SockRef::from(&self.io))
    }

    /// Sends one datagram from the local address that the peer uses; `WouldBlock` while the socket is not writable.
    pub(super) fn try_send(&self, key: &Key, datagram: &[u8]) -> io::Result<()> {
        let transmit =
            Transmit { destination: key.peer, ecn: None, contents: datagram, segment_size: None, src_ip: key.local };
        self.io.try_io(Interest::WRITABLE, || self.state.try_send((&self.io).into(), &transmit))
    }

    /// Counts a datagram that the network or the kernel refused. It is lost, as any datagram may be.
    pub(super) fn unsent(&self, labels: &ListenerLabels, key: &Key, datagram: &[u8], error: &io::Error) {
        let reason = if quinn_udp::is_msg_size_err(error) { "datagram_too_large" } else { "datagram_unsent" };
        labels.metrics.shed(reason);
        tracing::debug!(
            listener = %labels.name, peer = %PeerAddr(key.peer), bytes = datagram.len(), %error,
            "a datagram could not be sent"
        );
    }

    /// Waits until the socket is writable. Any number of tasks may.
    pub(super) async fn writable(&self) -> io::Result<()> {
        self.io.writable().await
    }

    /// Receives into buffers of `buffer_bytes` each; returns how many of them, and of `metas`, were filled.
    pub(super) async fn receive(
        &self,
        buffers: &mut [u8],
        buffer_bytes: usize,
        metas: &mut [RecvMeta; BATCH_SIZE],
    ) -> io::Result<usize> {
        let read = || {
            let mut batch = buffers.chunks_exact_mut(buffer_bytes);
            let mut slices: [IoSliceMut<'_>; BATCH_SIZE] =
                std::array::from_fn(|_| IoSliceMut::new(batch.next().unwrap_or_default()));
            self.state.recv((&self.io).into(), &mut slices, metas)
        };
        self.io.async_io(Interest::READABLE, read).await
    }

    /// The number of datagrams that the kernel has dropped at a full buffer; `None` if it is not available.
    pub(super) fn overflows(&self) -> Option<u32> {
        /// The index of the counter in `SO_MEMINFO` (linux/sock_diag.h).
        const DROPS: usize = 8;
        let mut memory = [0u32; 16];
        option(&self.io, libc::SOL_SOCKET, libc::SO_MEMINFO, &mut memory).then(|| memory[DROPS])
    }

    /// The flow key of a datagram.
    pub(super) fn key(&self, meta: &RecvMeta) -> Key {
        Key { peer: meta.addr, local: meta.dst_ip.filter(|ip| self.local.ip().is_unspecified() && is_one_host(*ip)) }
    }

    /// The local address that a peer uses.
    pub(super) fn local(&self, key: &Key) -> ListenAddr {
        let ip = key.local.unwrap_or(self.local.ip()).to_canonical();
        ListenAddr(SocketAddr::new(ip, self.local.port()))
    }
}

#[cfg(test)]
impl Socket {
    /// Simulates a full buffer.
    pub(super) fn pretend_full(&self) {
        let full: io::Result<()> = self.io.try_io(Interest::WRITABLE, || Err(io::ErrorKind::WouldBlock.into()));
        assert!(full.is_err());
    }

    /// Sends without bookkeeping, so that the kernel reports the socket writable again.
    pub(super) fn send_unasked(&self, datagram: &[u8], to: SocketAddr) {
        assert!(socket2::SockRef::from(&self.io).send_to(datagram, &to.into()).is_ok());
    }
}

/// Whether an address can be a source address; multicast cannot, and there the kernel chooses.
fn is_one_host(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => !ip.is_broadcast() && !ip.is_multicast(),
        IpAddr::V6(ip) => !ip.is_multicast(),
    }
}

/// Allows IP fragmentation, the kernel's default: quinn-udp disables it, because QUIC discovers the path MTU, and
/// device protocols do not.
fn allow_fragments(socket: &UdpSocket, address: SocketAddr) -> io::Result<()> {
    set_option(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_WANT)?;
    if address.is_ipv6() {
        set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_WANT)?;
        set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, 0)?;
    }
    Ok(())
}

#[expect(unsafe_code, reason = "the socket libraries have no words for these options")]
fn set_option(socket: &UdpSocket, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let value_bytes = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the descriptor is open as long as `socket` is borrowed, and the pointer is to an integer of that size.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), value_bytes) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[expect(unsafe_code, reason = "the socket libraries have no words for this option")]
fn option(socket: &UdpSocket, level: libc::c_int, name: libc::c_int, value: &mut [u32; 16]) -> bool {
    let mut value_bytes = size_of_val(value) as libc::socklen_t;
    // SAFETY: the descriptor is open as long as `socket` is borrowed; the kernel writes at most the given number of
    // bytes, and any bits are valid integers.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, value.as_mut_ptr().cast(), &raw mut value_bytes) };
    result == 0
}
