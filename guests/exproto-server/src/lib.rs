//! Serves a [`Handler`] over gRPC, as the user's server that ExProto asks for: the same source that is a component inside the
//! gateway.
//!
//! A program is one line, and `examples/` has two:
//!
//! ```no_run
//! # use polygate_guest::{Adapter, ConnInfo, Handler, Result};
//! # struct Lines;
//! # impl Handler for Lines {
//! #     fn on_socket_created(_: &mut dyn Adapter, _: &ConnInfo) -> Result<Self> { Ok(Self) }
//! #     fn on_received_bytes(&mut self, _: &mut dyn Adapter, _: &[u8]) -> Result { Ok(()) }
//! # }
//! fn main() -> std::process::ExitCode {
//!     polygate_exproto::run::<Lines>()
//! }
//! ```
//!
//! Its arguments are those of [`Options`]. It says `listening on <address>` when it is ready, logs to the standard error output,
//! and ends in order when it is told to (SIGTERM, or Ctrl-C): events in progress are finished, new ones go to whoever comes
//! next.
//!
//! # What is the same, and what is not
//!
//! One value of the handler is one connection, and its events come one after the other, as in a component. A handler's code is plain
//! and blocking: each event runs on a thread for such code, so that an event which waits for the broker is in nobody's way.
//!
//! - [`Adapter::stop_timer`](polygate_guest::Adapter::stop_timer) is refused: ExProto has no such operation. The keepalive
//!   counts whole seconds; what is between is rounded up.
//! - A refusal that ExProto has no code for (a full queue, a late answer of the broker) is `Unknown`.
//! - A device's reset, a failing handler and the like arrive as `CloseReason::Error` with ExProto's words; the gateway's stop as
//!   `CloseReason::Handler`, since ExProto has one word for both.
//! - State is lost with the process. The next event of such a connection is answered with FAILED_PRECONDITION; the gateway then
//!   announces the connection once more and repeats the event. Who the device is stays with the gateway: until the handler
//!   authenticates it again, a rule's refusal shows as `NotAuthenticated`.

mod connections;
mod gateway;
mod options;
mod service;
#[cfg(test)]
mod tests;
mod words;

use std::future::Future;
use std::io;
use std::process::ExitCode;
use std::time::Duration;

use polygate_guest::Handler;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use crate::connections::Connections;
use crate::gateway::Gateway;
pub use crate::options::{Options, Wrong};
use crate::service::Service;

/// What `proto/exproto.proto` says, as prost and tonic generate it.
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::wildcard_enum_match_arm,
    reason = "generated"
)]
mod proto {
    tonic::include_proto!("emqx.exproto.v1");
}

/// How long events in progress may take to end after the signal to stop.
const GRACE: Duration = Duration::from_secs(10);

/// Calls in progress on one HTTP/2 connection of the gateway; it waits with more.
const STREAMS_MAX: u32 = 256;

/// A whole program: takes [`Options`] from its arguments, serves until it is told to stop.
#[must_use]
pub fn run<H: Handler + Send + 'static>() -> ExitCode {
    let options = match Options::from_args(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(wrong) => {
            eprintln!("{wrong}\n{}", options::USAGE);
            return ExitCode::from(2);
        }
    };
    tracing_subscriber::fmt().with_writer(io::stderr).with_target(false).init();
    let served = Runtime::new().and_then(|runtime| {
        let served = runtime.block_on(async {
            let listener = TcpListener::bind(options.listen).await?;
            println!("listening on {}", listener.local_addr()?);
            serve::<H>(listener, &options, told_to_stop()?).await
        });
        runtime.shutdown_timeout(GRACE);
        served
    });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cannot serve on {}: {error}", options.listen);
            ExitCode::FAILURE
        }
    }
}

/// Serves on a socket until `stop`, and then for as long as events in progress take, at most 10 s. `options.listen` is not used.
///
/// # Errors
///
/// The socket cannot be used, or the adapter's url is none.
pub async fn serve<H: Handler + Send + 'static>(
    listener: TcpListener,
    options: &Options,
    stop: impl Future<Output = ()>,
) -> io::Result<()> {
    let gateway = Gateway::new(options).map_err(io::Error::other)?;
    let service = Service::new(Connections::<H>::new(gateway, options.connections_max));
    let (stopping, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = Server::builder()
        .max_concurrent_streams(Some(STREAMS_MAX))
        .add_service(service.unary())
        .add_service(service.streaming())
        .serve_with_incoming_shutdown(TcpIncoming::from(listener).with_nodelay(Some(true)), async {
            // An error is the sender's end, which is the same signal.
            let _ = stopped.await;
        });
    tokio::pin!(server, stop);
    tokio::select! {
        served = &mut server => return served.map_err(io::Error::other),
        () = stop => drop(stopping),
    }
    match tokio::time::timeout(GRACE, server).await {
        Ok(served) => served.map_err(io::Error::other),
        Err(_) => {
            tracing::warn!("stopped after {GRACE:?} with events in progress");
            Ok(())
        }
    }
}

/// Resolves at the first SIGTERM or SIGINT.
fn told_to_stop() -> io::Result<impl Future<Output = ()>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
