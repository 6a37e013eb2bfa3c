//! Admin HTTP port: health, metrics, REST API of handlers, tap stream.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::conn::registry::Registry;
use crate::drain::Drain;
use crate::rollout::RolloutManager;
use crate::tap::Taps;
use crate::telemetry::Telemetry;

mod api;
mod tap;

/// Media type of the metrics page.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Options of the admin port.
#[derive(Clone, Debug)]
pub struct Options {
    /// Address; port 0 lets the system choose.
    pub bind: SocketAddr,
    /// Bearer token of callers; health needs none.
    pub token: Option<SecretString>,
}

/// The address cannot be bound.
#[derive(Debug, thiserror::Error)]
#[error("cannot bind the admin port on {bind}")]
pub struct BindError {
    bind: SocketAddr,
    #[source]
    source: std::io::Error,
}

#[derive(Clone)]
struct Shared {
    telemetry: Telemetry,
    drain: Drain,
    token: Option<SecretString>,
    manager: RolloutManager,
    uploads: Arc<Semaphore>,
    connections: Registry,
    taps: Taps,
}

/// A running admin port.
#[derive(Debug)]
pub(crate) struct Served {
    /// The bound address.
    pub bound: SocketAddr,
    /// Returns after the drain, when open responses have ended.
    pub task: JoinHandle<()>,
}

/// Binds the address and serves it in a task that ends with `drain`.
///
/// # Errors
///
/// [`BindError`], when the operating system refuses the address.
pub(crate) async fn serve(
    options: Options,
    telemetry: Telemetry,
    manager: RolloutManager,
    (connections, taps): (Registry, Taps),
    drain: Drain,
) -> Result<Served, BindError> {
    let failed = |source| BindError { bind: options.bind, source };
    let listener = TcpListener::bind(options.bind).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    let shared = Shared {
        telemetry,
        drain: drain.clone(),
        token: options.token,
        manager,
        uploads: Arc::new(Semaphore::new(api::UPLOADS_MAX)),
        connections,
        taps,
    };
    let guarded = Router::new()
        .route("/metrics", get(metrics))
        .merge(api::routes())
        .route_layer(middleware::from_fn_with_state(shared.clone(), require_token));
    let router = Router::new().route("/live", get(live)).route("/ready", get(ready)).merge(guarded).with_state(shared);
    let task = tokio::spawn(async move {
        let stopped = async move { drain.ended().await };
        if let Err(error) = axum::serve(listener, router.into_make_service_with_connect_info::<SocketAddr>())
            .with_graceful_shutdown(stopped)
            .await
        {
            tracing::error!(%error, "the admin port has stopped");
        }
    });
    Ok(Served { bound, task })
}

/// Liveness: the process runs.
async fn live() -> &'static str {
    "live\n"
}

/// Readiness: the gateway accepts connections. It is bound before this port, so it is ready until it drains.
async fn ready(State(shared): State<Shared>) -> Response {
    if shared.drain.is_signalled() {
        (StatusCode::SERVICE_UNAVAILABLE, "draining\n").into_response()
    } else {
        "ready\n".into_response()
    }
}

async fn metrics(State(shared): State<Shared>) -> Response {
    match shared.telemetry.render() {
        Ok(page) => ([(header::CONTENT_TYPE, OPENMETRICS)], page).into_response(),
        Err(error) => {
            tracing::error!(%error, "cannot write the metrics page");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

async fn require_token(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    let Some(token) = &shared.token else {
        return next.run(request).await;
    };
    let given = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.as_bytes().strip_prefix(b"Bearer "))
        .unwrap_or_default();
    // Digests are compared, so the time does not depend on the token.
    if Sha256::digest(given) == Sha256::digest(token.expose_secret()) {
        next.run(request).await
    } else {
        (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Bearer")], "expected the admin token\n").into_response()
    }
}
