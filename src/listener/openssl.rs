//! OpenSSL contexts of listeners: pre-shared keys and DTLS, which rustls does not support.

use std::ffi::{c_int, c_long};
use std::ptr;

use openssl::error::ErrorStack;
use openssl::pkey::PKey;
use openssl::ssl::{
    self, ErrorCode, NameType, SniError, SslAlert, SslContext, SslContextBuilder, SslMethod, SslMode, SslOptions,
    SslRef, SslSessionCacheMode, SslVerifyMode,
};
use openssl::x509::verify::X509VerifyFlags;
use openssl::x509::{X509, X509VerifyResult};
use openssl_sys as ffi;

use super::credentials::{Authorities, Clients, Credentials, Identity, is_name, is_wildcard_of};
use super::handshake::HandshakeError;
use super::psk::{self, Psk};

/// Suites with a pre-shared key up to TLS 1.2, in order of preference. Some small devices support only those with
/// 8-byte tags.
const PSK_SUITES: &str = "ECDHE-PSK-CHACHA20-POLY1305:ECDHE-PSK-AES256-CBC-SHA384:ECDHE-PSK-AES128-CBC-SHA256:\
    PSK-AES256-GCM-SHA384:PSK-AES128-GCM-SHA256:PSK-CHACHA20-POLY1305:PSK-AES256-CCM:PSK-AES128-CCM:\
    PSK-AES256-CBC-SHA384:PSK-AES128-CBC-SHA256:PSK-AES256-CCM8:PSK-AES128-CCM8";

/// Suites with the listener's certificate.
const CERTIFICATE_SUITES: &str = "ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384:\
    ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:\
    ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305";

/// The context of all handshakes of a listener.
///
/// Sessions are not resumed: a handshake with a pre-shared key costs little more than that.
///
/// # Errors
///
/// OpenSSL's, for example for a key that is too short for it.
pub(in crate::listener) fn context(
    method: fn() -> SslMethod,
    credentials: &Credentials,
    more: impl Fn(&mut SslContextBuilder) -> Result<(), ErrorStack>,
) -> Result<SslContext, ErrorStack> {
    let build = |identity: Option<&Identity>| {
        let mut builder = SslContextBuilder::new(method())?;
        prepare(&mut builder, credentials, identity)?;
        more(&mut builder)?;
        Ok(builder)
    };
    let mut main = build(credentials.identities.first())?;
    if credentials.identities.len() > 1 {
        let all = credentials.identities.iter().map(|identity| Ok(build(Some(identity))?.build()));
        let all = all.collect::<Result<Vec<_>, ErrorStack>>()?;
        choose_by_name(&mut main, &credentials.identities, all);
    }
    Ok(main.build())
}

/// Selects the context of an identity by the requested name (SNI).
pub(in crate::listener) fn choose_by_name(main: &mut SslContextBuilder, identities: &[Identity], all: Vec<SslContext>) {
    let names: Vec<Vec<String>> = identities.iter().map(|identity| identity.names().to_vec()).collect();
    main.set_servername_callback(move |ssl, alert| choose(ssl, alert, &names, &all));
}

/// The context with the certificate for the requested name; the default stays if no certificate has the name.
fn choose(ssl: &mut SslRef, alert: &mut SslAlert, names: &[Vec<String>], all: &[SslContext]) -> Result<(), SniError> {
    let fitting = ssl.servername(NameType::HOST_NAME).map(|name| name.to_ascii_lowercase()).and_then(|name| {
        let fits = |fits: fn(&str, &str) -> bool| names.iter().position(|all| all.iter().any(|of| fits(of, &name)));
        fits(is_name).or_else(|| fits(is_wildcard_of))
    });
    let Some(context) = fitting.and_then(|index| all.get(index)) else {
        return Err(SniError::NOACK);
    };
    ssl.set_ssl_context(context).map_err(|_| {
        *alert = SslAlert::INTERNAL_ERROR;
        SniError::ALERT_FATAL
    })
}

fn prepare(
    context: &mut SslContextBuilder,
    credentials: &Credentials,
    identity: Option<&Identity>,
) -> Result<(), ErrorStack> {
    // A write that would block may be retried from another place in memory, and with more bytes.
    context.set_mode(
        SslMode::AUTO_RETRY
            | SslMode::ENABLE_PARTIAL_WRITE
            | SslMode::ACCEPT_MOVING_WRITE_BUFFER
            | SslMode::RELEASE_BUFFERS,
    );
    context.set_options(
        SslOptions::NO_COMPRESSION
            | SslOptions::NO_RENEGOTIATION
            | SslOptions::NO_TICKET
            | SslOptions::CIPHER_SERVER_PREFERENCE,
    );
    context.set_session_cache_mode(SslSessionCacheMode::OFF);
    // OpenSSL treats a pre-shared key of TLS 1.3 as a session; without a session id context it refuses them if client
    // certificates are requested.
    context.set_session_id_context(b"polygate")?;
    if let Some(identity) = identity {
        let mut chain = identity.chain().iter();
        if let Some(leaf) = chain.next() {
            context.set_certificate(&*X509::from_der(leaf)?)?;
        }
        for issuer in chain {
            context.add_extra_chain_cert(X509::from_der(issuer)?)?;
        }
        context.set_private_key(&*PKey::private_key_from_der(identity.key().secret_der())?)?;
        context.check_private_key()?;
    }
    match (&credentials.psks, identity) {
        (Some(psks), identity) => {
            // Suites with short tags are below the security level for certificates.
            let (certificate_suites, level) = if identity.is_some() { (CERTIFICATE_SUITES, 1) } else { ("", 0) };
            context.set_cipher_list(&format!("{certificate_suites}:{PSK_SUITES}:@SECLEVEL={level}"))?;
            // A PSK of this kind is bound to SHA-256.
            context.set_ciphersuites("TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256")?;
            psk::serve(context, std::sync::Arc::clone(psks))?;
        }
        (None, _) => context.set_cipher_list(CERTIFICATE_SUITES)?,
    }
    ask(context, &credentials.clients)
}

/// Requests client certificates.
pub(in crate::listener) fn ask(context: &mut SslContextBuilder, clients: &Clients) -> Result<(), ErrorStack> {
    match clients {
        Clients::Unasked => context.set_verify(SslVerifyMode::NONE),
        Clients::Optional(authorities) => believe(context, authorities, SslVerifyMode::PEER)?,
        Clients::Required(authorities) => {
            believe(context, authorities, SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT)?;
        }
    }
    Ok(())
}

fn believe(context: &mut SslContextBuilder, authorities: &Authorities, mode: SslVerifyMode) -> Result<(), ErrorStack> {
    for root in &authorities.roots {
        let root = X509::from_der(root)?;
        context.add_client_ca(&root)?;
        context.cert_store_mut().add_cert(root)?;
    }
    for revoked in &authorities.revoked {
        add_revoked(context, revoked)?;
    }
    if !authorities.revoked.is_empty() {
        context.cert_store_mut().set_flags(X509VerifyFlags::CRL_CHECK | X509VerifyFlags::CRL_CHECK_ALL)?;
    }
    context.set_verify_callback(mode, |is_good, chain| {
        // An outdated list still revokes; otherwise no peer could connect.
        is_good || chain.error().as_raw() == ffi::X509_V_ERR_CRL_HAS_EXPIRED
    });
    Ok(())
}

#[expect(unsafe_code, reason = "the library has no call for a revocation list in memory; signature of x509_vfy.h")]
unsafe extern "C" {
    fn X509_STORE_add_crl(store: *mut ffi::X509_STORE, list: *mut ffi::X509_CRL) -> c_int;
}

fn add_revoked(context: &mut SslContextBuilder, list: &[u8]) -> Result<(), ErrorStack> {
    let Ok(length) = c_long::try_from(list.len()) else {
        return Err(ErrorStack::get());
    };
    let mut begin = list.as_ptr();
    #[expect(unsafe_code, reason = "the library has no call for a revocation list in memory")]
    // SAFETY: `begin` points to `length` bytes, which are only read. The parsed list is not null when it is used, the
    // store takes its own reference to it, and ours is released. The context lives, and so does its store.
    let is_added = unsafe {
        let list = ffi::d2i_X509_CRL(ptr::null_mut(), &raw mut begin, length);
        if list.is_null() {
            return Err(ErrorStack::get());
        }
        let added = X509_STORE_add_crl(ffi::SSL_CTX_get_cert_store(context.as_ptr()), list);
        ffi::X509_CRL_free(list);
        added == 1
    };
    if is_added { Ok(()) } else { Err(ErrorStack::get()) }
}

/// Classifies a failed handshake.
pub(in crate::listener) fn failure(error: &ssl::Error, ssl: &SslRef) -> HandshakeError {
    if let Some(stack) = error.ssl_error().filter(|stack| !stack.errors().is_empty()) {
        return of_stack(stack, ssl);
    }
    if error.code() == ErrorCode::ZERO_RETURN || error.io_error().is_some() || error.code() == ErrorCode::SYSCALL {
        return HandshakeError::Closed;
    }
    HandshakeError::Ours(error.to_string())
}

/// Numbers of `openssl/sslerr.h`. They are part of the library's interface; its crate has few of them.
mod reason {
    pub(super) const HTTP_REQUEST: i32 = 156;
    pub(super) const HTTPS_PROXY_REQUEST: i32 = 155;
    pub(super) const WRONG_VERSION_NUMBER: i32 = 267;
    pub(super) const UNSUPPORTED_PROTOCOL: i32 = 258;
    pub(super) const VERSION_TOO_LOW: i32 = 396;
    pub(super) const NO_SHARED_CIPHER: i32 = 193;
    pub(super) const NO_SUITABLE_KEY_SHARE: i32 = 101;
    pub(super) const NO_SHARED_SIGNATURE_ALGORITHMS: i32 = 376;
    pub(super) const NO_SUITABLE_SIGNATURE_ALGORITHM: i32 = 118;
    pub(super) const PEER_DID_NOT_RETURN_A_CERTIFICATE: i32 = 199;
    pub(super) const CERTIFICATE_VERIFY_FAILED: i32 = 134;
    pub(super) const BAD_RECORD_MAC: i32 = 281;
    pub(super) const BINDER_DOES_NOT_VERIFY: i32 = 253;
    pub(super) const DIGEST_CHECK_FAILED: i32 = 149;
    pub(super) const PSK_IDENTITY_NOT_FOUND: i32 = 223;
    pub(super) const UNEXPECTED_EOF: i32 = 294;
    /// Added to the number of an alert from the peer.
    pub(super) const ALERT: i32 = 1000;
}

fn of_stack(stack: &ErrorStack, ssl: &SslRef) -> HandshakeError {
    // An error about the signature of another authority with the same name precedes the relevant error.
    let refused = |error: &&openssl::error::Error| error.reason_code() == reason::CERTIFICATE_VERIFY_FAILED;
    let Some(first) = stack.errors().iter().find(refused).or(stack.errors().first()) else {
        return HandshakeError::Closed;
    };
    let words = first.reason().unwrap_or("unknown reason").to_owned();
    let has_key = Psk::of(ssl).is_some();
    match first.reason_code() {
        reason::HTTP_REQUEST | reason::HTTPS_PROXY_REQUEST | reason::WRONG_VERSION_NUMBER => HandshakeError::NotTls,
        reason::UNSUPPORTED_PROTOCOL | reason::VERSION_TOO_LOW => HandshakeError::NoSharedVersion,
        reason::NO_SHARED_CIPHER
        | reason::NO_SUITABLE_KEY_SHARE
        | reason::NO_SHARED_SIGNATURE_ALGORITHMS
        | reason::NO_SUITABLE_SIGNATURE_ALGORITHM => HandshakeError::NoSharedCipher,
        reason::PEER_DID_NOT_RETURN_A_CERTIFICATE => HandshakeError::NoCertificate,
        reason::CERTIFICATE_VERIFY_FAILED => of_certificate(ssl.verify_result()),
        reason::BAD_RECORD_MAC | reason::DIGEST_CHECK_FAILED if has_key => HandshakeError::WrongKey,
        reason::BINDER_DOES_NOT_VERIFY | reason::PSK_IDENTITY_NOT_FOUND => HandshakeError::WrongKey,
        reason::UNEXPECTED_EOF => HandshakeError::Closed,
        alert if (reason::ALERT..reason::ALERT + 256).contains(&alert) => HandshakeError::Refused(words),
        _ => HandshakeError::Broken(words),
    }
}

fn of_certificate(result: X509VerifyResult) -> HandshakeError {
    match result.as_raw() {
        ffi::X509_V_ERR_CERT_HAS_EXPIRED | ffi::X509_V_ERR_CERT_NOT_YET_VALID => HandshakeError::Expired,
        ffi::X509_V_ERR_CERT_REVOKED => HandshakeError::Revoked,
        ffi::X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT
        | ffi::X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN
        | ffi::X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT
        | ffi::X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY
        | ffi::X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE
        | ffi::X509_V_ERR_CERT_SIGNATURE_FAILURE => HandshakeError::UnknownAuthority,
        _ => HandshakeError::BadCertificate(result.error_string().to_owned()),
    }
}
