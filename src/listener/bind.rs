//! Bind address of a listener: transport, IP address and port.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use crate::conn::SocketKind;

/// A transport and an address, as in `tcp://0.0.0.0:7993`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bind {
    /// The transport.
    pub transport: SocketKind,
    /// Port 0 lets the system choose.
    pub address: SocketAddr,
}

impl fmt::Display for Bind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.transport, self.address)
    }
}

/// The text is not a transport and address.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not of the form \"tcp://0.0.0.0:7993\" or \"tcp://[::]:7993\"; the transports are tcp, tls, udp and dtls")]
pub struct MalformedBind;

impl FromStr for Bind {
    type Err = MalformedBind;

    fn from_str(text: &str) -> Result<Self, MalformedBind> {
        let (transport, address) = text.split_once("://").ok_or(MalformedBind)?;
        let transport = SocketKind::ALL.into_iter().find(|kind| kind.name() == transport).ok_or(MalformedBind)?;
        let address = address.parse().map_err(|_| MalformedBind)?;
        Ok(Self { transport, address })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The printed form is parsed back; malformed text is refused.
    #[test]
    fn bind_has_a_written_form() {
        for text in ["tcp://0.0.0.0:7993", "tcp://[::1]:0", "tls://0.0.0.0:1", "udp://[::]:5", "dtls://127.0.0.1:5684"]
        {
            assert_eq!(text.parse::<Bind>().unwrap().to_string(), text);
        }
        for text in
            ["", "tcp://", "0.0.0.0:7993", "tcp://localhost:1", "udp:/1.2.3.4:5", "tcp://1.2.3.4", "TCP://1.2.3.4:5"]
        {
            assert_eq!(text.parse::<Bind>(), Err(MalformedBind), "{text:?}");
        }
    }
}
