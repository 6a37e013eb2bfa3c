//! Where an external broker is: `mqtt://`, `mqtts://`, `ws://` or `wss://`, host and port.

use std::fmt;
use std::str::FromStr;

/// The address of a broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerUrl {
    /// Whether TLS is spoken.
    pub(crate) is_secure: bool,
    /// Host name or address, an IPv6 address without brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
    /// The path of WebSocket; without it, MQTT is spoken right on TCP or TLS.
    pub(crate) path: Option<String>,
}

/// The text is no address of a broker.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not of the form \"mqtts://broker.example:8883\"; the schemes are mqtt, mqtts, ws and wss")]
pub struct MalformedServerUrl;

impl ServerUrl {
    /// Host and port, as in a Host header and in a Server Reference (MQTT 5.0 section 4.11).
    pub(crate) fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// The same way to another host and port, from a Server Reference: the first of its entries. `None` when that is
    /// none.
    pub(crate) fn moved_to(&self, reference: &str) -> Option<Self> {
        let first = reference.split_ascii_whitespace().next()?;
        let (host, port) = host_and_port(first)?;
        Some(Self { host, port: port.unwrap_or(self.port), ..self.clone() })
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match (self.is_secure, &self.path) {
            (false, None) => "mqtt",
            (true, None) => "mqtts",
            (false, Some(_)) => "ws",
            (true, Some(_)) => "wss",
        };
        write!(f, "{scheme}://{}{}", self.authority(), self.path.as_deref().unwrap_or_default())
    }
}

impl FromStr for ServerUrl {
    type Err = MalformedServerUrl;

    fn from_str(text: &str) -> Result<Self, MalformedServerUrl> {
        let (scheme, rest) = text.split_once("://").ok_or(MalformedServerUrl)?;
        let (is_secure, is_websocket, default_port) = match scheme {
            "mqtt" => (false, false, 1883),
            "mqtts" => (true, false, 8883),
            "ws" => (false, true, 80),
            "wss" => (true, true, 443),
            _ => return Err(MalformedServerUrl),
        };
        let (place, path) = match rest.find('/') {
            Some(slash) => rest.split_at(slash),
            None => (rest, ""),
        };
        let path = match (is_websocket, path) {
            (false, "" | "/") => None,
            (true, "" | "/") => Some("/mqtt".to_owned()),
            (true, path) if path.bytes().all(|byte| byte.is_ascii_graphic()) => Some(path.to_owned()),
            _ => return Err(MalformedServerUrl),
        };
        let (host, port) = host_and_port(place).ok_or(MalformedServerUrl)?;
        Ok(Self { is_secure, host, port: port.unwrap_or(default_port), path })
    }
}

/// Reads `host`, `host:port`, `[v6]` or `[v6]:port`; a port is not 0.
fn host_and_port(text: &str) -> Option<(String, Option<u16>)> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']')?;
            host.parse::<std::net::Ipv6Addr>().ok()?;
            (host, if port.is_empty() { None } else { Some(port.strip_prefix(':')?) })
        }
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    let fits = |char: char| char.is_ascii_alphanumeric() || matches!(char, '.' | '-' | '_' | ':');
    if host.is_empty() || !host.chars().all(fits) {
        return None;
    }
    let port = match port {
        None => None,
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            Some(digits.parse().ok().filter(|port| *port != 0)?)
        }
        Some(_) => return None,
    };
    Some((host.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_has_a_written_form() {
        for (text, shown) in [
            ("mqtt://b", "mqtt://b:1883"),
            ("mqtts://b.example/", "mqtts://b.example:8883"),
            ("mqtt://[::1]:7", "mqtt://[::1]:7"),
            ("ws://b", "ws://b:80/mqtt"),
            ("wss://b:8084/ws", "wss://b:8084/ws"),
        ] {
            assert_eq!(text.parse::<ServerUrl>().unwrap().to_string(), shown);
        }
        for text in [
            "",
            "b:1883",
            "http://b",
            "mqtt://",
            "mqtt://b:0",
            "mqtt://b:x",
            "mqtt://u:p@b",
            "mqtt://b/x",
            "mqtt://[b]",
        ] {
            assert_eq!(text.parse::<ServerUrl>(), Err(MalformedServerUrl), "{text:?}");
        }
    }

    #[test]
    fn a_server_reference_names_another_host() {
        let url: ServerUrl = "mqtts://b1:8883".parse().unwrap();
        assert_eq!(url.moved_to("b2:9 b3").unwrap().to_string(), "mqtts://b2:9");
        assert_eq!(url.moved_to("b2").unwrap().to_string(), "mqtts://b2:8883");
        assert_eq!(url.moved_to(""), None);
        assert_eq!(url.moved_to("b2:x"), None);
    }
}
