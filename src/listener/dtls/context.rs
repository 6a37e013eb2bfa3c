//! What all handshakes of a listener share: certificates, keys, whom it trusts, what it offers.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use openssl::error::ErrorStack;
use openssl::pkey::PKey;
use openssl::ssl::{
    SslContext, SslContextBuilder, SslMethod, SslOptions, SslSessionCacheMode, SslVerifyMode, SslVersion,
};
use openssl::x509::store::X509StoreBuilder;
use openssl::x509::verify::X509VerifyFlags;
use openssl::x509::{X509, X509Crl};

use super::ffi;

/// The cipher suites that are offered when the operator names none, in our order of preference.
///
/// Forward secrecy comes first, sealed records (AEAD) before MACs of their own. The suites with a tag of 8 bytes
/// (CCM_8) are what constrained devices are required to speak (RFC 7252 section 9.1.3, RFC 7925 section 4), so they
/// are here, behind everything else that is as secret. Suites with a pre-shared key are used only by listeners
/// that have keys. Static RSA, finite-field Diffie-Hellman, SHA-1 outside of HMAC, 3DES, RC4, NULL and anonymous
/// suites are not offered; an operator who needs one of the first two names it.
pub const CIPHERS: &str = "\
    ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:\
    ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384:\
    ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305:ECDHE-PSK-CHACHA20-POLY1305:\
    ECDHE-ECDSA-AES128-CCM:ECDHE-ECDSA-AES256-CCM:ECDHE-ECDSA-AES128-CCM8:ECDHE-ECDSA-AES256-CCM8:\
    ECDHE-ECDSA-AES128-SHA256:ECDHE-RSA-AES128-SHA256:ECDHE-PSK-AES128-CBC-SHA256:\
    ECDHE-ECDSA-AES256-SHA384:ECDHE-RSA-AES256-SHA384:ECDHE-PSK-AES256-CBC-SHA384:\
    ECDHE-ECDSA-AES128-SHA:ECDHE-RSA-AES128-SHA:ECDHE-ECDSA-AES256-SHA:ECDHE-RSA-AES256-SHA:\
    PSK-AES128-GCM-SHA256:PSK-AES256-GCM-SHA384:PSK-CHACHA20-POLY1305:PSK-AES128-CCM:PSK-AES256-CCM:\
    PSK-AES128-CCM8:PSK-AES256-CCM8:PSK-AES128-CBC-SHA256:PSK-AES256-CBC-SHA384";

/// The curves that are offered, in our order of preference.
const GROUPS: &str = "X25519:P-256:P-384";

/// The security level of openssl: 112 bits, so RSA keys of 2,048 bits and no SHA-1 in signatures.
const SECURITY_LEVEL: u32 = 2;

/// Bytes of certificates that a client may send: what an unfinished handshake may make us hold. The chains of
/// devices have one to three kilobytes.
const CHAIN_BYTES_MAX: u16 = 32 * 1024;

/// What a listener's handshakes are made of.
#[derive(Clone)]
pub struct Options {
    /// Certificates, at most one for each kind of key; may be empty when there are pre-shared keys.
    pub identities: Vec<Identity>,
    /// What is asked of clients that do not use a pre-shared key.
    pub clients: Clients,
    /// Pre-shared keys by identity; when empty, their suites are not offered.
    pub pre_shared: Arc<HashMap<Vec<u8>, Vec<u8>>>,
    /// Cipher suites in openssl's notation.
    pub ciphers: String,
    /// The longest datagram of a handshake, in bytes of UDP payload, `256..=16_384`.
    pub mtu: u16,
}

/// A certificate, the chain behind it, and its key, in DER.
#[derive(Clone)]
pub struct Identity {
    /// The certificate, then those that signed it.
    pub chain: Vec<Vec<u8>>,
    /// The certificate's key.
    pub key: Vec<u8>,
}

/// Whether clients are asked for certificates.
#[derive(Clone)]
pub enum Clients {
    /// They are not asked.
    Unasked,
    /// They are asked and may have none; one that they have must be good.
    Optional(Authorities),
    /// They must have one. A pre-shared key stands for it.
    Required(Authorities),
}

/// Those who sign the certificates of clients, in DER.
#[derive(Clone)]
pub struct Authorities {
    /// Their certificates.
    pub roots: Vec<Vec<u8>>,
    /// What they have revoked. With any list, each authority in a client's chain must have one here.
    pub revoked: Vec<Vec<u8>>,
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
    /// # Errors
    ///
    /// openssl does not accept a part of it, for example a key that is not its certificate's.
    pub fn new(options: &Options) -> Result<Self, ErrorStack> {
        let mut context = SslContext::builder(SslMethod::dtls_server())?;
        context.set_min_proto_version(Some(SslVersion::DTLS1_2))?;
        context.set_max_proto_version(Some(SslVersion::DTLS1_2))?;
        context.set_security_level(SECURITY_LEVEL);
        ffi::allow_ccm_8(&mut context);
        context.set_cipher_list(&options.ciphers)?;
        context.set_groups_list(GROUPS)?;
        context.set_options(
            SslOptions::NO_QUERY_MTU
                | SslOptions::NO_TICKET
                | SslOptions::NO_RENEGOTIATION
                | SslOptions::NO_COMPRESSION
                | SslOptions::CIPHER_SERVER_PREFERENCE,
        );
        // Sessions are not resumed: their cache would hold kilobytes for every device that ever came.
        context.set_session_cache_mode(SslSessionCacheMode::OFF);
        // The door has looked at the cookie, and the hello goes nowhere without it.
        context.set_cookie_generate_cb(|_, _| Ok(0));
        context.set_cookie_verify_cb(|_, _| true);
        for identity in &options.identities {
            use_identity(&mut context, identity)?;
        }
        believe(&mut context, &options.clients)?;
        if !options.pre_shared.is_empty() {
            let keys = Arc::clone(&options.pre_shared);
            context.set_psk_server_callback(move |_, identity, place| {
                let key = identity.and_then(|identity| keys.get(identity)).filter(|key| key.len() <= place.len());
                // No bytes mean: unknown.
                Ok(key.map_or(0, |key| {
                    place[..key.len()].copy_from_slice(key);
                    key.len()
                }))
            });
        }
        Ok(Self { ssl: context.build(), mtu: options.mtu })
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("mtu", &self.mtu).finish_non_exhaustive()
    }
}

fn use_identity(context: &mut SslContextBuilder, identity: &Identity) -> Result<(), ErrorStack> {
    let mut chain = identity.chain.iter();
    if let Some(leaf) = chain.next() {
        context.set_certificate(&*X509::from_der(leaf)?)?;
        context.set_private_key(&*PKey::private_key_from_der(&identity.key)?)?;
        context.check_private_key()?;
    }
    for issuer in chain {
        ffi::add_chain_certificate(context, &*X509::from_der(issuer)?)?;
    }
    Ok(())
}

fn believe(context: &mut SslContextBuilder, clients: &Clients) -> Result<(), ErrorStack> {
    let (authorities, mode) = match clients {
        Clients::Unasked => {
            context.set_verify(SslVerifyMode::NONE);
            return Ok(());
        }
        Clients::Optional(authorities) => (authorities, SslVerifyMode::PEER),
        Clients::Required(authorities) => (authorities, SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT),
    };
    context.set_verify_callback(mode, |is_good, chain| {
        // A list that is out of date still says who is revoked; without it nobody could come in.
        is_good || chain.error().as_raw() == openssl_sys::X509_V_ERR_CRL_HAS_EXPIRED
    });
    ffi::set_chain_bytes_max(context, CHAIN_BYTES_MAX);
    let mut store = X509StoreBuilder::new()?;
    for root in &authorities.roots {
        let root = X509::from_der(root)?;
        // Their names go to the client, which may have several certificates.
        context.add_client_ca(&root)?;
        store.add_cert(root)?;
    }
    for revoked in &authorities.revoked {
        ffi::add_crl(&mut store, &*X509Crl::from_der(revoked)?)?;
    }
    if !authorities.revoked.is_empty() {
        store.set_flags(X509VerifyFlags::CRL_CHECK | X509VerifyFlags::CRL_CHECK_ALL)?;
    }
    context.set_cert_store(store.build());
    Ok(())
}
