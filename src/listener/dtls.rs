//! DTLS 1.2 over the flows of a datagram socket.
//!
//! Three stages: the [`CookieVerifier`] in the receiving task of the socket answers each ClientHello with a cookie and
//! keeps no state; a [`Handshake`] and then a [`Session`] live in the task of their peer, over its flow. None of the
//! three has a socket or a runtime inside; [`SecureFlow`] joins a session with its flow.
//!
//! OpenSSL performs the handshake. The record layer of the session is implemented here, with OpenSSL's ciphers, because
//! an `SSL` costs some 40 KiB for as long as it lives and a session without one less than one.
//!
//! Not supported: DTLS 1.0 and 1.3, connection ids (RFC 9146), resumption and renegotiation.

mod context;
mod cookie;
mod datagram_bio;
mod etm_filter;
mod ffi;
mod flow;
mod handshake;
pub(crate) mod hello;
mod prf;
pub(crate) mod record_layer;
mod session;
#[cfg(test)]
mod tests;

pub(crate) use context::{CIPHERS, Context, Options, check_ciphers};
pub(crate) use cookie::{CookieCheck, CookieVerifier, HandshakeId, Secret};
pub(crate) use flow::{SecureFlow, establish};
pub(crate) use handshake::{Handshake, Progress, Taken};
pub(crate) use session::{Event, SendError, Session};
