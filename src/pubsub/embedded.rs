//! The broker inside of the process.
//!
//! Devices are entries in the index `routes`: no task, no channel and no MQTT session for each of them. MQTT clients
//! have a session each, which may outlive its connection. Both have their subscriptions in the same index, and both
//! publish through the `router`. Retained messages and sessions are kept on disk by the `journal`. So a share can have both kinds of members, and a device and an MQTT client with one
//! client id never meet.
//!
//! Owns: the index, the retained messages, the sessions, the MQTT listeners, the journal. Ends with
//! [`Broker::shutdown`]. Bounds: see [`Options`].

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::auth::Auth;
use crate::conn::limit::ConnectionLimit;
use crate::conn::registry::Mailbox;
use crate::conn::{ClientInfo, PeerAddr, QoS, SocketKind};
use crate::listener::{self, Admission, Bind, BindError, Datagrams, SocketOptions, flow};
pub(crate) use crate::telemetry::BrokerMetrics as Counters;
use crate::telemetry::Telemetry;

use super::{Error, GATEWAY};

mod clients;
mod device;
mod journal;
mod message;
mod mqtt_server;
mod retained;
mod router;
mod routes;

pub(crate) use device::Session;
pub use journal::Durability;
use journal::Journal;
use message::{Origin, Publication};
use mqtt_server::MqttServer;
use router::Router;
pub(super) use routes::STEPS_MAX as MATCH_STEPS_MAX;

/// How the broker runs. [`Options::default`] has no MQTT port.
#[derive(Clone, Debug)]
pub struct Options {
    /// `Message.node` of every message.
    pub node: String,
    /// Where MQTT clients connect over TCP, with a listener's defaults; none without it. Port 0 takes a free one; see
    /// [`Broker::local_addr`].
    pub bind: Option<SocketAddr>,
    /// More places where MQTT clients connect.
    pub listeners: Vec<MqttListener>,
    /// The largest MQTT packet that is taken in, in bytes, up to 268,435,455; payloads of devices are
    /// held to the same number. 1 MiB by default.
    pub packet_bytes_max: u32,
    /// Subscriptions of one device or MQTT client, `1..`. 10,000 by default.
    pub subscriptions_max: usize,
    /// MQTT clients, connected or with a session that waits for them, `1..`. 100,000 by default.
    pub clients_max: usize,
    /// Sessions of one user name, `1..`; clients without one are not counted here. No bound by default.
    pub sessions_per_user_max: usize,
    /// The longest topic filter of an MQTT client, in bytes. 1 KiB by default.
    pub filter_bytes_max: usize,
    /// Memory of one MQTT client's subscriptions, in bytes, about. 2 MiB by default.
    pub subscription_bytes_max: usize,
    /// Memory of the subscriptions of all MQTT clients, in bytes, about. 256 MiB by default.
    pub all_subscription_bytes_max: usize,
    /// Messages that wait for one MQTT client beside those in flight, `1..`; more are dropped and counted, those of
    /// QoS 0 first. 1,000 by default.
    pub client_queue_max: usize,
    /// Memory of these messages and of those in flight, in bytes. 4 MiB by default.
    pub client_queue_bytes_max: usize,
    /// Memory of the messages that wait for all MQTT clients together, in bytes; a message counts for each client.
    /// 256 MiB by default.
    pub queued_bytes_max: usize,
    /// Messages in flight to one MQTT client, and from one: the broker's Receive Maximum, `1..=65_534`. 128 by
    /// default.
    pub inflight_max: u16,
    /// How long a peer may take from its arrival to its CONNECT. 10 s by default.
    pub connect_timeout: Duration,
    /// The shortest keep alive of an MQTT 5.0 client; one that asks for less gets this one. 0 by default.
    pub keepalive_min: Duration,
    /// Response Information for clients that ask for it; `${clientid}` stands for the client id. None by default.
    pub response_information: Option<Box<str>>,
    /// How long the session of an MQTT client may outlive its connection. A client of MQTT 5.0 says how
    /// long it wants, one of MQTT 3.1.1 without a clean session gets all of it. One day by default.
    pub session_expiry_max: Duration,
    /// The same for clients without a user name; 5 minutes by default.
    pub anonymous_session_expiry_max: Duration,
    /// Retained messages; more are passed on but not kept, and counted. 100,000 by default.
    pub retained_max: usize,
    /// Memory of retained messages, in bytes; more are not kept. 256 MiB by default.
    pub retained_bytes_max: usize,
    /// What survives the end of the process. [`Durability::Periodic`] by default.
    pub durability: Durability,
    /// Where it is kept; without it, nothing is. The directory is made.
    pub state_dir: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            node: "polygate".to_owned(),
            bind: None,
            listeners: Vec::new(),
            packet_bytes_max: 1024 * 1024,
            subscriptions_max: 10_000,
            clients_max: 100_000,
            sessions_per_user_max: usize::MAX,
            filter_bytes_max: 1024,
            subscription_bytes_max: 2 * 1024 * 1024,
            all_subscription_bytes_max: 256 * 1024 * 1024,
            client_queue_max: 1_000,
            client_queue_bytes_max: 4 * 1024 * 1024,
            queued_bytes_max: 256 * 1024 * 1024,
            inflight_max: 128,
            connect_timeout: Duration::from_secs(10),
            keepalive_min: Duration::ZERO,
            response_information: None,
            session_expiry_max: Duration::from_secs(24 * 60 * 60),
            anonymous_session_expiry_max: Duration::from_secs(5 * 60),
            retained_max: 100_000,
            retained_bytes_max: 256 * 1024 * 1024,
            durability: Durability::Periodic,
            state_dir: None,
        }
    }
}

impl Options {
    /// `listeners`, with the one that `bind` is short for.
    fn all_listeners(&self) -> Vec<MqttListener> {
        self.bind.map(MqttListener::tcp).into_iter().chain(self.listeners.iter().cloned()).collect()
    }
}

/// A place where MQTT clients connect.
#[derive(Clone, Debug)]
pub struct MqttListener {
    /// The socket, TCP or TLS, and what a peer must pass.
    pub socket: listener::Options,
    /// Connections at a time, `1..`; more wait in the backlog.
    pub connections_max: usize,
    /// The path of WebSocket; without it, MQTT is spoken right on TCP or TLS.
    pub websocket: Option<Arc<str>>,
    /// The files with its certificates, keys and denied addresses.
    pub files: Vec<PathBuf>,
}

impl MqttListener {
    /// Plain TCP without conditions.
    pub fn tcp(address: SocketAddr) -> Self {
        Self {
            socket: listener::Options {
                name: "broker".into(),
                bind: Bind { transport: SocketKind::Tcp, address },
                backlog: 1024,
                unverified_max: 1024,
                admission: Admission::default(),
                socket_options: SocketOptions::default(),
                given: None,
                datagrams: Datagrams {
                    sockets: 1,
                    flows_max: 1,
                    queue: flow::Bounds { datagrams_max: 1, bytes_max: 1 },
                },
            },
            connections_max: usize::MAX,
            websocket: None,
            files: Vec::new(),
        }
    }

    /// The scheme of its address: `tcp`, `tls`, `ws` or `wss`.
    pub fn transport(&self) -> &'static str {
        match (self.socket.bind.transport.is_secure(), &self.websocket) {
            (false, None) => "tcp",
            (true, None) => "tls",
            (false, Some(_)) => "ws",
            (true, Some(_)) => "wss",
        }
    }
}

/// Why the broker could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listener could not be bound.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The state of an earlier life of the process cannot be read or kept.
    #[error("the broker's state in {} cannot be used", dir.display())]
    State {
        /// Its directory.
        dir: PathBuf,
        /// What failed.
        source: io::Error,
    },
    /// The operating system's random generator failed.
    #[error("cannot draw a random number for message ids")]
    Random(#[source] getrandom::Error),
}

/// What the broker holds at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Sessions of devices.
    pub devices: usize,
    /// Sessions of MQTT clients, connected or not.
    pub clients: usize,
    /// Subscriptions of both.
    pub subscriptions: usize,
    /// Retained messages.
    pub retained: usize,
    /// Bytes of the messages that wait for MQTT clients.
    pub queued_bytes: usize,
    /// Bytes of the subscriptions of MQTT clients.
    pub subscription_bytes: usize,
}

/// The broker. Clones share it; it stops with [`shutdown`](Broker::shutdown), not with its last clone.
#[derive(Clone)]
pub struct Broker(Arc<Inner>);

struct Inner {
    router: Arc<Router>,
    mqtt_server: MqttServer,
    journal: Option<journal::Thread>,
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broker").field("local_addr", &self.local_addr()).field("stats", &self.stats()).finish()
    }
}

/// Makes the router, with the state that was kept, and starts the journal.
fn restore(
    options: &Options,
    auth: &Auth,
    counters: Counters,
) -> Result<(Arc<Router>, Option<journal::Thread>), StartError> {
    let router = |journal| {
        Router::new(options, auth.clone(), counters.clone(), journal).map(Arc::new).map_err(StartError::Random)
    };
    let Some(dir) = options.state_dir.as_ref().filter(|_| options.durability != Durability::None) else {
        return Ok((router(None)?, None));
    };
    let failed = |source| StartError::State { dir: dir.clone(), source };
    let mut opened = Journal::open(dir.clone(), options.durability, counters.journal.clone()).map_err(failed)?;
    let router = router(Some(opened.journal.clone()))?;
    router.restore(&mut opened.image, Instant::now());
    let thread = opened.start(&router).map_err(failed)?;
    Ok((router, Some(thread)))
}

impl Broker {
    /// Starts the broker; MQTT clients can connect when this returns.
    ///
    /// `auth` is asked about MQTT clients. Their connections count against `limit`, if there is one.
    ///
    /// # Errors
    ///
    /// [`StartError::Bind`] when an address is not free or not allowed, [`StartError::State`], [`StartError::Random`].
    pub async fn start(
        options: Options,
        auth: Auth,
        telemetry: &Telemetry,
        limit: Option<&ConnectionLimit>,
    ) -> Result<Self, StartError> {
        let counters = Counters::default();
        let (router, journal) = restore(&options, &auth, counters)?;
        let mqtt_server = MqttServer::start(&options, auth, router.clone(), telemetry, limit)?;
        telemetry.broker(router.counters());
        Ok(Self(Arc::new(Inner { router, mqtt_server, journal })))
    }

    /// Where MQTT clients connect first; `None` when there is no MQTT listener.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.0.mqtt_server.bound().first().map(|(_, address)| *address)
    }

    /// The addresses of all MQTT listeners, by name.
    pub fn bound(&self) -> &[(Arc<str>, SocketAddr)] {
        self.0.mqtt_server.bound()
    }

    /// Follows a configuration that was read again, as far as its MQTT listeners keep their addresses: new connections
    /// meet its access rules, limits and certificates. Everything else takes a restart.
    pub fn follow(&self, options: &Options) {
        self.0.mqtt_server.follow(options);
    }

    /// What has been refused and shed.
    pub fn counters(&self) -> &Counters {
        self.0.router.counters()
    }

    /// What there is at this moment.
    pub fn stats(&self) -> Stats {
        self.0.router.stats()
    }

    /// Stops: closes the MQTT port, writes the state a last time, lets go of sessions and retained messages.
    ///
    /// Sessions of devices get no messages any more, and their calls return [`Error::Stopped`]; their connections
    /// are not touched. A second call does nothing.
    pub async fn shutdown(&self) {
        self.0.mqtt_server.stop().await;
        if let (Some(journal), Some(thread)) = (self.0.router.journal(), &self.0.journal) {
            journal.stop();
            thread.join().await;
        }
        self.0.router.stop();
    }

    /// Serves an MQTT client over a stream of the caller, to its end: for fuzzing, without a socket.
    pub async fn serve(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, peer: PeerAddr) {
        self.0.mqtt_server.serve(Box::new(stream), peer).await;
    }

    /// [`PubSub::open`](super::PubSub::open)
    pub(super) fn open(&self, client: &ClientInfo, peer: PeerAddr, mailbox: Mailbox) -> Result<Session, Error> {
        Session::open(&self.0.router, client, peer, mailbox)
    }

    /// [`PubSub::publish_as_gateway`](super::PubSub::publish_as_gateway)
    pub(super) fn publish_as_gateway(&self, topic: &str, qos: QoS, payload: Bytes) -> Result<(), Error> {
        let router = &self.0.router;
        router.check_publish(topic, &payload)?;
        router.publish(&Publication {
            origin: Origin::Local(GATEWAY),
            topic,
            qos,
            retain: false,
            payload: &payload,
            properties: None,
        });
        Ok(())
    }
}
