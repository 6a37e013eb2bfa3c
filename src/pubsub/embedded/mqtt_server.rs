//! The MQTT port: rmqtt, with its subscriptions, retained messages and deliveries led through the hub.
//!
//! rmqtt speaks the protocol and keeps the sessions of MQTT clients. Four of its parts are ours: the
//! router enters subscriptions into the hub, the retain store keeps messages there, `Shared` passes
//! messages to the hub instead of to rmqtt's own sessions, and the hooks of the [`hooks`] ask the policy.
//! Owns the listening socket; ends with [`MqttServer::stop`].

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use rmqtt::context::ServerContext;
use rmqtt::net::Builder;
use rmqtt::node::Node;
use rmqtt::shared::DefaultShared;
use tokio::task::AbortHandle;

use crate::auth::Auth;
use crate::topic::TOPIC_LEVELS_MAX;

use super::clients::NODE;
use super::router::Router;
use super::{Options, StartError};

mod entry;
mod hooks;
mod router;
mod shared;

use hooks::AccessHooks;
use router::{LibraryRetained, LibraryRouter, LibraryShares};
use shared::LibraryShared;

/// The number under which rmqtt knows its only listener.
const LISTENER: u16 = 1;

/// Messages sent to a client and not acknowledged; MQTT 5.0 calls it Receive Maximum.
const INFLIGHT_MAX: NonZeroU16 = NonZeroU16::MIN.saturating_add(127);

/// Topic aliases of one MQTT 5.0 client, each way.
const TOPIC_ALIASES_MAX: u16 = 64;

/// How long a client may take to connect, and to take what is sent to it.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// Load averages above which rmqtt would turn clients away; checked by nobody, see [`MqttServer::start`].
const NO_LOAD_LIMIT: f32 = f32::MAX;

/// The MQTT port, open.
pub(super) struct MqttServer {
    local_addr: SocketAddr,
    context: ServerContext,
    router: Arc<Router>,
    accepting: AbortHandle,
}

impl MqttServer {
    pub(super) async fn start(
        addr: SocketAddr,
        options: &Options,
        auth: Auth,
        router: Arc<Router>,
    ) -> Result<Self, StartError> {
        let failed = |error: rmqtt::Error| StartError::Bind { addr, source: io_error(error) };
        let listener = listener(addr, options).bind().and_then(|listener| listener.tcp()).map_err(failed)?;
        let local_addr = listener.local_addr().map_err(failed)?;

        // The check for a busy machine is off: its state is shared by all brokers of the process, and a
        // gateway under load must not turn away the clients that its devices' data is for.
        let context = ServerContext::new()
            .node(Node::new(NODE, NO_LOAD_LIMIT, NO_LOAD_LIMIT, Duration::MAX))
            .busy_check_enable(false)
            .mqtt_max_sessions(isize::try_from(options.clients_max).unwrap_or(isize::MAX))
            .build()
            .await;
        let extends = &context.extends;
        let sessions = DefaultShared::new(Some(context.clone()));
        *extends.shared_mut().await = Box::new(LibraryShared::new(sessions, router.clone()));
        *extends.router_mut().await = Box::new(LibraryRouter::new(router.clone()));
        *extends.retain_mut().await = Box::new(LibraryRetained::new(router.clone()));
        *extends.shared_subscription_mut().await = Box::new(LibraryShares);
        AccessHooks::new(auth, router.clone()).register(&context).await;

        let server = rmqtt::server::MqttServer::new(context.clone()).listener_by_id(listener, LISTENER).build();
        let accepting = tokio::spawn(async move {
            if let Err(error) = server.run().await {
                tracing::error!(%error, "the MQTT port has failed");
            }
        });
        tracing::info!(addr = %local_addr, "MQTT port open");
        Ok(Self { local_addr, context, router, accepting: accepting.abort_handle() })
    }

    pub(super) fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Closes the port, then the sessions.
    pub(super) async fn stop(&self) {
        self.accepting.abort();
        let ends = self.router.clients().ids().into_iter().map(|id| async {
            let mut entry = self.context.extends.shared().await.entry(id);
            if let Err(error) = entry.kick(true, true, true).await {
                tracing::debug!(%error, "the session of an MQTT client did not end in time");
            }
        });
        futures::future::join_all(ends).await;
    }
}

fn listener(addr: SocketAddr, options: &Options) -> Builder {
    Builder::new()
        .name("polygate")
        .laddr(addr)
        // A restarted gateway gets its port back while old connections still linger in the kernel.
        .reuseaddr(Some(true))
        .nodelay(true)
        // The gate decides who comes in; without this rmqtt would let anonymous clients pass it.
        .allow_anonymous(false)
        .max_packet_size(options.packet_bytes_max)
        .max_topic_levels(TOPIC_LEVELS_MAX)
        .max_subscriptions(options.subscriptions_max)
        .max_mqueue_len(options.client_queue_max)
        .max_inflight(INFLIGHT_MAX)
        .max_topic_aliases(TOPIC_ALIASES_MAX)
        .session_expiry_interval(options.session_expiry_max)
        .max_session_expiry_interval(options.session_expiry_max)
        // Zero: a message expires when its publisher says so, and else not.
        .message_expiry_interval(Duration::ZERO)
        .handshake_timeout(HANDSHAKE_TIMEOUT)
        .send_timeout(SEND_TIMEOUT)
}

fn io_error(error: rmqtt::Error) -> io::Error {
    error.downcast::<io::Error>().unwrap_or_else(|other| io::Error::other(other.to_string()))
}
