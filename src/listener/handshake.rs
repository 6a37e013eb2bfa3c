//! Handshake errors of TLS and DTLS.

use std::io;

/// Why a handshake failed. The peer is the cause of all but [`Ours`](Self::Ours).
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The peer closed during the handshake.
    #[error("ended the connection during the handshake")]
    Closed,
    /// The peer does not speak TLS.
    #[error("does not speak TLS")]
    NotTls,
    /// The peer has no certificate, and one is required.
    #[error("has no certificate")]
    NoCertificate,
    /// The peer's certificate is not signed by a trusted authority.
    #[error("its certificate is not signed by an authority of client_ca_file")]
    UnknownAuthority,
    /// The peer's certificate, or one of its chain, is expired or not valid yet.
    #[error("its certificate has expired, or is not valid yet")]
    Expired,
    /// The peer's certificate, or one of its chain, is revoked.
    #[error("its certificate is revoked")]
    Revoked,
    /// The peer's certificate is refused for another reason.
    #[error("its certificate is refused: {0}")]
    BadCertificate(String),
    /// There is no version in common.
    #[error("has no TLS version in common with the listener")]
    NoSharedVersion,
    /// There is no cipher suite, key exchange or signature scheme in common.
    #[error("has no cipher suite, key exchange or kind of signature in common with the listener")]
    NoSharedCipher,
    /// The peer's pre-shared key is wrong, or its identity unknown.
    #[error("its pre-shared key is wrong, or its identity is unknown")]
    WrongKey,
    /// The peer has sent an alert, for example because it rejects the listener's certificate.
    #[error("refused the handshake with the alert {0}")]
    Refused(String),
    /// The peer violated the protocol.
    #[error("protocol violation: {0}")]
    Broken(String),
    /// The gateway or the system failed.
    #[error("the handshake failed in the gateway: {0}")]
    Ours(String),
}

impl HandshakeError {
    /// The reason label in metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Closed => "handshake_closed",
            Self::NotTls => "not_tls",
            Self::NoCertificate => "no_certificate",
            Self::UnknownAuthority => "unknown_authority",
            Self::Expired => "expired_certificate",
            Self::Revoked => "revoked_certificate",
            Self::BadCertificate(_) => "bad_certificate",
            Self::NoSharedVersion => "no_shared_version",
            Self::NoSharedCipher => "no_shared_cipher",
            Self::WrongKey => "wrong_key",
            Self::Refused(_) => "handshake_refused",
            Self::Broken(_) => "handshake_broken",
            Self::Ours(_) => "handshake_failed",
        }
    }
}

impl From<io::Error> for HandshakeError {
    /// An error of the socket, or of rustls inside of it.
    fn from(error: io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(inner) => inner.into(),
            None => Self::Closed,
        }
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the library may find more to refuse")]
impl From<&rustls::Error> for HandshakeError {
    fn from(error: &rustls::Error) -> Self {
        use rustls::{Error, InvalidMessage, PeerIncompatible};
        match error {
            Error::NoCertificatesPresented => Self::NoCertificate,
            Error::InvalidCertificate(error) => error.into(),
            Error::AlertReceived(alert) => Self::Refused(format!("{alert:?}")),
            Error::PeerIncompatible(
                PeerIncompatible::ServerDoesNotSupportTls12Or13
                | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
                | PeerIncompatible::SupportedVersionsExtensionRequired
                | PeerIncompatible::Tls12NotOffered
                | PeerIncompatible::Tls12NotOfferedOrEnabled,
            ) => Self::NoSharedVersion,
            Error::PeerIncompatible(_) => Self::NoSharedCipher,
            Error::InvalidMessage(
                InvalidMessage::InvalidContentType
                | InvalidMessage::UnknownProtocolVersion
                | InvalidMessage::MessageTooLarge
                | InvalidMessage::InvalidEmptyPayload,
            ) => Self::NotTls,
            Error::InappropriateMessage { .. }
            | Error::InappropriateHandshakeMessage { .. }
            | Error::InvalidMessage(_)
            | Error::PeerMisbehaved(_)
            | Error::DecryptError
            | Error::PeerSentOversizedRecord => Self::Broken(error.to_string()),
            _ => Self::Ours(error.to_string()),
        }
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the library may find more to refuse")]
impl From<&rustls::CertificateError> for HandshakeError {
    fn from(error: &rustls::CertificateError) -> Self {
        use rustls::CertificateError as Error;
        match error {
            Error::Expired | Error::ExpiredContext { .. } | Error::NotValidYet | Error::NotValidYetContext { .. } => {
                Self::Expired
            }
            Error::Revoked => Self::Revoked,
            Error::UnknownIssuer => Self::UnknownAuthority,
            Error::UnknownRevocationStatus => {
                Self::BadCertificate("crl_file has no list of an authority that signed it".to_owned())
            }
            error => Self::BadCertificate(error.to_string()),
        }
    }
}
