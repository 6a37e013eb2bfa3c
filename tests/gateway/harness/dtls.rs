use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use openssl::error::ErrorStack;
use openssl::ssl::{
    ErrorCode, Ssl, SslContext, SslFiletype, SslMethod, SslOptions, SslStream, SslVerifyMode, SslVersion,
};
use tokio::net::UdpSocket;

use super::certificates::Certificates;
use super::within;

/// How often a client checks the retransmission timer of its library.
const RETRANSMISSION_CHECK: Duration = Duration::from_millis(50);

/// The credentials of a device.
#[derive(Clone, Debug, Default)]
pub struct DtlsClient {
    /// The trusted authority; without it the server is not verified.
    pub ca_file: Option<PathBuf>,
    pub identity: Option<(PathBuf, PathBuf)>,
    pub psk: Option<(&'static str, Vec<u8>)>,
    pub ciphers: Option<&'static str>,
}

impl DtlsClient {
    fn ssl(&self) -> Result<Ssl, ErrorStack> {
        let mut context = SslContext::builder(SslMethod::dtls_client())?;
        context.set_min_proto_version(Some(SslVersion::DTLS1_2))?;
        // So that it offers any suite of a test.
        context.set_security_level(0);
        context.set_options(SslOptions::NO_QUERY_MTU);
        match &self.ca_file {
            Some(file) => {
                context.set_ca_file(file)?;
                context.set_verify(SslVerifyMode::PEER);
            }
            None => context.set_verify(SslVerifyMode::NONE),
        }
        if let Some((certificate, key)) = &self.identity {
            context.set_certificate_chain_file(certificate)?;
            context.set_private_key_file(key, SslFiletype::PEM)?;
        }
        if let Some((identity, key)) = self.psk.clone() {
            context.set_psk_client_callback(move |_, _, identity_place, key_place| {
                identity_place[..identity.len()].copy_from_slice(identity.as_bytes());
                identity_place[identity.len()] = 0;
                key_place[..key.len()].copy_from_slice(&key);
                Ok(key.len())
            });
        }
        if let Some(ciphers) = self.ciphers {
            context.set_cipher_list(ciphers)?;
        }
        let mut ssl = Ssl::new(&context.build())?;
        ssl.set_mtu(1200)?;
        ssl.set_connect_state();
        Ok(ssl)
    }
}

/// A listener for DTLS and its devices.
pub struct Dtls {
    /// Keeps their files.
    _certificates: Certificates,
    pub keys: String,
    pub client: DtlsClient,
}

impl fmt::Debug for Dtls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Dtls")
    }
}

impl Dtls {
    /// Each side has a certificate, the device's with the subject `CN=device,O=Example`.
    pub fn mutual() -> Self {
        let certificates = Certificates::new();
        let identity = certificates.sign_device("device", |_| {});
        let ca_file = certificates.ca_file();
        let mut this = Self::with(certificates, &format!("client_ca_file = {ca_file:?}"));
        this.client.identity = Some(identity);
        this
    }

    /// With its own certificates, and these keys of the table `tls` beside the listener's certificate. Its
    /// devices have none.
    pub fn with(certificates: Certificates, more_keys: &str) -> Self {
        let (certificate, key) = certificates.sign("localhost");
        let keys = format!("tls = {{ cert_file = {certificate:?}, key_file = {key:?}, {more_keys} }}");
        let client = DtlsClient { ca_file: Some(certificates.ca_file()), ..DtlsClient::default() };
        Self { _certificates: certificates, keys, client }
    }
}

/// The datagrams between the library and the socket.
#[derive(Debug, Default)]
struct Wire {
    inbound: Option<Vec<u8>>,
    outbound: VecDeque<Vec<u8>>,
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let datagram = self.inbound.take().ok_or(io::ErrorKind::WouldBlock)?;
        buffer[..datagram.len()].copy_from_slice(&datagram);
        Ok(datagram.len())
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

/// A device's side of a DTLS session.
pub struct DtlsSocket {
    socket: UdpSocket,
    stream: SslStream<Wire>,
    rest: Vec<u8>,
}

impl DtlsSocket {
    /// The handshake as seen by a client.
    pub async fn connect(address: SocketAddr, client: &DtlsClient) -> Result<Self, String> {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(address).await.unwrap();
        Self::connect_from(socket, client).await
    }

    /// The same over an existing socket.
    pub async fn connect_from(socket: UdpSocket, client: &DtlsClient) -> Result<Self, String> {
        let mut this = Self::begin(socket, client);
        within("the handshake", async {
            while !this.step().await? {}
            Ok(this)
        })
        .await
    }

    /// A handshake before its first flight.
    pub fn begin(socket: UdpSocket, client: &DtlsClient) -> Self {
        let stream = SslStream::new(client.ssl().unwrap(), Wire::default()).unwrap();
        Self { socket, stream, rest: Vec::new() }
    }

    /// Sends the next flight, and takes in one datagram; `true` once the handshake is over.
    pub async fn step(&mut self) -> Result<bool, String> {
        self.say().await?;
        if self.stream.ssl().is_init_finished() {
            return Ok(true);
        }
        let mut datagram = vec![0; 64 * 1024];
        if let Ok(received) = tokio::time::timeout(RETRANSMISSION_CHECK, self.socket.recv(&mut datagram)).await {
            datagram.truncate(received.map_err(|error| error.to_string())?);
            self.stream.get_mut().inbound = Some(datagram);
        }
        self.say().await
    }

    /// Sends the next flight; `true` once the handshake is over.
    pub async fn say(&mut self) -> Result<bool, String> {
        let result = self.stream.do_handshake();
        self.flush().await.map_err(|error| error.to_string())?;
        match result {
            Ok(()) => Ok(true),
            Err(error) if error.code() == ErrorCode::WANT_READ => Ok(false),
            Err(error) => Err(error.to_string()),
        }
    }

    async fn flush(&mut self) -> io::Result<()> {
        while let Some(datagram) = self.stream.get_mut().outbound.pop_front() {
            self.socket.send(&datagram).await?;
        }
        Ok(())
    }

    /// An encrypted datagram, not sent.
    pub fn seal(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.stream.ssl_write(bytes).unwrap();
        self.stream.get_mut().outbound.pop_back().unwrap()
    }

    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let datagram = self.seal(bytes);
        self.socket.send(&datagram).await.map(drop)
    }

    /// Length of the next datagram; 0 when the gateway has closed the session.
    pub async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            let mut bytes = vec![0; 1 << 14];
            match self.stream.ssl_read(&mut bytes) {
                Ok(count) => self.rest.extend_from_slice(&bytes[..count]),
                Err(error) if error.code() == ErrorCode::WANT_READ => {
                    self.flush().await?;
                    let mut datagram = vec![0; 64 * 1024];
                    let count = self.socket.recv(&mut datagram).await?;
                    datagram.truncate(count);
                    self.stream.get_mut().inbound = Some(datagram);
                }
                Err(error) if error.code() == ErrorCode::ZERO_RETURN => return Ok(0),
                Err(error) => return Err(io::Error::other(error)),
            }
        }
        let count = self.rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.rest[..count]);
        self.rest.drain(..count);
        Ok(count)
    }

    /// Sends `close_notify`.
    pub async fn end(&mut self) -> io::Result<()> {
        self.stream.shutdown().map_err(io::Error::other)?;
        self.flush().await
    }

    /// The listener's certificate, as DER.
    pub fn presented(&self) -> Vec<u8> {
        self.stream.ssl().peer_certificate().unwrap().to_der().unwrap()
    }

    /// The socket, for raw datagrams.
    pub fn socket(&self) -> &UdpSocket {
        &self.socket
    }
}
