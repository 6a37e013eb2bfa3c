use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use rustls::ClientConfig;

use super::certificates::Certificates;
use super::dtls::Dtls;
use super::peer::RawPeer;

/// The transport of devices, with the configuration of both sides.
#[derive(Clone, Debug)]
pub enum Transport {
    Tcp,
    Tls(Arc<Tls>),
    Udp,
    Dtls(Arc<Dtls>),
}

/// A listener for TLS and its devices.
pub struct Tls {
    /// Keeps their files.
    _certificates: Certificates,
    keys: String,
    /// The credentials of a device.
    pub client: Arc<ClientConfig>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

impl Transport {
    /// DTLS for which each side has a certificate, the device's with the subject `CN=device,O=Example`.
    pub fn mutual_dtls() -> Self {
        Self::Dtls(Arc::new(Dtls::mutual()))
    }

    /// TLS for which each side has a certificate, the device's with the subject `CN=device,O=Example`.
    pub fn mutual_tls() -> Self {
        Self::mutual(Certificates::new(), "")
    }

    /// The same on a listener with pre-shared keys too, which OpenSSL serves.
    pub fn mutual_tls_beside_keys() -> Self {
        let certificates = Certificates::new();
        let keys = certificates.write("devices.psk", "other:00112233445566778899aabbccddeeff");
        Self::mutual(certificates, &format!("psk_file = {keys:?}"))
    }

    fn mutual(certificates: Certificates, more_keys: &str) -> Self {
        let client = certificates.client(Some(&certificates.sign_device("device", |_| {})));
        let keys = format!("client_ca_file = {:?}, {more_keys}", certificates.ca_file());
        match Self::tls(certificates, &keys) {
            Self::Tls(tls) => Self::Tls(Arc::new(Tls { client, ..Arc::into_inner(tls).unwrap() })),
            Self::Tcp | Self::Udp | Self::Dtls(_) => unreachable!(),
        }
    }

    /// TLS with its own certificates, and these keys of the table `tls` beside the listener's certificate. Its
    /// devices have none.
    pub fn tls(certificates: Certificates, more_keys: &str) -> Self {
        let (certificate, key) = certificates.sign("localhost");
        let keys = format!("tls = {{ cert_file = {certificate:?}, key_file = {key:?}, {more_keys} }}");
        let client = certificates.client(None);
        Self::Tls(Arc::new(Tls { _certificates: certificates, keys, client }))
    }

    /// The `bind` of the listener.
    pub fn bind(&self) -> String {
        match self {
            Self::Tcp => "tcp://127.0.0.1:0".to_owned(),
            Self::Udp => "udp://127.0.0.1:0".to_owned(),
            Self::Dtls(_) => "dtls://127.0.0.1:0".to_owned(),
            Self::Tls(_) => "tls://127.0.0.1:0".to_owned(),
        }
    }

    /// Further keys of the listener.
    pub fn keys(&self) -> String {
        match self {
            Self::Tcp | Self::Udp => String::new(),
            Self::Tls(tls) => tls.keys.clone(),
            Self::Dtls(dtls) => dtls.keys.clone(),
        }
    }

    /// A device's socket.
    pub async fn connect(&self, address: SocketAddr) -> RawPeer {
        match self {
            Self::Tcp => RawPeer::connect(address).await,
            Self::Udp => RawPeer::connect_udp(address).await,
            Self::Dtls(dtls) => RawPeer::connect_dtls(address, &dtls.client).await.unwrap(),
            Self::Tls(tls) => RawPeer::connect_tls(address, &tls.client).await.unwrap(),
        }
    }
}
