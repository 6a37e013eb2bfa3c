//! `[admin]`: the HTTP port of the operator.

use std::net::{Ipv4Addr, SocketAddr};

use secrecy::ExposeSecret;

use super::ExternalFiles;
use super::binds::Binds;
use super::diagnostics::{Advice, ErrorReported, Fault};
use super::read::{Table, read_all};
use super::schema::section;
use super::value::{ADDRESS, SECRET, SecretSource};
use crate::admin::token::is_valid;
use crate::admin::{Options, Token};

section! {
    /// HTTP for the operator: health, metrics, handlers, taps. Without this table there is no such port.
    "admin", "[admin]", Once;

    /// the address to listen at; port 0 lets the system choose
    BIND "bind": SocketAddr = ADDRESS, default SocketAddr::from((Ipv4Addr::LOCALHOST, 9180));
    /// the token that clients present as `Authorization: Bearer ..`, 16 to 1024 visible ASCII characters; `/live` and
    /// `/ready` need none; `"none"` disables the check, on a loopback address only, for all users of the machine
    TOKEN "token": SecretSource = SECRET, optional "generated, in `data_dir/admin.token`";
}

/// The value of `token` that disables the check.
const DISABLED: &str = "none";

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
            let Some(source) = source else { return Ok(Token::Generated) };
            if matches!(&source, SecretSource::Inline(secret) if secret.expose_secret() == DISABLED) {
                return Ok(Token::Disabled);
            }
            let secret = external.secret(source)?;
            match is_valid(secret.expose_secret()) {
                true => Ok(Token::Configured(secret)),
                false => Err(Fault::new("expected 16 to 1024 visible ASCII characters, without spaces")),
            }
        }),
    })?;
    let bind = options.bind;
    if !bind.ip().is_loopback() {
        if matches!(options.token, Token::Disabled) {
            let message = format_args!("is \"none\"; {bind} is not a loopback address, so a token is required");
            return Err(table.fault_at("token", message));
        }
        table.warn_at("bind", Advice::AdminInClear);
    }
    Ok(Some(options))
}
