//! The certificate that every server of TLS and DTLS shows, made for the run, and the devices that believe it.

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

/// A certificate and its key, in a directory that is there for as long as this.
pub struct Identity(TempDir);

impl Identity {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("no temporary directory");
        let made = rcgen::generate_simple_self_signed([HOST.to_owned()]).expect("no certificate");
        std::fs::write(certificate(dir.path()), made.cert.pem()).expect("cannot write the certificate");
        std::fs::write(key(dir.path()), made.signing_key.serialize_pem()).expect("cannot write the key");
        Self(dir)
    }

    /// The directory, for the servers.
    pub fn dir(&self) -> &str {
        self.0.path().to_str().expect("the temporary directory has a name in UTF-8")
    }

    /// Devices that believe it, and have each not been there before: every handshake is a full one.
    pub fn connector(&self) -> TlsConnector {
        install_provider();
        let mut roots = RootCertStore::empty();
        roots.add(certificate_in(self.0.path())).expect("no root");
        let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        config.resumption = Resumption::disabled();
        TlsConnector::from(Arc::new(config))
    }
}

/// What a server needs that shows the certificate in this directory.
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

/// The gateway's own, so that both ends of every row compute alike.
fn install_provider() {
    // A second call finds it there.
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
}
