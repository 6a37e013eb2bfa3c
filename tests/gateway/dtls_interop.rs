//! DTLS programs that others wrote, as devices.

use std::path::PathBuf;

use openssl::pkey::PKey;
use openssl::rsa::Rsa;
use rcgen::{CertificateParams, KeyPair};

use crate::harness::certificates::Certificates;
use crate::harness::{GatewayUnderTest, Setup};
use crate::interop::Program;

const KEY: &str = "00112233445566778899aabbccddeeff";

/// A gateway that gives every byte back, with an ECDSA and an RSA certificate and a pre-shared key; it asks for
/// certificates.
struct Stage {
    certificates: Certificates,
    device: (PathBuf, PathBuf),
    gateway: GatewayUnderTest,
}

impl Stage {
    async fn start(client_cert: &str) -> Self {
        let certificates = Certificates::new();
        let device = certificates.sign_device("device", |_| {});
        let (certificate, key) = certificates.sign("localhost");
        let rsa = PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap().private_key_to_pem_pkcs8().unwrap();
        let rsa = KeyPair::from_pem(&String::from_utf8(rsa).unwrap()).unwrap();
        let (rsa_certificate, rsa_key) = certificates.sign_with("rsa", rsa, |params| {
            params.subject_alt_names = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().subject_alt_names;
        });
        let psk = certificates.write("devices.psk", &format!("device:{KEY}\n"));
        let ca = certificates.ca_file();
        let gateway = Setup::guest("echo")
            .handler("settings = { mode = \"raw\" }")
            .bind("dtls://127.0.0.1:0")
            .listener(&format!(
                "[listeners.l.tls]\ncert_file = {certificate:?}\nkey_file = {key:?}\nclient_ca_file = {ca:?}\n\
                 client_cert = {client_cert:?}\npsk_file = {psk:?}\n\
                 [[listeners.l.tls.certificates]]\ncert_file = {rsa_certificate:?}\nkey_file = {rsa_key:?}\n"
            ))
            .start()
            .await;
        Self { certificates, device, gateway }
    }

    /// `openssl s_client`, which shows a certificate and believes the authority.
    fn s_client(&self, more: &[&str]) -> Program {
        let (at, ca) = (self.gateway.listener().to_string(), self.certificates.ca_file().display().to_string());
        let (certificate, key) = (self.device.0.display().to_string(), self.device.1.display().to_string());
        let mut arguments = vec!["s_client", "-dtls1_2", "-timeout", "-quiet", "-verify_return_error", "-connect", &at];
        arguments.extend(["-verify_hostname", "localhost", "-CAfile", &ca, "-cert", &certificate, "-key", &key]);
        arguments.extend(more);
        Program::start("openssl", "openssl", &arguments)
    }

    /// `openssl s_client` with a pre-shared key.
    fn s_client_with_key(&self, key: &str, suite: &str) -> Program {
        let at = self.gateway.listener().to_string();
        let suite = format!("{suite}:@SECLEVEL=0");
        let arguments = ["s_client", "-dtls1_2", "-timeout", "-quiet", "-connect", &at, "-psk_identity", "device"];
        Program::start("openssl", "openssl", &[&arguments[..], &["-psk", key, "-cipher", &suite]].concat())
    }

    fn gnutls(&self, more: &[&str]) -> Program {
        let port = self.gateway.listener().port().to_string();
        let arguments = [&["--udp", "--no-ca-verification"], more, &["-p", &port, "127.0.0.1"]].concat();
        Program::start("gnutls-cli", "gnutls-bin", &arguments)
    }
}

/// Suites of each kind, each certificate, several curves, a small MTU.
#[tokio::test(flavor = "multi_thread")]
async fn openssl_with_certificates() {
    let stage = Stage::start("required").await;
    for more in [
        &[][..],
        &["-cipher", "ECDHE-RSA-AES256-GCM-SHA384"],
        &["-cipher", "ECDHE-RSA-CHACHA20-POLY1305"],
        &["-cipher", "ECDHE-ECDSA-CHACHA20-POLY1305"],
        &["-cipher", "ECDHE-ECDSA-AES128-CCM8:@SECLEVEL=0"],
        &["-cipher", "ECDHE-ECDSA-AES128-SHA"],
        &["-groups", "X25519:P-256"],
        &["-groups", "P-384:P-256"],
        &["-mtu", "300"],
    ] {
        stage.s_client(more).is_served().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn openssl_with_pre_shared_keys() {
    let stage = Stage::start("required").await;
    for suite in ["PSK", "PSK-AES128-CCM8", "PSK-AES128-CBC-SHA256", "ECDHE-PSK-CHACHA20-POLY1305"] {
        stage.s_client_with_key(KEY, suite).is_served().await;
    }
    let _trying = stage.s_client_with_key("ff112233445566778899aabbccddeeff", "PSK-AES128-CCM8");
    let counted = "polygate_connections_rejected_total{listener=\"l\",reason=\"wrong_key\"}";
    stage.gateway.metric_reaches(counted, 1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn gnutls() {
    let stage = Stage::start("required").await;
    let (certificate, key) = (stage.device.0.display().to_string(), stage.device.1.display().to_string());
    let own = ["--x509certfile", &certificate, "--x509keyfile", &key];
    for priority in [
        "NORMAL:-VERS-ALL:+VERS-DTLS1.2",
        "NORMAL:-VERS-ALL:+VERS-DTLS1.2:-KX-ALL:+ECDHE-RSA",
        "NORMAL:-VERS-ALL:+VERS-DTLS1.2:-CIPHER-ALL:+AES-128-CCM-8",
    ] {
        stage.gnutls(&[&own[..], &["--priority", priority]].concat()).is_served().await;
    }
    for priority in [
        "NORMAL:-VERS-ALL:+VERS-DTLS1.2:-KX-ALL:+PSK",
        "NORMAL:-VERS-ALL:+VERS-DTLS1.2:-KX-ALL:+PSK:-CIPHER-ALL:+AES-128-CCM-8",
        "NORMAL:-VERS-ALL:+VERS-DTLS1.2:-KX-ALL:+PSK:-CIPHER-ALL:+AES-128-CBC",
    ] {
        stage.gnutls(&["--pskusername", "device", "--pskkey", KEY, "--priority", priority]).is_served().await;
    }
}
