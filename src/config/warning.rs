//! What works and is probably not meant.

use std::fmt;

use super::location::Location;

/// Something that the operator should know about a valid configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// Where.
    pub location: Location,
    /// What.
    pub advice: Advice,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.location.line {
            write!(f, "line {line}, ")?;
        }
        write!(f, "{}: {}", self.location.position, self.advice)
    }
}

/// The warnings there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Advice {
    /// No device could connect.
    NoListener,
    /// A handler that no listener names.
    HandlerUnused,
    /// The adapter can be reached from elsewhere, and callers need no certificate.
    AdapterOpen,
    /// The broker can be reached from elsewhere, and clients need no name, which the file does not say.
    BrokerOpen,
    /// Whoever reaches the listener can name any address as its own.
    ProxyOpen,
    /// The certificate is not valid any more.
    CertificateExpired,
    /// A revocation list should have been replaced.
    RevocationsOutdated,
    /// Pre-shared keys that can be found by trying.
    WeakKeys(usize),
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoListener => f.write_str("there is no listener, so no device can connect"),
            Self::HandlerUnused => f.write_str("no listener uses this handler"),
            Self::AdapterOpen => f.write_str(
                "not a loopback address: whoever reaches it can command every connection; \
                 tls.client_ca_file demands a certificate",
            ),
            Self::CertificateExpired => {
                f.write_str("the certificate has expired, and most devices will not believe it")
            }
            Self::RevocationsOutdated => {
                f.write_str("a list is out of date: what was revoked since then is not known here")
            }
            Self::WeakKeys(count) => {
                write!(
                    f,
                    "{count} of the keys have less than 16 bytes, and whoever records a handshake can try them all"
                )
            }
            Self::BrokerOpen => f.write_str(
                "not a loopback address: whoever reaches it can publish and subscribe; \
                 configure auth.users, or say auth.allow_anonymous = true",
            ),
            Self::ProxyOpen => f.write_str(
                "whoever reaches the listener can name any address as its own; { trusted = [..] } names the balancers",
            ),
        }
    }
}
