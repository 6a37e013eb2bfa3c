//! DTLS 1.2 by OpenSSL over tokio's sockets: the bare echo server, and the devices of both rows.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::Duration;

use openssl::ssl::{
    Error, ErrorCode, Ssl, SslContext, SslContextBuilder, SslFiletype, SslMethod, SslOptions, SslSessionCacheMode,
    SslStream, SslVerifyMode, SslVersion,
};
use tokio::net::UdpSocket;

use crate::identity::{self, HOST};

/// The longest datagram of a handshake, in bytes of UDP payload.
const MTU: u32 = 1200;

/// Maximum datagram.
const DATAGRAM_BYTES_MAX: usize = 64 * 1024;

/// Maximum data of a record.
const RECORD_BYTES_MAX: usize = 1 << 14;

/// How often a device in its handshake checks OpenSSL's retransmission timer, which has no callback.
const RETRANSMISSION_CHECK: Duration = Duration::from_millis(100);

/// The datagrams between OpenSSL and a socket.
struct Wire {
    /// At most one; empty if there is none.
    inbound: Vec<u8>,
    outbound: VecDeque<Vec<u8>>,
}

impl Wire {
    /// With this capacity for inbound bytes.
    fn new(inbound_bytes: usize) -> Self {
        Self { inbound: Vec::with_capacity(inbound_bytes), outbound: VecDeque::new() }
    }
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.inbound.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let count = self.inbound.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.inbound[..count]);
        self.inbound.clear();
        Ok(count)
    }
}

impl Write for Wire {
    fn write(&mut self, datagram: &[u8]) -> io::Result<usize> {
        self.outbound.push_back(datagram.to_vec());
        Ok(datagram.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Echoes data in the sessions of all peers, from one loop, with the certificate in this directory. It has no cookie
/// exchange and no timer: devices retransmit, and OpenSSL answers again.
pub async fn serve(identity: &Path) {
    let context = server(identity);
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("cannot bind");
    // As in the gateway.
    socket2::SockRef::from(&socket).set_recv_buffer_size(4 << 20).expect("cannot set SO_RCVBUF");
    println!("{}", socket.local_addr().expect("no address"));
    // A worker thread polls the socket itself; the main thread would have to be woken for each datagram.
    tokio::spawn(answer(socket, context)).await.expect("the server has panicked");
}

async fn answer(socket: UdpSocket, context: SslContext) {
    let mut peers = HashMap::new();
    let (mut datagram, mut data) = (vec![0; DATAGRAM_BYTES_MAX], vec![0; RECORD_BYTES_MAX]);
    loop {
        let (count, peer) = socket.recv_from(&mut datagram).await.expect("cannot receive");
        let datagram = &datagram[..count];
        // The port may have been used by another device before.
        if is_hello(datagram) && peers.get(&peer).is_none_or(|stream: &SslStream<Wire>| stream.ssl().is_init_finished())
        {
            let mut ssl = session(&context);
            ssl.set_accept_state();
            peers.insert(peer, SslStream::new(ssl, Wire::new(0)).expect("no session"));
        }
        let Some(stream) = peers.get_mut(&peer) else { continue };
        stream.get_mut().inbound.extend_from_slice(datagram);
        let Err(end) = echo(stream, &mut data);
        while let Some(datagram) = stream.get_mut().outbound.pop_front() {
            socket.send_to(&datagram, peer).await.expect("cannot send");
        }
        if end.code() != ErrorCode::WANT_READ {
            peers.remove(&peer);
        }
    }
}

/// Performs the handshake and then echoes, until there is nothing to read or the session has ended.
fn echo(stream: &mut SslStream<Wire>, data: &mut [u8]) -> Result<Infallible, Error> {
    loop {
        let count = stream.ssl_read(data)?;
        stream.ssl_write(&data[..count])?;
    }
}

/// Whether a handshake begins with this datagram: a handshake record (22) in epoch 0 whose first message is a
/// ClientHello (1) (RFC 6347 sections 4.1 and 4.2.2).
fn is_hello(datagram: &[u8]) -> bool {
    matches!(datagram, [22, _, _, 0, 0, rest @ ..] if rest.get(8) == Some(&1))
}

/// A device's side of a session.
pub struct Device {
    socket: UdpSocket,
    stream: SslStream<Wire>,
}

impl Device {
    /// Performs the handshake over a connected socket.
    pub async fn connect(socket: UdpSocket, context: &SslContext) -> Self {
        let mut ssl = session(context);
        ssl.param_mut().set_host(HOST).expect("a name");
        ssl.set_connect_state();
        let stream = SslStream::new(ssl, Wire::new(DATAGRAM_BYTES_MAX)).expect("no session");
        let mut this = Self { socket, stream };
        loop {
            let result = this.stream.do_handshake();
            this.flush().await;
            match result {
                Ok(()) => return this,
                Err(error) if error.code() == ErrorCode::WANT_READ => {}
                Err(error) => panic!("the handshake failed: {error}"),
            }
            // Without a datagram OpenSSL is called again too.
            drop(tokio::time::timeout(RETRANSMISSION_CHECK, this.take_in()).await);
        }
    }

    pub async fn send(&mut self, data: &[u8]) {
        self.stream.ssl_write(data).expect("cannot seal");
        self.flush().await;
    }

    /// The bytes of the next record. Cancel safe.
    pub async fn receive(&mut self, data: &mut [u8]) -> usize {
        loop {
            match self.stream.ssl_read(data) {
                Ok(count) => return count,
                Err(error) if error.code() == ErrorCode::WANT_READ => {}
                Err(error) => panic!("the session has ended: {error}"),
            }
            // Retransmits the end of the handshake, if the server has missed it.
            self.flush().await;
            self.take_in().await;
        }
    }

    /// Ends the session, so that the server does not keep it.
    pub fn end(mut self) {
        self.stream.shutdown().expect("cannot end the session");
        for datagram in &self.stream.get_ref().outbound {
            // A datagram that does not fit into the socket's buffer is lost like any other.
            drop(self.socket.try_send(datagram));
        }
    }

    async fn take_in(&mut self) {
        self.socket.recv_buf(&mut self.stream.get_mut().inbound).await.expect("cannot receive");
    }

    async fn flush(&mut self) {
        while let Some(datagram) = self.stream.get_mut().outbound.pop_front() {
            self.socket.send(&datagram).await.expect("cannot send");
        }
    }
}

/// Devices that trust the certificate in this directory, with a fixed cipher suite, so that every row computes alike.
pub fn devices(identity: &Path) -> SslContext {
    let mut context = builder(SslMethod::dtls_client());
    context.set_cipher_list("ECDHE-ECDSA-AES128-GCM-SHA256").expect("no such suite");
    context.set_groups_list("X25519:P-256").expect("no such group");
    context.set_ca_file(identity::certificate(identity)).expect("no certificate");
    context.set_verify(SslVerifyMode::PEER);
    context.build()
}

fn server(identity: &Path) -> SslContext {
    let mut context = builder(SslMethod::dtls_server());
    context.set_certificate_chain_file(identity::certificate(identity)).expect("no certificate");
    context.set_private_key_file(identity::key(identity), SslFiletype::PEM).expect("no key");
    context.build()
}

/// Common options: no session is resumed, so every handshake is a full one.
fn builder(method: SslMethod) -> SslContextBuilder {
    let mut context = SslContext::builder(method).expect("no openssl");
    context.set_min_proto_version(Some(SslVersion::DTLS1_2)).expect("no DTLS 1.2");
    context.set_max_proto_version(Some(SslVersion::DTLS1_2)).expect("no DTLS 1.2");
    context.set_options(SslOptions::NO_QUERY_MTU | SslOptions::NO_TICKET);
    context.set_session_cache_mode(SslSessionCacheMode::OFF);
    context
}

fn session(context: &SslContext) -> Ssl {
    let mut ssl = Ssl::new(context).expect("no session");
    ssl.set_mtu(MTU).expect("a good MTU");
    ssl
}
