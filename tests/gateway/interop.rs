//! Programs that others wrote, as devices.

use std::path::PathBuf;
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::harness::certificates::Certificates;
use crate::harness::{GatewayUnderTest, Setup, within};

const KEY: &str = "00112233445566778899aabbccddeeff";

/// A gateway that gives every byte back, which has a certificate for localhost, demands one of its authority, and knows
/// a pre-shared key.
struct Stage {
    certificates: Certificates,
    device: (PathBuf, PathBuf),
    gateway: GatewayUnderTest,
}

/// What the listener of a [`Stage`] goes by.
#[derive(Clone, Copy)]
enum By {
    Certificates,
    Keys,
    Both,
}

impl Stage {
    async fn start(by: By) -> Self {
        let certificates = Certificates::new();
        let device = certificates.sign_device("device", |_| {});
        let (certificate, key) = certificates.sign("localhost");
        let psk = certificates.write("devices.psk", &format!("device:{KEY}\n"));
        let ca = certificates.ca_file();
        let of_certificates = format!("cert_file = {certificate:?}, key_file = {key:?}, client_ca_file = {ca:?}");
        let of_keys = format!("psk_file = {psk:?}");
        let keys = match by {
            By::Certificates => of_certificates,
            By::Keys => of_keys,
            By::Both => format!("{of_certificates}, {of_keys}"),
        };
        let gateway = Setup::guest("echo")
            .handler("settings = { mode = \"raw\" }")
            .bind("tls://127.0.0.1:0")
            .listener(&format!("tls = {{ {keys} }}"))
            .start()
            .await;
        Self { certificates, device, gateway }
    }

    fn at(&self) -> String {
        self.gateway.listener().to_string()
    }

    fn port(&self) -> String {
        self.gateway.listener().port().to_string()
    }

    fn ca(&self) -> String {
        self.certificates.ca_file().display().to_string()
    }

    fn certificate(&self) -> String {
        self.device.0.display().to_string()
    }

    fn key(&self) -> String {
        self.device.1.display().to_string()
    }

    /// `openssl s_client`, which shows a certificate and believes the authority.
    fn s_client(&self, more: &[&str]) -> Program {
        let (at, ca, certificate, key) = (self.at(), self.ca(), self.certificate(), self.key());
        let mut arguments =
            vec!["s_client", "-quiet", "-verify_return_error", "-connect", &at, "-servername", "localhost"];
        arguments.extend(["-verify_hostname", "localhost", "-CAfile", &ca, "-cert", &certificate, "-key", &key]);
        arguments.extend(more);
        Program::start("openssl", "openssl", &arguments)
    }

    /// `openssl s_client` with a pre-shared key.
    fn s_client_with_key(&self, identity: &str, key: &str, more: &[&str]) -> Program {
        let at = self.at();
        let mut arguments = vec!["s_client", "-quiet", "-connect", &at, "-psk_identity", identity, "-psk", key];
        arguments.extend(more);
        Program::start("openssl", "openssl", &arguments)
    }
}

/// A program that passes on what it is given and writes what it gets.
pub struct Program {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Program {
    /// A program of a Debian package.
    pub fn start(name: &str, package: &str, arguments: &[&str]) -> Self {
        let started = Command::new(name)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn();
        let mut child = started.unwrap_or_else(|error| {
            panic!("{name}: {error}; it is in the Debian package {package}: scripts/check tools")
        });
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { child, input, output: BufReader::new(output).lines() }
    }

    /// Sends a line and gets it back, after whatever the program says itself.
    pub async fn is_served(&mut self) {
        for line in ["first words of a device", "and more of them"] {
            // Not before it is connected: some programs drop what comes earlier. They are, when the first line is back.
            self.input.write_all(format!("{line}\n").as_bytes()).await.unwrap();
            self.input.flush().await.unwrap();
            within(&format!("{line:?} from the gateway"), async {
                loop {
                    match self.output.next_line().await.unwrap() {
                        Some(got) if got == line => break,
                        Some(_) => {}
                        None => panic!("the program ended: {:?}", self.child.wait().await),
                    }
                }
            })
            .await;
        }
    }

    /// The program ends by itself, without a line from the gateway.
    async fn ends_refused(mut self) {
        within("the program's end", async {
            while let Ok(Some(line)) = self.output.next_line().await {
                assert!(!line.contains("first words"), "{line}");
            }
            self.child.wait().await.unwrap();
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn openssl_with_certificates() {
    let stage = Stage::start(By::Certificates).await;
    for version in ["-tls1_2", "-tls1_3"] {
        stage.s_client(&[version]).is_served().await;
    }
    let ca = stage.ca();
    Program::start("openssl", "openssl", &["s_client", "-quiet", "-connect", &stage.at(), "-CAfile", &ca])
        .ends_refused()
        .await;
    stage
        .gateway
        .metric_reaches("polygate_connections_rejected_total{listener=\"l\",reason=\"no_certificate\"}", 1.0)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn openssl_with_pre_shared_keys() {
    for by in [By::Keys, By::Both] {
        let stage = Stage::start(by).await;
        for more in [
            &["-tls1_2", "-cipher", "PSK"][..],
            &["-tls1_2", "-cipher", "PSK-AES128-CBC-SHA256"],
            &["-tls1_2", "-cipher", "ECDHE-PSK-CHACHA20-POLY1305"],
            &["-tls1_3"],
        ] {
            stage.s_client_with_key("device", KEY, more).is_served().await;
        }
        if matches!(by, By::Keys) {
            // What some small devices have is there where no certificate depends on it.
            stage
                .s_client_with_key("device", KEY, &["-tls1_2", "-cipher", "PSK-AES128-CCM8:@SECLEVEL=0"])
                .is_served()
                .await;
        }
        let mut wrong = 0.0;
        for (identity, key) in [("device", "00112233445566778899aabbccddeefe"), ("devise", KEY)] {
            for version in [&["-tls1_2", "-cipher", "PSK"][..], &["-tls1_3"]] {
                stage.s_client_with_key(identity, key, version).ends_refused().await;
                wrong += 1.0;
                let counted = "polygate_connections_rejected_total{listener=\"l\",reason=\"wrong_key\"}";
                stage.gateway.metric_reaches(counted, wrong).await;
            }
        }
    }
}

/// On a listener with both, a certificate is as good as a key.
#[tokio::test(flavor = "multi_thread")]
async fn openssl_with_certificates_beside_keys() {
    let stage = Stage::start(By::Both).await;
    for version in ["-tls1_2", "-tls1_3"] {
        stage.s_client(&[version]).is_served().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn gnutls() {
    let stage = Stage::start(By::Both).await;
    let (port, ca, certificate, key) = (stage.port(), stage.ca(), stage.certificate(), stage.key());
    let trust = ["--x509cafile", &ca, "--sni-hostname", "localhost", "--verify-hostname", "localhost"];
    let own = ["--x509certfile", &certificate, "--x509keyfile", &key];
    for version in ["NORMAL:-VERS-ALL:+VERS-TLS1.2", "NORMAL:-VERS-ALL:+VERS-TLS1.3"] {
        let arguments = [&trust[..], &own, &["--priority", version, "-p", &port, "127.0.0.1"]].concat();
        Program::start("gnutls-cli", "gnutls-bin", &arguments).is_served().await;
    }
    // Its ECDHE-PSK of TLS 1.2 is not among them: the handshake is good, and then gnutls-cli 3.7.9 crashes over its
    // report.
    for priority in
        ["NORMAL:-VERS-ALL:+VERS-TLS1.2:-KX-ALL:+PSK", "NORMAL:-VERS-ALL:+VERS-TLS1.3:+PSK:+ECDHE-PSK:+DHE-PSK"]
    {
        let arguments = ["--pskusername", "device", "--pskkey", KEY, "--priority", priority, "-p", &port, "127.0.0.1"];
        Program::start("gnutls-cli", "gnutls-bin", &arguments).is_served().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn socat() {
    let stage = Stage::start(By::Certificates).await;
    let address = format!(
        "OPENSSL:{},cafile={},cert={},key={},commonname=localhost",
        stage.at(),
        stage.ca(),
        stage.certificate(),
        stage.key()
    );
    Program::start("socat", "socat", &["-", &address]).is_served().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ncat() {
    let stage = Stage::start(By::Certificates).await;
    let (port, ca, certificate, key) = (stage.port(), stage.ca(), stage.certificate(), stage.key());
    let own = ["--ssl-cert", &certificate, "--ssl-key", &key];
    let trust = ["--ssl", "--ssl-verify", "--ssl-trustfile", &ca, "--ssl-servername", "localhost"];
    Program::start("ncat", "ncat", &[&trust[..], &own, &["-4", "localhost", &port]].concat()).is_served().await;
}
