//! `[admin]`: the HTTP port of the operator.

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;

use secrecy::ExposeSecret;

use super::ExternalFiles;
use super::binds::Binds;
use super::diagnostics::{ErrorReported, Fault};
use super::read::{Table, read_all};
use super::schema::section;
use super::value::{ADDRESS, SECRET, SecretSource};
use crate::admin::Options;

section! {
    /// HTTP for the operator: `/live`, `/ready`, `/metrics`. Without this table there is no such port.
    "admin", "[admin]", Once;

    /// the address to listen at; port 0 lets the system choose
    BIND "bind": SocketAddr = ADDRESS, default SocketAddr::from((Ipv4Addr::LOCALHOST, 9180));
    /// the token that clients present as `Authorization: Bearer ..`, 16 to 1024 visible ASCII characters; `/live` and
    /// `/ready` need none
    TOKEN "token": SecretSource = SECRET, optional "none; required when `bind` is not a loopback address";
}

/// Length of the token, in bytes: long enough that it cannot be guessed, short enough for a header.
const TOKEN_BYTES: RangeInclusive<usize> = 16..=1024;

/// The options of the port, if the file has its table.
pub(super) fn read(
    root: &Table<'_>,
    external: ExternalFiles<'_>,
    binds: &mut Binds,
) -> Result<Option<Options>, ErrorReported> {
    let Some(table) = root.section(&SECTION)? else { return Ok(None) };
    let options = read_all!(Options {
        bind: binds.read(&table, &BIND),
        token: table.get_with(&TOKEN, |source| {
            let Some(source) = source else { return Ok(None) };
            let secret = external.secret(source)?;
            let text = secret.expose_secret();
            match TOKEN_BYTES.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic()) {
                true => Ok(Some(secret)),
                false => Err(Fault::new("expected 16 to 1024 visible ASCII characters, without spaces")),
            }
        }),
    })?;
    let bind = options.bind;
    if options.token.is_none() && !bind.ip().is_loopback() {
        let message = format_args!("is missing; {bind} is not a loopback address, so a token is required");
        return Err(table.fault_at("token", message));
    }
    Ok(Some(options))
}
