//! HTTP server of the admin port: a bounded number of connections, with a deadline for the head of each request.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tower::Service;

use crate::drain::Drain;

/// Maximum number of connections: many times what an operator, a monitoring system and an orchestrator open.
const CONNECTIONS_MAX: usize = 64;

/// Timeout of the head of a request, from the start of the connection or the end of the last response.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Pause after a failed accept; without one a lack of descriptors would take a whole core.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Whether a request on this connection has passed the access check; an extension of every request.
#[derive(Clone, Debug, Default)]
pub(super) struct Admitted(Arc<AtomicBool>);

impl Admitted {
    pub(super) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

struct Open {
    admitted: Admitted,
    task: AbortHandle,
}

/// Serves `router` until `drain` has ended and the open responses are complete.
///
/// At [`CONNECTIONS_MAX`] a new connection takes the place of the oldest one without an admitted request, so silent
/// peers delay neither an operator nor a health check. If there is none, the new connection is closed.
pub(super) async fn serve(listener: TcpListener, router: Router, drain: Drain) {
    let mut tasks = JoinSet::new();
    // Oldest first.
    let mut open: Vec<Open> = Vec::new();
    loop {
        tokio::select! {
            () = drain.ended() => break,
            Some(_) = tasks.join_next() => open.retain(|connection| !connection.task.is_finished()),
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    open.retain(|connection| !connection.task.is_finished());
                    if open.len() >= CONNECTIONS_MAX {
                        let oldest = open.iter().position(|one| !one.admitted.0.load(Ordering::Relaxed));
                        tracing::debug!(%peer, closes_oldest = oldest.is_some(), "connection limit of the admin port");
                        match oldest {
                            Some(oldest) => open.remove(oldest).task.abort(),
                            None => continue,
                        }
                    }
                    let admitted = Admitted::default();
                    let serving = serve_connection(stream, peer, router.clone(), admitted.clone(), drain.clone());
                    open.push(Open { admitted, task: tasks.spawn(serving) });
                }
                Err(error) => {
                    tracing::warn!(%error, "the admin port cannot accept a connection");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            },
        }
    }
    drop(listener);
    while tasks.join_next().await.is_some() {}
}

async fn serve_connection(stream: TcpStream, peer: SocketAddr, router: Router, admitted: Admitted, drain: Drain) {
    let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(ConnectInfo(peer));
        request.extensions_mut().insert(admitted.clone());
        router.clone().call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = drain.ended() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%peer, %error, "connection to the admin port failed");
    }
}
