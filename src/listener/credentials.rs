//! Credentials of a listener: certificates, keys, certificate authorities, revocation lists, pre-shared keys. Parsed
//! and checked, and independent of the TLS library, so that TLS and DTLS are built from the same.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
use x509_parser::revocation_list::CertificateRevocationList;

use super::psk::Psks;

/// The credentials of one listener.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Credentials {
    /// The listener's certificates. A peer gets the first one with the requested name (SNI) and a signature scheme that
    /// it supports; the first of all is the default for unknown names. Empty only with `psks`.
    pub identities: Vec<Identity>,
    /// Client authentication.
    pub clients: Clients,
    /// The enabled versions of TLS.
    pub versions: Versions,
    /// The pre-shared keys of peers.
    pub psks: Option<Arc<Psks>>,
}

/// Whether client certificates are requested, and the trusted authorities.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Clients {
    /// They are not requested.
    #[default]
    Unasked,
    /// They are requested and optional; a present one must be valid.
    Optional(Authorities),
    /// They are mandatory. A pre-shared key replaces them.
    Required(Authorities),
}

impl Clients {
    /// The trusted authorities, if client certificates are requested.
    pub fn authorities(&self) -> Option<&Authorities> {
        match self {
            Self::Unasked => None,
            Self::Optional(authorities) | Self::Required(authorities) => Some(authorities),
        }
    }
}

/// The versions of TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Versions {
    /// 1.2 and 1.3.
    #[default]
    Both,
    /// 1.2 alone.
    Only12,
    /// 1.3 alone.
    Only13,
}

/// Authorities for client certificates.
#[derive(Clone, Debug, PartialEq)]
pub struct Authorities {
    /// Their certificates; at least one.
    pub roots: Vec<CertificateDer<'static>>,
    /// Revocation lists. With any list, each authority in a peer's chain must have one.
    pub revoked: Vec<CertificateRevocationListDer<'static>>,
}

/// A certificate with its chain and its key.
#[derive(Clone)]
pub struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: Arc<PrivateKeyDer<'static>>,
    certified: Arc<CertifiedKey>,
    names: Arc<[String]>,
    expires: SystemTime,
}

impl PartialEq for Identity {
    fn eq(&self, other: &Self) -> bool {
        self.chain == other.chain && self.key.secret_der() == other.key.secret_der()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("names", &self.names).field("expires", &self.expires).finish_non_exhaustive()
    }
}

/// Why a PEM file cannot be used. It contains nothing of a key.
#[derive(Debug, thiserror::Error)]
pub enum MalformedPem {
    /// There is no section of this kind.
    #[error("has no {0} in PEM")]
    Lacks(&'static str),
    /// A section that cannot be decoded.
    #[error("is not PEM: {0}")]
    Pem(&'static str),
    /// A PEM section whose content is not of its kind.
    #[error("{what} {number} cannot be read")]
    Content {
        /// The expected kind.
        what: &'static str,
        /// Its index among sections of this kind, from 1.
        number: usize,
    },
    /// The key is encrypted.
    #[error("has an encrypted private key; expected one without a passphrase")]
    Encrypted,
    /// The type of key is not supported.
    #[error(
        "has a private key that cannot be used; expected RSA of 2048 to 8192 bits, ECDSA (P-256, P-384, P-521) or Ed25519"
    )]
    Key,
    /// The key does not belong to the certificate.
    #[error("is not the key of the certificate")]
    OtherKey,
}

impl Identity {
    /// Combines a chain, leaf first, with its key.
    ///
    /// # Errors
    ///
    /// [`MalformedPem`] of the key: it is not supported, or not that of the leaf.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<Self, MalformedPem> {
        let provider = aws_lc_rs::default_provider();
        let certified = CertifiedKey::from_der(chain.clone(), key.clone_key(), &provider).map_err(|error| {
            let other = rustls::Error::InconsistentKeys(rustls::InconsistentKeys::KeyMismatch);
            if error == other { MalformedPem::OtherKey } else { MalformedPem::Key }
        })?;
        let leaf = chain.first().and_then(|leaf| X509Certificate::from_der(leaf).ok());
        let Some((_, leaf)) = leaf else {
            return Err(MalformedPem::Content { what: CERTIFICATE, number: 1 });
        };
        let names = match leaf.subject_alternative_name() {
            Ok(Some(names)) => names.value.general_names.iter().filter_map(dns_name).collect(),
            Ok(None) | Err(_) => Arc::default(),
        };
        let expires = time(leaf.validity().not_after.timestamp());
        Ok(Self { certified: Arc::new(certified), key: Arc::new(key), names, expires, chain })
    }

    /// The leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// In PKCS#8, PKCS#1 or SEC1.
    pub fn key(&self) -> &PrivateKeyDer<'static> {
        &self.key
    }

    /// The chain and the key in rustls' form.
    pub fn certified(&self) -> &Arc<CertifiedKey> {
        &self.certified
    }

    /// The DNS names of the leaf, in lower case; the first label may be `*`.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The end of the leaf's validity.
    pub fn expires(&self) -> SystemTime {
        self.expires
    }
}

/// Whether a certificate's name, in lower case, equals this one.
pub(in crate::listener) fn is_name(of_certificate: &str, name: &str) -> bool {
    of_certificate == name
}

/// Whether a certificate's name is a wildcard for this one: `*.example` for `a.example`, and not for `a.b.example`.
pub(in crate::listener) fn is_wildcard_of(of_certificate: &str, name: &str) -> bool {
    let parent =
        |name: &str| name.split_once('.').map(|(first, parent)| (!first.is_empty()).then(|| parent.to_owned()));
    of_certificate.strip_prefix("*.").is_some_and(|of| parent(name).flatten().is_some_and(|parent| parent == of))
}

fn dns_name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        GeneralName::OtherName(..)
        | GeneralName::RFC822Name(_)
        | GeneralName::X400Address(_)
        | GeneralName::DirectoryName(_)
        | GeneralName::EDIPartyName(_)
        | GeneralName::URI(_)
        | GeneralName::IPAddress(_)
        | GeneralName::RegisteredID(_)
        | GeneralName::Invalid(..) => None,
    }
}

const CERTIFICATE: &str = "certificate";
const REVOCATIONS: &str = "certificate revocation list";

/// Reads all certificates of a file.
///
/// # Errors
///
/// [`MalformedPem`], when there is none, or one that cannot be read.
pub(crate) fn certificates(file: &[u8]) -> Result<Vec<CertificateDer<'static>>, MalformedPem> {
    let all = sections(file, CERTIFICATE)?;
    each(&all, CERTIFICATE, |der| X509Certificate::from_der(der).is_ok_and(|(rest, _)| rest.is_empty()))?;
    Ok(all)
}

/// Reads the revocation lists of a file; also returns when the first of them expires.
///
/// # Errors
///
/// [`MalformedPem`], when there is none, or one that cannot be read.
pub(crate) fn revocations(
    file: &[u8],
) -> Result<(Vec<CertificateRevocationListDer<'static>>, Option<SystemTime>), MalformedPem> {
    let all: Vec<CertificateRevocationListDer<'static>> = sections(file, REVOCATIONS)?;
    let mut next = None;
    each(&all, REVOCATIONS, |der| match CertificateRevocationList::from_der(der) {
        Ok((_, list)) => {
            let update = list.next_update().map(|update| time(update.timestamp()));
            next = [next, update].into_iter().flatten().min();
            true
        }
        Err(_) => false,
    })?;
    Ok((all, next))
}

/// Reads the private key of a file, in PKCS#8, PKCS#1 or SEC1.
///
/// # Errors
///
/// [`MalformedPem`], when there is none.
pub(crate) fn private_key(file: &[u8]) -> Result<PrivateKeyDer<'static>, MalformedPem> {
    PrivateKeyDer::from_pem_slice(file).map_err(|error| {
        if !matches!(error, pem::Error::NoItemsFound) {
            malformed(&error)
        } else if holds(file, b"BEGIN ENCRYPTED PRIVATE KEY") {
            MalformedPem::Encrypted
        } else {
            MalformedPem::Lacks("private key")
        }
    })
}

fn sections<T: PemObject>(file: &[u8], what: &'static str) -> Result<Vec<T>, MalformedPem> {
    let all: Vec<T> = T::pem_slice_iter(file).collect::<Result<_, _>>().map_err(|error| malformed(&error))?;
    if all.is_empty() { Err(MalformedPem::Lacks(what)) } else { Ok(all) }
}

fn each<T: AsRef<[u8]>>(
    all: &[T],
    what: &'static str,
    mut is_good: impl FnMut(&[u8]) -> bool,
) -> Result<(), MalformedPem> {
    match all.iter().position(|der| !is_good(der.as_ref())) {
        Some(index) => Err(MalformedPem::Content { what, number: index + 1 }),
        None => Ok(()),
    }
}

/// A description without the text of the error, which may quote a key.
#[expect(clippy::wildcard_enum_match_arm, reason = "the library may find more to refuse")]
fn malformed(error: &pem::Error) -> MalformedPem {
    MalformedPem::Pem(match error {
        pem::Error::MissingSectionEnd { .. } => "a section has no end",
        pem::Error::IllegalSectionStart { .. } => "a section has no beginning",
        pem::Error::Base64Decode(_) => "a section is not base64",
        _ => "a section cannot be decoded",
    })
}

fn holds(file: &[u8], mark: &[u8]) -> bool {
    file.windows(mark.len()).any(|window| window == mark)
}

/// Seconds since 1970 as a time; earlier times are clamped.
fn time(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair};

    fn made(names: &[&str]) -> (String, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        (CertificateParams::new(names).unwrap().self_signed(&key).unwrap().pem(), key)
    }

    fn identity(certificate: &str, key: &str) -> Result<Identity, MalformedPem> {
        Identity::new(certificates(certificate.as_bytes())?, private_key(key.as_bytes())?)
    }

    #[test]
    fn a_certificate_and_its_key() {
        let (certificate, key) = made(&["Gw.Example", "*.dev.example", "127.0.0.1"]);
        let (other, _) = made(&["other"]);
        let identity = identity(&format!("words\n{certificate}\n{other}"), &key.serialize_pem()).unwrap();
        assert_eq!(identity.chain().len(), 2);
        assert_eq!(identity.names(), ["gw.example", "*.dev.example"]);
        assert!(identity.expires() > SystemTime::now());
        assert!(!format!("{identity:?}").contains(&format!("{:?}", key.serialize_der())));
    }

    /// Errors describe a file without quoting it.
    #[test]
    fn files_that_cannot_be_used() {
        let (certificate, key) = made(&["a"]);
        let key = key.serialize_pem();
        let (_, other) = made(&["a"]);
        let message = |certificate: &str, key: &str| identity(certificate, key).unwrap_err().to_string();
        assert_eq!(message("", &key), "has no certificate in PEM");
        assert_eq!(message(&key, &key), "has no certificate in PEM");
        assert_eq!(message(&certificate, &certificate), "has no private key in PEM");
        assert_eq!(
            message(&certificate, &key.replace(" PRIVATE", " ENCRYPTED PRIVATE")),
            MalformedPem::Encrypted.to_string()
        );
        assert_eq!(message(&certificate, &other.serialize_pem()), "is not the key of the certificate");
        let half = &certificate[..certificate.len() / 2];
        assert_eq!(message(half, &key), "is not PEM: a section has no end");
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert_eq!(message(&format!("{certificate}{broken}"), &key), "certificate 2 cannot be read");
        let key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        assert_eq!(message(&certificate, key), MalformedPem::Key.to_string());
        assert_eq!(
            revocations(certificate.as_bytes()).unwrap_err().to_string(),
            "has no certificate revocation list in PEM"
        );
    }
}
