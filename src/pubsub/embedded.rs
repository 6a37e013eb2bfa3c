//! The broker inside of the process.
//!
//! Devices are entries in our own index, `routes`: no task, no channel and no MQTT session for each of
//! them. rmqtt serves the MQTT port; its clients' subscriptions live in the same index, and its messages
//! take the same way as the devices', through the `router`. So a share can have both kinds of members, and
//! a device and an MQTT client with one client id never meet.
//!
//! Owns: the index, the retained messages, the MQTT port. Ends with [`Broker::shutdown`]. Keeps nothing
//! on disk. Bounds: see [`Options`].

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prometheus_client::metrics::counter::Counter;

use crate::auth::Auth;
use crate::conn::registry::Mailbox;
use crate::conn::{ClientInfo, PeerAddr, QoS};

use super::{Error, GATEWAY};

mod clients;
mod device;
mod mqtt_server;
mod retained;
mod router;
mod routes;

pub(crate) use device::Session;
use mqtt_server::MqttServer;
use router::{Origin, Publication, Router};

/// How the broker runs. [`Options::default`] has no MQTT port.
#[derive(Clone, Debug)]
pub struct Options {
    /// `Message.node` of every message.
    pub node: String,
    /// Where ordinary MQTT clients connect, MQTT 3.1.1 and 5.0 over TCP; none without it. Port 0 takes a
    /// free one; see [`Broker::local_addr`].
    pub bind: Option<SocketAddr>,
    /// The largest MQTT packet that is taken in, in bytes, up to 268,435,455; payloads of devices are
    /// held to the same number. 1 MiB by default.
    pub packet_bytes_max: u32,
    /// Subscriptions of one device or MQTT client, `1..`. 10,000 by default.
    pub subscriptions_max: usize,
    /// MQTT clients, connected or with a session that waits for them, `1..`. 100,000 by default.
    pub clients_max: usize,
    /// Messages that wait for one MQTT client, `1..`; more are shed and counted, those of QoS 0 first.
    /// One that is larger than 16 KiB counts as several. 1,000 by default.
    pub client_queue_max: usize,
    /// How long the session of an MQTT client may outlive its connection. A client of MQTT 5.0 says how
    /// long it wants, one of MQTT 3.1.1 without a clean session gets all of it. One day by default.
    pub session_expiry_max: Duration,
    /// Retained messages; more are passed on but not kept, and counted. 100,000 by default.
    pub retained_max: usize,
    /// Memory of retained messages, in bytes; more are not kept. 256 MiB by default.
    pub retained_bytes_max: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            node: "polygate".to_owned(),
            bind: None,
            packet_bytes_max: 1024 * 1024,
            subscriptions_max: 10_000,
            clients_max: 100_000,
            client_queue_max: 1_000,
            session_expiry_max: Duration::from_secs(24 * 60 * 60),
            retained_max: 100_000,
            retained_bytes_max: 256 * 1024 * 1024,
        }
    }
}

/// Why the broker could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The MQTT port could not be bound.
    #[error("cannot bind the broker's MQTT port on tcp {addr}")]
    Bind {
        /// The address.
        addr: SocketAddr,
        /// What the operating system says.
        #[source]
        source: io::Error,
    },
    /// The operating system's random generator failed.
    #[error("cannot draw a random number for message ids")]
    Random(#[source] getrandom::Error),
}

/// What the broker has refused or shed since its start.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// Messages shed because they found an MQTT client's queue full.
    pub client_dropped: Counter,
    /// Messages not sent to an MQTT 5.0 client because it takes no packet as large as theirs.
    pub client_oversize: Counter,
    /// Messages of MQTT clients that a rule denied to publish, or whose topic is malformed.
    pub publishes_denied: Counter,
    /// Subscriptions of MQTT clients that a rule denied, or whose filter is malformed.
    pub subscribes_denied: Counter,
    /// Retained messages that were passed on but not kept, because the store is full.
    pub retained_refused: Counter,
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
}

/// The broker. Clones share it; it stops with [`shutdown`](Broker::shutdown), not with its last clone.
#[derive(Clone)]
pub struct Broker(Arc<Inner>);

struct Inner {
    router: Arc<Router>,
    edge: Option<MqttServer>,
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broker").field("local_addr", &self.local_addr()).field("stats", &self.stats()).finish()
    }
}

impl Broker {
    /// Starts the broker; MQTT clients can connect when this returns.
    ///
    /// `auth` is asked about MQTT clients.
    ///
    /// # Errors
    ///
    /// [`StartError::Bind`] when `bind` is not free or not allowed, [`StartError::Random`].
    pub async fn start(options: Options, auth: Auth) -> Result<Self, StartError> {
        let router = Arc::new(Router::new(&options).map_err(StartError::Random)?);
        let edge = match options.bind {
            None => None,
            Some(addr) => Some(MqttServer::start(addr, &options, auth, router.clone()).await?),
        };
        Ok(Self(Arc::new(Inner { router, edge })))
    }

    /// Where MQTT clients connect; `None` when there is no MQTT port.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.0.edge.as_ref().map(MqttServer::local_addr)
    }

    /// What has been refused and shed.
    pub fn counters(&self) -> &Counters {
        self.0.router.counters()
    }

    /// What there is at this moment.
    pub fn stats(&self) -> Stats {
        self.0.router.stats()
    }

    /// Stops: closes the MQTT port, ends the sessions of MQTT clients, forgets retained messages.
    ///
    /// Sessions of devices get no messages any more and are told [`Error::Stopped`]; their connections
    /// are not touched. A second call does nothing.
    pub async fn shutdown(&self) {
        if let Some(edge) = &self.0.edge {
            edge.stop().await;
        }
        self.0.router.stop();
    }

    /// [`PubSub::open`](super::PubSub::open)
    pub(super) fn open(&self, client: &ClientInfo, peer: PeerAddr, mailbox: Mailbox) -> Result<Session, Error> {
        Session::open(&self.0.router, client, peer, mailbox)
    }

    /// [`PubSub::publish_as_gateway`](super::PubSub::publish_as_gateway)
    pub(super) fn publish_as_gateway(&self, topic: &str, qos: QoS, payload: Bytes) -> Result<(), Error> {
        let router = &self.0.router;
        router.check_publish(topic, &payload)?;
        router.publish(&Publication { origin: Origin::Local(GATEWAY), topic, qos, payload: &payload });
        Ok(())
    }
}
