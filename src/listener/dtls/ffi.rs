//! FFI of libssl beyond the `openssl` crate; all `unsafe` of DTLS is in this file.

use std::ffi::{c_int, c_long, c_void};
use std::ptr;
use std::time::Duration;

use openssl::error::ErrorStack;
use openssl::ssl::{SslContextBuilder, SslRef, SslStream};
use openssl::x509::X509Ref;
use openssl_sys::{SSL, SSL_CTX, SSL_CTX_ctrl, SSL_SESSION, SSL_ctrl, SSL_get_session};

use super::datagram_bio::DatagramBio;

/// Commands of `SSL_ctrl` and `SSL_CTX_ctrl` that are macros in openssl's headers (ssl.h).
const SET_MAX_CERT_LIST: c_int = 51;
const DTLS_GET_TIMEOUT: c_int = 73;
const DTLS_HANDLE_TIMEOUT: c_int = 74;
const CHAIN_CERT: c_int = 89;

/// Operations in a security callback: a cipher is in the list, is shared, is chosen (ssl.h).
const CIPHER_OPERATIONS: [c_int; 3] = [1 | 1 << 16, 2 | 1 << 16, 3 | 1 << 16];

/// Bits of security that OpenSSL assigns to the suites with a tag of 8 bytes.
const CCM_8_BITS: c_int = 64;

/// `BIO_ADDR` (bio.h), opaque.
#[repr(C)]
struct BioAddr {
    _private: [u8; 0],
}

type SecurityCallback = unsafe extern "C" fn(
    *const SSL,
    *const SSL_CTX,
    operation: c_int,
    bits: c_int,
    nid: c_int,
    other: *mut c_void,
    extra: *mut c_void,
) -> c_int;

#[expect(unsafe_code, reason = "functions of libssl that the crate does not declare; signatures of ssl.h, bio.h")]
unsafe extern "C" {
    fn DTLSv1_listen(ssl: *mut SSL, peer: *mut BioAddr) -> c_int;
    fn BIO_ADDR_new() -> *mut BioAddr;
    fn BIO_ADDR_free(address: *mut BioAddr);
    fn SSL_alloc_buffers(ssl: *mut SSL) -> c_int;
    fn SSL_free_buffers(ssl: *mut SSL) -> c_int;
    fn SSL_SESSION_get_max_fragment_length(session: *const SSL_SESSION) -> u8;
    fn SSL_CTX_get_security_callback(context: *const SSL_CTX) -> Option<SecurityCallback>;
    fn SSL_CTX_set_security_callback(context: *mut SSL_CTX, callback: Option<SecurityCallback>);
    fn SSL_CTX_set0_security_ex_data(context: *mut SSL_CTX, extra: *mut c_void);
}

/// Reads the inbound ClientHello as `DTLSv1_listen` does: with its cookie verified by the context's
/// callback, the next `accept` continues from it. `false` when it is not accepted.
#[expect(unsafe_code, reason = "DTLSv1_listen")]
pub(super) fn listen(stream: &mut SslStream<DatagramBio>) -> bool {
    // SAFETY: The address is made and freed here and null is handled. The SSL is alive and borrowed mutably for
    // the call; its BIO was set by `SslStream::new`, whose callbacks catch panics.
    let listened = unsafe {
        let address = BIO_ADDR_new();
        if address.is_null() {
            return false;
        }
        let listened = DTLSv1_listen(raw(stream.ssl()), address);
        BIO_ADDR_free(address);
        listened
    };
    clear_errors();
    listened == 1
}

/// The time to the next retransmission; `None` if no timer runs.
#[expect(unsafe_code, reason = "DTLSv1_get_timeout, a macro over SSL_ctrl")]
pub(super) fn timeout(ssl: &SslRef) -> Option<Duration> {
    let mut left = libc::timeval { tv_sec: 0, tv_usec: 0 };
    // SAFETY: The command writes one timeval through the pointer and keeps nothing; it reads the SSL only.
    let armed = unsafe { SSL_ctrl(raw(ssl), DTLS_GET_TIMEOUT, 0, (&raw mut left).cast()) };
    let seconds = u64::try_from(left.tv_sec).ok()?;
    let micros = u64::try_from(left.tv_usec).ok()?;
    (armed == 1).then(|| Duration::from_secs(seconds) + Duration::from_micros(micros))
}

/// Retransmits the last flight if its timer has expired; `false` after too many retransmissions.
#[expect(unsafe_code, reason = "DTLSv1_handle_timeout, a macro over SSL_ctrl")]
pub(super) fn handle_timeout(stream: &mut SslStream<DatagramBio>) -> bool {
    // SAFETY: The command takes no pointer; the SSL is alive, borrowed mutably, and has its BIO.
    let result = unsafe { SSL_ctrl(raw(stream.ssl()), DTLS_HANDLE_TIMEOUT, 0, ptr::null_mut()) };
    clear_errors();
    result >= 0
}

/// Frees the record buffers; a no-op while one of them is in use.
#[expect(unsafe_code, reason = "SSL_free_buffers")]
pub(super) fn free_buffers(stream: &mut SslStream<DatagramBio>) {
    // SAFETY: The SSL is alive and borrowed mutably. We call this only after a read without a pending record
    // and after a completed write, so no record is half read or half written.
    unsafe { SSL_free_buffers(raw(stream.ssl())) };
}

/// Allocates record buffers, if they were freed; without them a write would go nowhere (OpenSSL 3.0 does not
/// check).
#[expect(unsafe_code, reason = "SSL_alloc_buffers")]
pub(super) fn alloc_buffers(stream: &mut SslStream<DatagramBio>) -> Result<(), ErrorStack> {
    // SAFETY: The SSL is alive and borrowed mutably.
    let taken = unsafe { SSL_alloc_buffers(raw(stream.ssl())) };
    if taken == 1 { Ok(()) } else { Err(ErrorStack::get()) }
}

/// The maximum record of the peer, if it has negotiated a smaller one (RFC 6066 section 4).
#[expect(unsafe_code, reason = "SSL_SESSION_get_max_fragment_length")]
pub(super) fn max_fragment(ssl: &SslRef) -> Option<usize> {
    // SAFETY: The session is borrowed from a living SSL for the length of the call, and null is handled.
    let code = unsafe {
        let session = SSL_get_session(raw(ssl));
        if session.is_null() { 0 } else { SSL_SESSION_get_max_fragment_length(session) }
    };
    // The codes 1 to 4 are 512 to 4,096 bytes.
    (1..=4).contains(&code).then(|| 256 << code)
}

/// Appends a certificate to the chain of the last one that was set.
#[expect(unsafe_code, reason = "SSL_CTX_add1_chain_cert, a macro over SSL_CTX_ctrl")]
pub(super) fn add_chain_certificate(context: &mut SslContextBuilder, certificate: &X509Ref) -> Result<(), ErrorStack> {
    // SAFETY: With 1 for its number the command takes a reference of its own to the certificate.
    let added = unsafe { SSL_CTX_ctrl(context.as_ptr(), CHAIN_CERT, 1, raw::<_, c_void>(certificate)) };
    if added == 1 { Ok(()) } else { Err(ErrorStack::get()) }
}

/// Bounds the bytes of a client's chain.
#[expect(unsafe_code, reason = "SSL_CTX_set_max_cert_list, a macro over SSL_CTX_ctrl")]
pub(super) fn set_chain_bytes_max(context: &mut SslContextBuilder, bytes: u16) {
    // SAFETY: The command takes a number and no pointer.
    unsafe { SSL_CTX_ctrl(context.as_ptr(), SET_MAX_CERT_LIST, c_long::from(bytes), ptr::null_mut()) };
}

/// Allows suites with a tag of 8 bytes at any security level; everything else stays subject to the level.
///
/// OpenSSL 3 allows them at level 0 only, where certificates with MD5 and keys of 512 bits would pass too.
#[expect(unsafe_code, reason = "SSL_CTX_set_security_callback")]
pub(super) fn allow_ccm_8(context: &mut SslContextBuilder) {
    // SAFETY: The context is alive and exclusively ours. The callback gets the previous one as its extra data: a
    // function of libssl, which stays for the life of the process.
    unsafe {
        let Some(former) = SSL_CTX_get_security_callback(context.as_ptr()) else { return };
        SSL_CTX_set0_security_ex_data(context.as_ptr(), former as *mut c_void);
        SSL_CTX_set_security_callback(context.as_ptr(), Some(ccm_8_or_former));
    }
}

/// The security callback of [`allow_ccm_8`].
#[expect(unsafe_code, reason = "called by libssl")]
unsafe extern "C" fn ccm_8_or_former(
    ssl: *const SSL,
    context: *const SSL_CTX,
    operation: c_int,
    bits: c_int,
    nid: c_int,
    other: *mut c_void,
    extra: *mut c_void,
) -> c_int {
    if CIPHER_OPERATIONS.contains(&operation) && bits == CCM_8_BITS {
        return 1;
    }
    // SAFETY: `extra` is the function that `allow_ccm_8` stored, of this type; it gets our arguments, with its own
    // extra data: none.
    unsafe {
        let former = std::mem::transmute::<*mut c_void, SecurityCallback>(extra);
        former(ssl, context, operation, bits, nid, other, ptr::null_mut())
    }
}

/// Has a client negotiate records of at most 512 bytes.
#[cfg(test)]
#[expect(unsafe_code, reason = "SSL_CTX_set_tlsext_max_fragment_length")]
pub(super) fn ask_for_small_records(context: &mut SslContextBuilder) {
    unsafe extern "C" {
        fn SSL_CTX_set_tlsext_max_fragment_length(context: *mut SSL_CTX, mode: u8) -> c_int;
    }
    // SAFETY: The context is alive and ours alone.
    assert_eq!(unsafe { SSL_CTX_set_tlsext_max_fragment_length(context.as_ptr(), 1) }, 1);
}

/// Has a client start a renegotiation.
#[cfg(test)]
#[expect(unsafe_code, reason = "SSL_renegotiate")]
pub(super) fn renegotiate(stream: &SslStream<DatagramBio>) {
    unsafe extern "C" {
        fn SSL_renegotiate(ssl: *mut SSL) -> c_int;
    }
    // SAFETY: The SSL is alive.
    assert_eq!(unsafe { SSL_renegotiate(raw(stream.ssl())) }, 1);
}

/// Clears the thread's error queue, so that its errors are not attributed to the next call.
fn clear_errors() {
    drop(ErrorStack::get());
}

/// The C object of a reference of the crate, whose reference types are opaque: their address is the object's.
fn raw<R, C>(reference: &R) -> *mut C {
    ptr::from_ref(reference).cast_mut().cast()
}
