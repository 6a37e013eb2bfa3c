//! Tap stream `/api/v1/tap`: one live connection in the format of conversations.

use std::net::{IpAddr, SocketAddr};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{ConnectInfo, Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::Deserialize;

use super::Shared;
use super::api::Refusal;
use crate::conn::ConnId;
use crate::tap::{Selector, Subscription};

/// Route; the caller adds the access check.
pub(super) fn routes() -> Router<Shared> {
    Router::new().route("/api/v1/tap", get(tap))
}

/// Selector of the connection: its id, a client, or the next new connection.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TapQuery {
    conn: Option<String>,
    client: Option<String>,
    listener: Option<String>,
    peer: Option<IpAddr>,
}

impl TapQuery {
    fn selector(self) -> Result<Selector, Refusal> {
        match self {
            Self { conn: Some(conn), client: None, listener: None, peer: None } => match ConnId::parse(&conn) {
                Some(conn) => Ok(Selector::Conn(conn)),
                None => {
                    Err(Refusal::bad(format!("conn: expected 16 hexadecimal digits as in the log, found {conn:?}")))
                }
            },
            Self { conn: None, client: Some(client), listener: None, peer: None } => Ok(Selector::Client(client)),
            Self { conn: None, client: None, listener, peer } => Ok(Selector::Next { listener, peer }),
            _ => Err(Refusal::bad("expected conn, or client, or neither of them with listener and peer as you like")),
        }
    }
}

async fn tap(
    State(shared): State<Shared>,
    ConnectInfo(initiator): ConnectInfo<SocketAddr>,
    query: Result<Query<TapQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, Refusal> {
    let Query(query) = query.map_err(|rejection| Refusal::bad(rejection.body_text()))?;
    let selector = query.selector()?;
    if let Selector::Conn(conn) = selector
        && shared.connections.get(conn).is_none()
    {
        return Err(Refusal::not_found(format!("no connection has the id {conn}")));
    }
    let subscription = shared.taps.watch(selector.clone()).map_err(|full| Refusal::busy(full.to_string()))?;
    tracing::info!(%initiator, ?selector, "tap started");
    let drain = shared.drain.clone();
    let lines =
        futures::stream::unfold((subscription, drain), |(mut subscription, drain): (Subscription, _)| async move {
            // The admin port outlives the connections; a waiting tap must not keep it open.
            let chunk = tokio::select! {
                chunk = subscription.next() => chunk?,
                () = drain.ended() => return None,
            };
            Some((Ok::<_, std::convert::Infallible>(Bytes::from(chunk)), (subscription, drain)))
        });
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], Body::from_stream(lines)).into_response())
}
