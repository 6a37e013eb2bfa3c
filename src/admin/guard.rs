//! Access check of the admin port: the token, cross-site requests (CSRF) and DNS rebinding.

use std::net::{IpAddr, SocketAddr};

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};

use super::Shared;
use super::api::Refusal;
use super::server::Admitted;

/// Rejects requests without the token, and those that a page of another site in the operator's browser makes.
pub(super) async fn require_operator(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    let sender = match &shared.token {
        None => Sender::Anyone,
        Some(token) if has_token(headers, token) => Sender::Verified,
        Some(_) => {
            let challenge = [(header::WWW_AUTHENTICATE, "Bearer")];
            return (StatusCode::UNAUTHORIZED, challenge, "expected the admin token\n").into_response();
        }
    };
    if is_own_site(headers, sender) {
        if let Some(admitted) = request.extensions().get::<Admitted>() {
            admitted.set();
        }
        return next.run(request).await;
    }
    Refusal::forbidden("the request comes from the page of another site; expected one of this port by its address")
        .into_response()
}

/// Sender of a request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sender {
    /// The port has no token.
    Anyone,
    /// The request had the token, which no page of another site knows.
    Verified,
}

fn has_token(headers: &HeaderMap, token: &SecretString) -> bool {
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    // Digests are compared, so the time does not depend on the token.
    given.is_some_and(|given| Sha256::digest(given) == Sha256::digest(token.expose_secret()))
}

/// Browsers send the page's site in `Origin` and its relation to this port in `Sec-Fetch-Site`; after DNS rebinding
/// they send the page's name in `Host`, so without a token `Host` must be an address. A name is accepted with a
/// verified token only.
fn is_own_site(headers: &HeaderMap, sender: Sender) -> bool {
    let values = |name| headers.get_all(name).iter().map(|value| value.to_str().ok());
    let mut hosts = values(header::HOST);
    let (host, hosts_left) = (hosts.next(), hosts.count());
    if hosts_left > 0 || host == Some(None) {
        return false;
    }
    let host = host.flatten();
    // An unreadable value is another site's: only a browser sends these headers.
    let is_own_origin = values(header::ORIGIN).all(|origin| {
        host.is_some() && origin.and_then(|origin| origin.split_once("://")).map(|(_, site)| site) == host
    });
    // "same-site" is a page on another port of this machine; "none" is a request of the user.
    let is_own_fetch = values(header::HeaderName::from_static("sec-fetch-site"))
        .all(|site| matches!(site, Some("same-origin" | "none")));
    is_own_origin && is_own_fetch && (sender == Sender::Verified || host.is_none_or(is_address))
}

/// Whether a `Host` is an IP address or `localhost`, which always is this machine.
fn is_address(host: &str) -> bool {
    host.parse::<SocketAddr>().is_ok()
        || host.parse::<IpAddr>().is_ok()
        || host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).is_some_and(|ip| ip.parse::<IpAddr>().is_ok())
        || host == "localhost"
        || host.strip_prefix("localhost:").is_some_and(|port| port.parse::<u16>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_addresses() {
        for host in ["127.0.0.1:9180", "127.0.0.1", "[::1]:9180", "[::1]", "localhost", "localhost:9180"] {
            assert!(is_address(host), "{host}");
        }
        for host in ["", "evil.example", "evil.example:9180", "localhost.evil.example", "localhost:x", "127.0.0.1.evil"]
        {
            assert!(!is_address(host), "{host}");
        }
    }

    /// What a browser says of the page decides, whether the request has the token or not; the token only allows a name
    /// as `Host`.
    #[test]
    fn other_sites() {
        let own = |sender, lines: &[(&'static str, &[u8])]| {
            let mut headers = HeaderMap::new();
            for (name, value) in lines {
                headers.append(*name, value.to_vec().try_into().unwrap());
            }
            is_own_site(&headers, sender)
        };
        let address: (&str, &[u8]) = ("host", b"127.0.0.1:9180");
        let name: (&str, &[u8]) = ("host", b"gw.example:9180");
        for sender in [Sender::Anyone, Sender::Verified] {
            assert!(own(sender, &[address]));
            assert!(own(sender, &[address, ("origin", b"http://127.0.0.1:9180"), ("sec-fetch-site", b"same-origin")]));
            assert!(own(sender, &[address, ("sec-fetch-site", b"none")]));
            for (header, value) in [
                ("origin", &b"http://evil.example"[..]),
                ("origin", b"null"),
                ("origin", b"\xff"),
                ("sec-fetch-site", b"cross-site"),
                ("sec-fetch-site", b"same-site"),
                ("sec-fetch-site", b"\xff"),
                ("host", b"127.0.0.1:9180"),
            ] {
                assert!(!own(sender, &[address, (header, value)]), "{header}: {value:?}");
                assert!(!own(sender, &[address, ("sec-fetch-site", b"none"), (header, value)]), "{header}: {value:?}");
            }
            assert!(!own(sender, &[("host", b"\xff")]));
            assert!(!own(sender, &[("origin", b"http://127.0.0.1:9180")]), "an origin without a host");
        }
        assert!(!own(Sender::Anyone, &[name, ("origin", b"http://gw.example:9180")]), "DNS rebinding");
        assert!(own(Sender::Verified, &[name, ("origin", b"http://gw.example:9180")]));
    }
}
