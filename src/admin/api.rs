//! REST API `/api/v1/handlers`: status and changes of handlers. Responses are JSON; an error is `{"error": ".."}`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{ConnectInfo, Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::json;

use super::Shared;
use crate::error::report;
use crate::handler::grpc;
use crate::rollout::{
    COMPONENT_BYTES_MAX, Candidate, ChangeResult, ConversationsError, Error, Initiator, LoadError, Swap,
};

/// Maximum number of concurrent uploads. Each holds its component in memory.
pub(super) const UPLOADS_MAX: usize = 2;

/// Timeout for the body of an upload.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(120);

/// Routes; the caller adds the access check.
pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/api/v1/handlers", get(list))
        .route("/api/v1/handlers/{name}/versions", get(list_versions).put(upload))
        .route("/api/v1/handlers/{name}/versions/{number}/activate", post(activate))
        .route("/api/v1/handlers/{name}/rollback", post(roll_back))
        .route("/api/v1/handlers/{name}/promote", post(promote))
        .route("/api/v1/handlers/{name}/abandon", post(abandon))
        .merge(super::tap::routes())
}

/// Error response.
pub(super) struct Refusal {
    status: StatusCode,
    error: String,
}

impl Refusal {
    pub(super) fn not_found(error: impl Into<String>) -> Self {
        Self { status: StatusCode::NOT_FOUND, error: error.into() }
    }

    pub(super) fn forbidden(error: impl Into<String>) -> Self {
        Self { status: StatusCode::FORBIDDEN, error: error.into() }
    }

    pub(super) fn busy(error: impl Into<String>) -> Self {
        Self { status: StatusCode::TOO_MANY_REQUESTS, error: error.into() }
    }

    pub(super) fn bad(error: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, error: error.into() }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status, Json(json!({ "error": self.error }))).into_response()
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let status = match &error {
            Error::NoSuchHandler { .. } | Error::NoSuchVersion { .. } => StatusCode::NOT_FOUND,
            Error::NoPrevious { .. }
            | Error::NoTrial { .. }
            | Error::IsActive { .. }
            | Error::NoAdapter
            | Error::NoShadow => StatusCode::CONFLICT,
            Error::Busy { .. } => StatusCode::TOO_MANY_REQUESTS,
            Error::NotWasm { .. } => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            // The conversations belong to the gateway's configuration.
            Error::Load(LoadError::Conversations {
                source: ConversationsError::Folder(_) | ConversationsError::Read(_),
                ..
            }) => StatusCode::INTERNAL_SERVER_ERROR,
            Error::Load(LoadError::Guest(_) | LoadError::Tls(_) | LoadError::Conversations { .. })
            | Error::Unwell { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            Error::Load(LoadError::Runtime(_) | LoadError::Panicked(_) | LoadError::Store { .. }) => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
            Error::Stopping => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self { status, error: report(&error) }
    }
}

type Answer = Result<Json<ChangeResult>, Refusal>;

/// Query of a change.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SwapQuery {
    /// Swap mode; default: as configured.
    swap: Option<String>,
    /// Whether the version is activated, or only kept.
    #[serde(default = "yes")]
    activate: bool,
    /// Whether the conversations of a component are not replayed.
    #[serde(default)]
    unchecked: bool,
}

fn yes() -> bool {
    true
}

/// Body that names a gRPC server as the new version.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Server {
    kind: String,
    url: String,
}

async fn list(State(shared): State<Shared>) -> Response {
    Json(json!({ "handlers": shared.manager.list() })).into_response()
}

async fn list_versions(State(shared): State<Shared>, Path(name): Path<String>) -> Result<Response, Refusal> {
    let versions = shared.manager.list_versions(&name)?;
    Ok(Json(json!({ "handler": name, "versions": versions })).into_response())
}

async fn upload(
    State(shared): State<Shared>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    Path(name): Path<String>,
    query: Query<SwapQuery>,
    headers: HeaderMap,
    body: Body,
) -> Result<(StatusCode, Json<ChangeResult>), Refusal> {
    let swap = swap(&query)?;
    // Before the body is read: an upload for an unknown handler need not be sent.
    shared.manager.list_versions(&name)?;
    let Ok(one) = Arc::clone(&shared.uploads).try_acquire_owned() else {
        let error = format!("{UPLOADS_MAX} uploads are in progress; expected at most that many");
        return Err(Refusal { status: StatusCode::TOO_MANY_REQUESTS, error });
    };
    let too_large = || Refusal {
        status: StatusCode::PAYLOAD_TOO_LARGE,
        error: format!("the body is too large; expected at most {COMPONENT_BYTES_MAX} bytes"),
    };
    let length = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|bytes| bytes > COMPONENT_BYTES_MAX) {
        return Err(too_large());
    }
    let body = match tokio::time::timeout(UPLOAD_TIMEOUT, to_bytes(body, COMPONENT_BYTES_MAX as usize)).await {
        Ok(Ok(body)) => body,
        // A larger body without a length fails like an aborted one.
        Ok(Err(error)) if length.is_none() && error.to_string().contains("limit") => return Err(too_large()),
        Ok(Err(error)) => return Err(Refusal::bad(format!("the body cannot be read: {error}"))),
        Err(_) => {
            let seconds = UPLOAD_TIMEOUT.as_secs();
            let error = format!("the body is incomplete after {seconds} s; expected all of it");
            return Err(Refusal { status: StatusCode::REQUEST_TIMEOUT, error });
        }
    };
    let is_json =
        headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"));
    let candidate = match (is_json, query.unchecked) {
        (true, _) => Candidate::Server(server(&body)?),
        (false, false) => Candidate::Component(body),
        (false, true) => Candidate::Unchecked(body),
    };
    let (manager, activates) = (shared.manager.clone(), query.activate);
    let changing = tokio::spawn(async move {
        // As long as the component is in memory, also when the client has hung up.
        let _one = one;
        manager.swap(&name, candidate, swap, activates, Initiator::Admin(peer)).await
    });
    let done = changing.await.map_err(|error| Error::from(LoadError::Panicked(error)))??;
    Ok((StatusCode::CREATED, Json(done)))
}

fn server(body: &[u8]) -> Result<tonic::transport::Uri, Refusal> {
    const EXPECTED: &str = "expected {\"kind\": \"grpc\", \"url\": \"http://127.0.0.1:9001\"}";
    let Server { kind, url } =
        serde_json::from_slice(body).map_err(|error| Refusal::bad(format!("{error}; {EXPECTED}")))?;
    if kind != "grpc" {
        return Err(Refusal::bad(format!("{kind:?} is not a kind of handler with a url; {EXPECTED}")));
    }
    // Not shown: it may contain a password.
    grpc::url(&url).ok_or_else(|| Refusal::bad(format!("the url is not of the form scheme://host:port; {EXPECTED}")))
}

async fn activate(
    State(shared): State<Shared>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    Path((name, number)): Path<(String, String)>,
    query: Query<SwapQuery>,
) -> Answer {
    let swap = swap(&query)?;
    let number = number.parse().map_err(|_| Refusal::bad("expected the number of a version"))?;
    Ok(Json(shared.manager.activate(&name, number, swap, Initiator::Admin(peer)).await?))
}

async fn roll_back(
    State(shared): State<Shared>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    Path(name): Path<String>,
) -> Answer {
    Ok(Json(shared.manager.roll_back(&name, Initiator::Admin(peer)).await?))
}

async fn promote(
    State(shared): State<Shared>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    Path(name): Path<String>,
) -> Answer {
    Ok(Json(shared.manager.promote(&name, Initiator::Admin(peer)).await?))
}

async fn abandon(
    State(shared): State<Shared>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    Path(name): Path<String>,
) -> Answer {
    Ok(Json(shared.manager.abandon(&name, Initiator::Admin(peer)).await?))
}

fn swap(query: &SwapQuery) -> Result<Option<Swap>, Refusal> {
    query.swap.as_deref().map(str::parse).transpose().map_err(|error| Refusal::bad(format!("swap: {error}")))
}
