//! HTTP client of the admin port of a running gateway.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use clap::ValueHint;
use futures::StreamExt;
use http::{Method, Request, Response, header};
use hyper_util::rt::TokioIo;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use tokio::net::TcpStream;

use crate::admin::{Token, token};
use crate::config::{Config, Faults};

/// Host and port of the admin port by default.
const DEFAULT_ADDRESS: &str = "127.0.0.1:9180";

/// Timeout of the connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Timeout of a response: longer than the gateway may compile.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3700);

/// Maximum response, in bytes.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// Data directories that are searched for a generated token: the default one, and that of the systemd unit.
const DEFAULT_DATA_DIRS: [&str; 2] = ["polygate-data", "/var/lib/polygate"];

/// The addressed gateway.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub(super) struct Args {
    /// URL of the admin port; plain HTTP, so use a tunnel over a network; default: from --config, or
    /// http://127.0.0.1:9180
    #[arg(long, global = true, env = "POLYGATE_ADMIN", value_name = "URL")]
    admin: Option<AdminUrl>,
    /// The gateway's configuration file, for the address and the token of its admin port
    #[arg(short, long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    config: Option<PathBuf>,
    /// File with the admin token; default: the environment variable POLYGATE_ADMIN_TOKEN, the token of --config, or, for
    /// a loopback address, admin.token in polygate-data or /var/lib/polygate
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    token_file: Option<PathBuf>,
}

/// Host and port of an admin port.
#[derive(Clone, Debug)]
pub(super) struct AdminUrl(String);

/// A malformed [`AdminUrl`].
#[derive(Debug, thiserror::Error)]
#[error("expected the admin port as http://host:port, without a path (https is not supported), found {0:?}")]
pub(super) struct MalformedAdminUrl(String);

impl FromStr for AdminUrl {
    type Err = MalformedAdminUrl;

    fn from_str(text: &str) -> Result<Self, MalformedAdminUrl> {
        let malformed = || MalformedAdminUrl(text.to_owned());
        let authority = text.strip_prefix("http://").ok_or_else(malformed)?;
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        let (host, port) = authority.rsplit_once(':').ok_or_else(malformed)?;
        let is_host = !host.is_empty() && !host.contains(['/', '@', '?', '#', ' ']);
        let is_port = port.parse::<u16>().is_ok_and(|port| port != 0);
        if is_host && is_port { Ok(Self(authority.to_owned())) } else { Err(malformed()) }
    }
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// The connect failed.
    #[error("cannot reach the admin port at {at}")]
    Connect {
        /// Host and port.
        at: String,
        /// The cause.
        source: io::Error,
    },
    /// The exchange was interrupted.
    #[error("the admin port at {at} did not answer")]
    Exchange {
        /// Host and port.
        at: String,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The configuration has faults.
    #[error(transparent)]
    Config(#[from] Faults),
    /// The configuration has no admin port.
    #[error("{config:?} has no [admin] table, so its gateway has no admin port")]
    NoAdminPort {
        /// The configuration file.
        config: PathBuf,
    },
    /// The file of the token could not be read.
    #[error("cannot read {path:?}")]
    TokenFile {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The response could not be written.
    #[error("cannot write the response")]
    Write(#[source] io::Error),
    /// The token is missing or wrong.
    #[error(
        "the admin port at {at} requires another token; set it with --config, --token-file or POLYGATE_ADMIN_TOKEN"
    )]
    Token {
        /// Host and port.
        at: String,
    },
    /// The gateway refused the request.
    #[error("{0}")]
    Refused(String),
}

type Cause = Box<dyn std::error::Error + Send + Sync>;

#[derive(Deserialize)]
struct Refusal {
    error: String,
}

/// A client of one gateway.
#[derive(Debug)]
pub(super) struct Client {
    at: String,
    token: Option<SecretString>,
}

impl Client {
    /// The client for these arguments.
    pub(super) fn of(Args { admin, config, token_file }: Args) -> Result<Self, ClientError> {
        let configured = match config {
            Some(config) => match Config::load_admin(&config)? {
                (data_dir, Some(options)) => Some((data_dir, options)),
                (_, None) => return Err(ClientError::NoAdminPort { config }),
            },
            None => None,
        };
        let at = match (admin, &configured) {
            (Some(AdminUrl(at)), _) => at,
            (None, Some((_, options))) => reachable(options.bind).to_string(),
            (None, None) => DEFAULT_ADDRESS.to_owned(),
        };
        let token = match (token_file, std::env::var("POLYGATE_ADMIN_TOKEN"), configured) {
            (Some(path), _, _) => Some(token_in(path)?),
            (None, Ok(token), _) => Some(token.into()),
            (None, Err(_), Some((data_dir, options))) => match options.token {
                Token::Configured(token) => Some(token),
                Token::Generated => Some(token_in(data_dir.join(token::FILE))?),
                Token::Disabled => None,
            },
            (None, Err(_), None) if is_loopback(&at) => {
                let files = DEFAULT_DATA_DIRS.iter().map(|dir| Path::new(dir).join(token::FILE));
                files.filter_map(|file| token_in(file).ok()).next()
            }
            // A token that was not named for this gateway must not reach another machine.
            (None, Err(_), None) => None,
        };
        Ok(Self { at, token })
    }

    /// The body of a successful response.
    pub(super) async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<(&'static str, Vec<u8>)>,
    ) -> Result<String, ClientError> {
        let stream = self.connect().await?;
        let asking = async {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
            let request = self.request(method, path, body)?;
            let answering = async {
                let response = sender.send_request(request).await?;
                let status = response.status();
                let body = to_bytes(Body::new(response.into_body()), ANSWER_BYTES_MAX).await?;
                Ok::<_, Cause>((status, body))
            };
            // Polling drives the connection; its end shows in the response.
            let (answer, _) = tokio::join!(answering, connection);
            answer
        };
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, asking).await.unwrap_or_else(|late| Err(late.into()));
        let (status, body) = answer.map_err(|source| self.broke_off(source))?;
        let text = String::from_utf8_lossy(&body).into_owned();
        if status.is_success() { Ok(text) } else { Err(self.refused(status, text)) }
    }

    /// Streams the body of a successful response, until it ends.
    pub(super) async fn follow(
        &self,
        path: &str,
        mut each: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), ClientError> {
        let stream = self.connect().await?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|source| self.broke_off(source.into()))?;
        let request = self.request(Method::GET, path, None).map_err(|source| self.broke_off(source))?;
        let following = async {
            let response: Response<_> =
                sender.send_request(request).await.map_err(|source| self.broke_off(source.into()))?;
            let status = response.status();
            let body = Body::new(response.into_body());
            if !status.is_success() {
                let body = to_bytes(body, ANSWER_BYTES_MAX).await.map_err(|source| self.broke_off(source.into()))?;
                return Err(self.refused(status, String::from_utf8_lossy(&body).into_owned()));
            }
            let mut pieces = body.into_data_stream();
            while let Some(piece) = pieces.next().await {
                let piece = piece.map_err(|source| self.broke_off(source.into()))?;
                each(&piece).map_err(ClientError::Write)?;
            }
            Ok(())
        };
        let (followed, _) = tokio::join!(following, connection);
        followed
    }

    async fn connect(&self) -> Result<TcpStream, ClientError> {
        tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(&self.at))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(|source| ClientError::Connect { at: self.at.clone(), source })
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<(&'static str, Vec<u8>)>,
    ) -> Result<Request<Body>, Cause> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, &self.at)
            .header(header::CONNECTION, "close");
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {}", token.expose_secret()));
        }
        Ok(match body {
            Some((kind, bytes)) => request.header(header::CONTENT_TYPE, kind).body(Body::from(bytes))?,
            None => request.body(Body::empty())?,
        })
    }

    fn broke_off(&self, source: Cause) -> ClientError {
        ClientError::Exchange { at: self.at.clone(), source }
    }

    fn refused(&self, status: http::StatusCode, text: String) -> ClientError {
        if status == http::StatusCode::UNAUTHORIZED {
            return ClientError::Token { at: self.at.clone() };
        }
        let why = serde_json::from_str::<Refusal>(&text).map_or(text, |refusal| refusal.error);
        ClientError::Refused(if why.is_empty() { status.to_string() } else { why })
    }
}

/// The address to connect to, for a port bound to this one.
fn reachable(bind: SocketAddr) -> SocketAddr {
    let ip = match bind.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip @ (IpAddr::V4(_) | IpAddr::V6(_)) => ip,
    };
    SocketAddr::new(ip, bind.port())
}

/// Whether `host:port` is this machine.
fn is_loopback(at: &str) -> bool {
    at.parse::<SocketAddr>().is_ok_and(|address| address.ip().is_loopback()) || at.starts_with("localhost:")
}

fn token_in(path: PathBuf) -> Result<SecretString, ClientError> {
    match std::fs::read_to_string(&path) {
        Ok(token) => Ok(token.trim_end().into()),
        Err(source) => Err(ClientError::TokenFile { path, source }),
    }
}

/// Percent-encodes a text for one segment of a url.
pub(super) fn escaped(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_this_machine() {
        assert_eq!(reachable("0.0.0.0:1".parse().unwrap()).to_string(), "127.0.0.1:1");
        assert_eq!(reachable("[::]:1".parse().unwrap()).to_string(), "[::1]:1");
        assert_eq!(reachable("192.0.2.1:1".parse().unwrap()).to_string(), "192.0.2.1:1");
        for (at, expected) in
            [("127.0.0.2:1", true), ("[::1]:1", true), ("localhost:1", true), ("192.0.2.1:1", false), ("h:1", false)]
        {
            assert_eq!(is_loopback(at), expected, "{at}");
        }
    }

    #[test]
    fn admin_urls() {
        for (text, at) in
            [("http://127.0.0.1:9180", "127.0.0.1:9180"), ("http://[::1]:1/", "[::1]:1"), ("http://h:1", "h:1")]
        {
            assert_eq!(text.parse::<AdminUrl>().unwrap().0, at);
        }
        for text in
            ["", "127.0.0.1:9180", "https://h:1", "http://h", "http://:1", "http://h:0", "http://h:1/x", "http://u@h:1"]
        {
            let error = text.parse::<AdminUrl>().unwrap_err().to_string();
            assert!(error.starts_with("expected the admin port as http://host:port"), "{error}");
        }
    }
}
