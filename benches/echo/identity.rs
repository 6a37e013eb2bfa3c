//! The certificate of all TLS and DTLS servers, made for the run, and clients that trust it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tempfile::TempDir;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// The name in the certificate.
pub const HOST: &str = "localhost";

/// A certificate and its key, in a temporary directory.
pub struct Identity(TempDir);

impl Identity {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("no temporary directory");
        let made = rcgen::generate_simple_self_signed([HOST.to_owned()]).expect("no certificate");
        std::fs::write(certificate(dir.path()), made.cert.pem()).expect("cannot write the certificate");
        std::fs::write(key(dir.path()), made.signing_key.serialize_pem()).expect("cannot write the key");
        Self(dir)
    }

    /// The directory.
    pub fn dir(&self) -> &str {
        self.0.path().to_str().expect("the temporary directory has a name in UTF-8")
    }

    /// Devices that trust it, without session tickets: every handshake is a full one.
    pub fn connector(&self) -> TlsConnector {
        install_provider();
        let mut roots = RootCertStore::empty();
        roots.add(certificate_in(self.0.path())).expect("no root");
        let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        config.resumption = Resumption::disabled();
        TlsConnector::from(Arc::new(config))
    }
}

/// A server with the certificate in this directory.
pub fn acceptor(dir: &Path) -> TlsAcceptor {
    install_provider();
    let key = PrivateKeyDer::from_pem_file(key(dir)).expect("no key");
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate_in(dir)], key);
    TlsAcceptor::from(Arc::new(config.expect("the key is not the certificate's")))
}

/// The file of the certificate.
pub fn certificate(dir: &Path) -> PathBuf {
    dir.join("certificate.pem")
}

/// The file of its key.
pub fn key(dir: &Path) -> PathBuf {
    dir.join("key.pem")
}

fn certificate_in(dir: &Path) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(certificate(dir)).expect("no certificate")
}

/// The crypto provider of the gateway, so that both ends of every row compute alike.
fn install_provider() {
    // A second call finds it installed.
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
}
