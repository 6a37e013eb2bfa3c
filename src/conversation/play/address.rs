//! Addresses of the gateway and of the broker.

use std::fmt;
use std::str::FromStr;

use secrecy::{ExposeSecret, SecretString};

/// MQTT's port without TLS.
const MQTT_PORT: u16 = 1883;

/// A malformed address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}, found {found}")]
pub struct AddressError {
    expected: &'static str,
    found: String,
}

/// The address of a listener: `tcp://host:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayAddr {
    host: String,
    port: u16,
}

impl GatewayAddr {
    /// Host name or address, an IPv6 address without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port, not 0.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl From<std::net::SocketAddr> for GatewayAddr {
    fn from(address: std::net::SocketAddr) -> Self {
        Self { host: address.ip().to_string(), port: address.port() }
    }
}

impl FromStr for GatewayAddr {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let expected = "a gateway as tcp://host:port";
        let fault = || AddressError { expected, found: format!("{text:?}") };
        let rest = text.strip_prefix("tcp://").ok_or_else(fault)?;
        let (host, port) = host_and_port(rest.strip_suffix('/').unwrap_or(rest)).ok_or_else(fault)?;
        Ok(Self { host, port: port.ok_or_else(fault)? })
    }
}

impl fmt::Display for GatewayAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_address(f, "tcp", &self.host, self.port)
    }
}

/// The address of a broker: `mqtt://[user:password@]host[:port]`, by default port 1883. Printed without user and
/// password.
#[derive(Clone, Debug)]
pub struct BrokerUrl {
    host: String,
    port: u16,
    login: Option<(String, SecretString)>,
}

/// A broker at this address, without a login.
impl From<std::net::SocketAddr> for BrokerUrl {
    fn from(address: std::net::SocketAddr) -> Self {
        Self { host: address.ip().to_string(), port: address.port(), login: None }
    }
}

impl BrokerUrl {
    /// Host name or address, an IPv6 address without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port, not 0.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// User name and password. The password is for the CONNECT packet alone.
    pub fn login(&self) -> Option<(&str, &str)> {
        self.login.as_ref().map(|(user, password)| (user.as_str(), password.expose_secret()))
    }
}

impl FromStr for BrokerUrl {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        // The address may contain a password, so the error has only its form.
        let fault = |found: &str| AddressError {
            expected: "a broker as mqtt://[user:password@]host[:port]",
            found: found.to_owned(),
        };
        let rest = text.strip_prefix("mqtt://").ok_or_else(|| fault("another scheme or none"))?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (login, place) = rest.rsplit_once('@').map_or((None, rest), |(login, place)| (Some(login), place));
        let (host, port) = host_and_port(place).ok_or_else(|| fault("another form of host and port"))?;
        let login = match login.map(|login| login.split_once(':').unwrap_or((login, ""))) {
            None => None,
            Some((user, password)) => {
                let (user, password) = percent_decoded(user)
                    .zip(percent_decoded(password))
                    .ok_or_else(|| fault("a user or password with a broken % escape"))?;
                Some((user, SecretString::from(password)))
            }
        };
        Ok(Self { host, port: port.unwrap_or(MQTT_PORT), login })
    }
}

impl fmt::Display for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_address(f, "mqtt", &self.host, self.port)
    }
}

fn write_address(f: &mut fmt::Formatter<'_>, scheme: &str, host: &str, port: u16) -> fmt::Result {
    if host.contains(':') { write!(f, "{scheme}://[{host}]:{port}") } else { write!(f, "{scheme}://{host}:{port}") }
}

/// Parses `host`, `host:port`, `[v6]` or `[v6]:port`; a port is not 0.
fn host_and_port(text: &str) -> Option<(String, Option<u16>)> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']')?;
            host.parse::<std::net::Ipv6Addr>().ok()?;
            (host, if port.is_empty() { None } else { Some(port.strip_prefix(':')?) })
        }
        None => {
            let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
            let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
            if host.is_empty() || !host.chars().all(fits) {
                return None;
            }
            (host, port)
        }
    };
    let port = match port {
        None => None,
        Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => {
            Some(digits.parse().ok().filter(|port| *port != 0)?)
        }
        Some(_) => return None,
    };
    Some((host.to_owned(), port))
}

/// RFC 3986 section 2.1: a password may contain reserved characters.
fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (high, low) = (char::from(rest.next()?).to_digit(16)?, char::from(rest.next()?).to_digit(16)?);
        bytes.push(u8::try_from(high * 16 + low).ok()?);
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gateway_addresses() {
        for text in ["tcp://127.0.0.1:7993", "tcp://gw.example:1", "tcp://[::1]:65535"] {
            assert_eq!(text.parse::<GatewayAddr>().unwrap().to_string(), text);
        }
        let bad = [
            "",
            "127.0.0.1:7993",
            "tcp://",
            "tcp://host",
            "tcp://host:0",
            "tcp://host:65536",
            "tcp://host:+1",
            "tcp://::1:1",
        ];
        for text in bad.into_iter().chain(["udp://host:1", "tcp://a b:1", "tcp://[host]:1", "tcp://[::1]1"]) {
            let error = text.parse::<GatewayAddr>().unwrap_err();
            assert_eq!(error.to_string(), format!("expected a gateway as tcp://host:port, found {text:?}"));
        }
    }

    /// A password is in the login and nowhere else, not even in an error.
    #[test]
    fn broker_urls_keep_their_secret() {
        let url: BrokerUrl = "mqtt://me:p%40ss%3a@broker.example".parse().unwrap();
        assert_eq!(url.login(), Some(("me", "p@ss:")));
        assert_eq!(url.to_string(), "mqtt://broker.example:1883");
        assert!(!format!("{url:?}").contains("p@ss"), "{url:?}");

        for text in ["mqtts://me:hunter2@host", "mqtt://me:hunter2@host:x", "mqtt://me:hunter2%4@host"] {
            let error = text.parse::<BrokerUrl>().unwrap_err().to_string();
            assert!(error.starts_with("expected a broker as mqtt://") && !error.contains("hunter2"), "{error}");
        }
    }
}
