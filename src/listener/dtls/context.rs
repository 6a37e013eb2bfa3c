//! What all handshakes of a listener share: certificates, keys, whom it trusts, what it offers.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use openssl::error::ErrorStack;
use openssl::pkey::PKey;
use openssl::ssl::{SslContext, SslContextBuilder, SslMethod, SslMode, SslOptions, SslSessionCacheMode, SslVersion};
use openssl::x509::X509;

use super::ffi;
use crate::listener::credentials::{Credentials, Identity};
use crate::listener::openssl::{ask, choose_by_name};
use crate::listener::psk;

/// The cipher suites that are offered when the operator names none, in our order of preference.
///
/// Forward secrecy comes first, authenticated encryption before MACs of their own. The suites with a tag of 8 bytes
/// (CCM_8) are what constrained devices are required to speak (RFC 7252 section 9.1.3, RFC 7925 section 4), so they
/// are here, behind everything else that is as secret. Suites with a pre-shared key are used only by listeners that
/// have keys. Static RSA, finite-field Diffie-Hellman, SHA-1 outside of HMAC, 3DES, RC4, NULL and anonymous suites are
/// not offered; an operator who needs one of the first two names it.
pub(crate) const CIPHERS: &str = "\
    ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:\
    ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384:\
    ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305:ECDHE-PSK-CHACHA20-POLY1305:\
    ECDHE-ECDSA-AES128-CCM:ECDHE-ECDSA-AES256-CCM:ECDHE-ECDSA-AES128-CCM8:ECDHE-ECDSA-AES256-CCM8:\
    ECDHE-ECDSA-AES128-SHA256:ECDHE-RSA-AES128-SHA256:ECDHE-PSK-AES128-CBC-SHA256:\
    ECDHE-ECDSA-AES256-SHA384:ECDHE-RSA-AES256-SHA384:ECDHE-PSK-AES256-CBC-SHA384:\
    ECDHE-ECDSA-AES128-SHA:ECDHE-RSA-AES128-SHA:ECDHE-PSK-AES128-CBC-SHA:ECDHE-ECDSA-AES256-SHA:ECDHE-RSA-AES256-SHA:\
    PSK-AES128-GCM-SHA256:PSK-AES256-GCM-SHA384:PSK-CHACHA20-POLY1305:PSK-AES128-CCM:PSK-AES256-CCM:\
    PSK-AES128-CCM8:PSK-AES256-CCM8:\
    PSK-AES128-CBC-SHA256:PSK-AES256-CBC-SHA384:PSK-AES128-CBC-SHA:PSK-AES256-CBC-SHA";

/// The curves that are offered, in our order of preference.
const GROUPS: &str = "X25519:P-256:P-384";

/// The security level of openssl: 112 bits, so RSA keys of 2,048 bits and no SHA-1 in signatures.
const SECURITY_LEVEL: u32 = 2;

/// Bytes of certificates that a client may send: what an unfinished handshake may make us hold. The chains of
/// devices have one to three kilobytes.
const CHAIN_BYTES_MAX: u16 = 32 * 1024;

/// What handshakes are, beside certificates and keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Cipher suites in openssl's notation; at the end of it a `@SECLEVEL` of its own may stand.
    pub ciphers: String,
    /// The longest datagram of a handshake, in bytes of UDP payload, `256..=16_384`.
    pub mtu: u16,
}

/// Makes the handshakes of a listener; cheap to clone.
#[derive(Clone)]
pub struct Context {
    pub(super) ssl: SslContext,
    pub(super) mtu: u16,
}

impl Context {
    /// Takes in everything that handshakes need.
    ///
    /// Of several certificates a client gets the one whose key it can use; of several with one kind of key, the one with
    /// the name that it asks for, or the first.
    ///
    /// # Errors
    ///
    /// openssl does not accept a part of it, for example a key that is too short.
    pub fn new(credentials: &Credentials, options: &Options) -> Result<Self, ErrorStack> {
        let identities: Vec<Shown> = credentials.identities.iter().map(Shown::new).collect::<Result<_, _>>()?;
        let build = |first: Option<&Shown>| {
            let mut context = builder(&options.ciphers)?;
            let mut kinds = HashSet::new();
            for shown in first.into_iter().chain(&identities) {
                // One for each kind of key; a name of its own goes before.
                if first.is_none_or(|first| first.goes_with(shown)) && kinds.insert(shown.key.id().as_raw()) {
                    shown.show(&mut context)?;
                }
            }
            ask(&mut context, &credentials.clients)?;
            ffi::set_chain_bytes_max(&mut context, CHAIN_BYTES_MAX);
            if let Some(psks) = &credentials.psks {
                psk::serve(&mut context, Arc::clone(psks))?;
            }
            Ok(context)
        };
        let mut main = build(None)?;
        if identities.len() > 1 {
            let named = identities.iter().map(|shown| Ok(build(Some(shown))?.build()));
            choose_by_name(&mut main, &credentials.identities, named.collect::<Result<_, ErrorStack>>()?);
        }
        Ok(Self { ssl: main.build(), mtu: options.mtu })
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("mtu", &self.mtu).finish_non_exhaustive()
    }
}

/// Whether openssl finds any suite in this.
///
/// # Errors
///
/// It does not.
pub(crate) fn check_ciphers(ciphers: &str) -> Result<(), ErrorStack> {
    builder(ciphers).map(drop)
}

/// Everything but certificates and keys.
fn builder(ciphers: &str) -> Result<SslContextBuilder, ErrorStack> {
    let mut context = SslContext::builder(SslMethod::dtls_server())?;
    context.set_min_proto_version(Some(SslVersion::DTLS1_2))?;
    context.set_max_proto_version(Some(SslVersion::DTLS1_2))?;
    context.set_security_level(SECURITY_LEVEL);
    ffi::allow_ccm_8(&mut context);
    context.set_cipher_list(ciphers)?;
    context.set_groups_list(GROUPS)?;
    context.set_options(
        SslOptions::NO_QUERY_MTU
            | SslOptions::NO_TICKET
            | SslOptions::NO_RENEGOTIATION
            | SslOptions::NO_COMPRESSION
            | SslOptions::CIPHER_SERVER_PREFERENCE,
    );
    // What stands behind a certificate is what the operator put there: each kilobyte is a datagram that can be lost.
    context.set_mode(SslMode::NO_AUTO_CHAIN);
    // Sessions are not resumed: their cache would hold kilobytes for every device that ever came.
    context.set_session_cache_mode(SslSessionCacheMode::OFF);
    // The door has looked at the cookie, and the hello goes nowhere without it.
    context.set_cookie_generate_cb(|_, _| Ok(0));
    context.set_cookie_verify_cb(|_, _| true);
    Ok(context)
}

/// An identity in openssl's types.
struct Shown<'a> {
    chain: Vec<X509>,
    key: PKey<openssl::pkey::Private>,
    names: &'a [String],
}

impl<'a> Shown<'a> {
    fn new(identity: &'a Identity) -> Result<Self, ErrorStack> {
        let chain = identity.chain().iter().map(|der| X509::from_der(der)).collect::<Result<_, _>>()?;
        Ok(Self { chain, key: PKey::private_key_from_der(identity.key().secret_der())?, names: identity.names() })
    }

    /// Whether both are for one name, so that a client which asks for it may get either.
    fn goes_with(&self, other: &Self) -> bool {
        std::ptr::eq(self, other) || self.names.iter().any(|name| other.names.contains(name))
    }

    fn show(&self, context: &mut SslContextBuilder) -> Result<(), ErrorStack> {
        let mut chain = self.chain.iter();
        if let Some(leaf) = chain.next() {
            context.set_certificate(leaf)?;
            context.set_private_key(&self.key)?;
            context.check_private_key()?;
        }
        for issuer in chain {
            ffi::add_chain_certificate(context, issuer)?;
        }
        Ok(())
    }
}
