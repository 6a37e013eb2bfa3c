//! DTLS context of a listener: certificates, keys, trusted authorities and cipher suites of all handshakes.

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

/// The default cipher suites, in order of preference.
///
/// Forward secrecy comes first, authenticated encryption before separate MACs. Constrained devices are required to
/// support the suites with a tag of 8 bytes (CCM_8; RFC 7252 section 9.1.3, RFC 7925 section 4), so they are included,
/// after all others of the same secrecy. Suites with a pre-shared key are used only by listeners with keys. Static RSA,
/// finite-field Diffie-Hellman, SHA-1 outside of HMAC, 3DES, RC4, NULL and anonymous suites are not offered; the first
/// two can be enabled by configuration.
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

/// The offered curves, in order of preference.
const GROUPS: &str = "X25519:P-256:P-384";

/// OpenSSL's security level: 112 bits, so RSA keys of 2,048 bits and no SHA-1 in signatures.
const SECURITY_LEVEL: u32 = 2;

/// Bytes of certificates that a client may send: it bounds the memory of an unfinished handshake. Chains of devices
/// have one to three kilobytes.
const CHAIN_BYTES_MAX: u16 = 32 * 1024;

/// Options of handshakes beside certificates and keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Cipher suites in OpenSSL's notation, optionally with a `@SECLEVEL` at the end.
    pub ciphers: String,
    /// The longest datagram of a handshake, in bytes of UDP payload, `256..=16_384`.
    pub mtu: u16,
}

/// Creates the handshakes of a listener; cheap to clone.
#[derive(Clone)]
pub struct Context {
    pub(super) ssl: SslContext,
    pub(super) mtu: u16,
}

impl Context {
    /// Builds a context.
    ///
    /// Of several certificates a client gets the one whose key type it supports; of several with one key type, the one
    /// with the requested name, or the first.
    ///
    /// # Errors
    ///
    /// OpenSSL refuses a part of it, for example a key that is too short.
    pub fn new(credentials: &Credentials, options: &Options) -> Result<Self, ErrorStack> {
        let identities: Vec<Shown> = credentials.identities.iter().map(Shown::new).collect::<Result<_, _>>()?;
        let build = |first: Option<&Shown>| {
            let mut context = builder(&options.ciphers)?;
            let mut kinds = HashSet::new();
            for shown in first.into_iter().chain(&identities) {
                // One for each key type; one for the requested name goes before.
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

/// Checks that OpenSSL knows a suite of this list.
///
/// # Errors
///
/// It knows none.
pub(crate) fn check_ciphers(ciphers: &str) -> Result<(), ErrorStack> {
    builder(ciphers).map(drop)
}

/// The context without certificates and keys.
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
    // The chain is exactly the configured one: each kilobyte is a datagram that can be lost.
    context.set_mode(SslMode::NO_AUTO_CHAIN);
    // Sessions are not resumed: a cache would hold kilobytes for every device.
    context.set_session_cache_mode(SslSessionCacheMode::OFF);
    // The cookie verifier has checked the cookie before a ClientHello gets here.
    context.set_cookie_generate_cb(|_, _| Ok(0));
    context.set_cookie_verify_cb(|_, _| true);
    Ok(context)
}

/// An identity in OpenSSL's types.
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

    /// Whether both are for the same name, so that either may serve it.
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
