//! Admin HTTP port: health, metrics, REST API of handlers, tap stream.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use secrecy::SecretString;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::conn::registry::Registry;
use crate::drain::Drain;
use crate::rollout::RolloutManager;
use crate::tap::Taps;
use crate::telemetry::Telemetry;

mod api;
mod guard;
mod server;
mod tap;
pub(crate) mod token;

/// Media type of the metrics page.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Options of the admin port.
#[derive(Clone, Debug)]
pub struct Options {
    /// Address; port 0 lets the system choose.
    pub bind: SocketAddr,
    /// Bearer token of callers; health needs none.
    pub token: Token,
}

/// Token that the admin port requires.
#[derive(Clone, Debug)]
pub enum Token {
    /// Generated at the first start, in the data directory.
    Generated,
    Configured(SecretString),
    /// None: every user of this machine is an operator.
    Disabled,
}

/// The admin port could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The operating system's random generator failed.
    #[error("the system's random generator failed")]
    Random(#[source] getrandom::Error),
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

/// Binds the address and serves it in a task that ends with `drain`. A generated token is in `data_dir`.
///
/// # Errors
///
/// [`StartError`], when the operating system refuses the address, or its random generator fails.
pub(crate) async fn serve(
    options: Options,
    data_dir: &Path,
    telemetry: Telemetry,
    manager: RolloutManager,
    (connections, taps): (Registry, Taps),
    drain: Drain,
) -> Result<Served, StartError> {
    let failed = |source| BindError { bind: options.bind, source };
    let listener = TcpListener::bind(options.bind).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    let shared = Shared {
        telemetry,
        drain: drain.clone(),
        token: match options.token {
            Token::Generated => Some(token::of_data_dir(data_dir).map_err(StartError::Random)?),
            Token::Configured(token) => Some(token),
            Token::Disabled => None,
        },
        manager,
        uploads: Arc::new(Semaphore::new(api::UPLOADS_MAX)),
        connections,
        taps,
    };
    let guarded = Router::new()
        .route("/metrics", get(metrics))
        .merge(api::routes())
        .route_layer(middleware::from_fn_with_state(shared.clone(), guard::require_operator));
    let router = Router::new().route("/live", get(live)).route("/ready", get(ready)).merge(guarded).with_state(shared);
    Ok(Served { bound, task: tokio::spawn(server::serve(listener, router, drain)) })
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
