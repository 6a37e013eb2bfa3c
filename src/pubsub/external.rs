//! The user's own broker, or cluster of brokers: each device is an MQTT client of it.
//!
//! A device that authenticates is connected to the broker with its client id, user name and password, and the broker
//! decides. One task owns the device's connection to the broker and makes it anew when it is lost: devices keep their
//! sockets, messages of QoS 1 and 2 wait in the outage buffer, subscriptions are made again. New connections keep to a
//! rate and to a number under way at a time, so a broker that comes back is not overrun; the slower it answers, the
//! slower they come.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{OnceCell, Semaphore};
use tokio::task::JoinSet;

use crate::byte_budget::ByteBudget;
use crate::conn::registry::Mailbox;
use crate::conn::{ClientInfo, Message, Password, PeerAddr, QoS};
use crate::mqtt::outbound::Bounds;
use crate::mqtt::packet::{ConnAck, Connect, Publish};
use crate::mqtt::{Reason, Version};
use crate::mqtt_client::{self, ConnectError, Link, Requests};
use crate::rate::{Rate, TokenBucket};
pub(crate) use crate::telemetry::ExternalBrokerMetrics as Counters;

use super::Error;

mod dial;
mod session;
mod url;

pub(crate) use dial::{ClientTls, TlsError};
pub(crate) use session::Session;
pub(crate) use url::ServerUrl;

/// CONNECTs under way at a time. With `connect_rate` it bounds what a broker meets that comes back: one that takes a
/// second for each gets 64 a second, whatever the rate.
const CONNECTS_UNDER_WAY_MAX: usize = 64;

/// Requests of one device that wait for its task.
const REQUESTS_MAX: usize = 16;

/// How often a Server Reference is followed for one connection.
const REDIRECTS_MAX: usize = 3;

/// How the broker is reached.
#[derive(Clone, Debug)]
pub struct Options {
    /// `Message.node` of every message, and `${node}`.
    pub node: String,
    /// The addresses of the broker, at least one; devices are spread over them, and each goes on to the next when one
    /// fails.
    pub urls: Vec<ServerUrl>,
    /// The version that is spoken.
    pub version: Version,
    /// What the broker sees as the client id; `${clientid}` and `${node}` are filled in.
    pub client_id: String,
    /// Local addresses that connections are spread over; without one, the system chooses.
    pub source_addresses: Vec<IpAddr>,
    /// How fast connections are made.
    pub connect_rate: Rate,
    /// How long one may take, from the SYN to the CONNACK.
    pub connect_timeout: Duration,
    /// How long the broker keeps a device's session while its connection is lost; it is a clean one when the device
    /// connects.
    pub session_expiry: Duration,
    /// How often a silent client shows the broker that it lives.
    pub keepalive: Duration,
    /// Messages of one device in flight to the broker, `1..=65_534`; the broker may allow fewer.
    pub inflight_max: u16,
    /// Bytes of messages of QoS 1 and 2 that wait for acknowledgement, of all devices together.
    pub outage_buffer_bytes: usize,
    /// The largest packet that is taken from the broker.
    pub packet_bytes_max: u32,
    /// Whether a Server Reference of the broker is followed (MQTT 5.0 section 4.11).
    pub follow_server_reference: bool,
    /// For `mqtts` and `wss`.
    pub tls: ClientTls,
    /// The gateway's own login, for messages of which no device is the origin.
    pub login: Option<(String, Password)>,
}

/// Why the broker could not be used.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The TLS settings cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The operating system's random generator failed.
    #[error("cannot draw a random number for message ids")]
    Random(#[source] getrandom::Error),
}

/// The broker. Clones share it.
#[derive(Clone)]
pub struct Broker(Arc<Inner>);

pub(crate) struct Inner {
    options: Options,
    dialer: dial::Dialer,
    node: Arc<str>,
    /// The first half of all message ids.
    epoch: u64,
    messages: AtomicU64,
    next_url: AtomicUsize,
    budget: Arc<ByteBudget>,
    pace: Mutex<TokenBucket>,
    under_way: Semaphore,
    counters: Counters,
    /// The gateway's own client, connected when it is first needed.
    own: OnceCell<Requests>,
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broker").field("urls", &self.0.options.urls).finish_non_exhaustive()
    }
}

/// What a device is to the broker.
#[derive(Clone)]
pub(crate) struct Login {
    client_id: Box<str>,
    username: Option<Box<str>>,
    password: Option<Password>,
}

impl Broker {
    /// Makes no connection yet.
    ///
    /// # Errors
    ///
    /// [`StartError`].
    pub fn new(options: Options, counters: Counters) -> Result<Self, StartError> {
        Ok(Self(Arc::new(Inner {
            dialer: dial::Dialer::new(&options.tls, options.source_addresses.clone())?,
            node: options.node.as_str().into(),
            epoch: getrandom::u64().map_err(StartError::Random)?,
            messages: AtomicU64::new(0),
            next_url: AtomicUsize::new(0),
            budget: Arc::new(ByteBudget::new(options.outage_buffer_bytes)),
            pace: Mutex::new(TokenBucket::full(Instant::now())),
            under_way: Semaphore::new(CONNECTS_UNDER_WAY_MAX),
            counters,
            own: OnceCell::new(),
            options,
        })))
    }

    /// [`PubSub::open`](super::PubSub::open)
    pub(super) async fn open(
        &self,
        client: &ClientInfo,
        password: Option<&Password>,
        peer: PeerAddr,
        mailbox: Mailbox,
    ) -> Result<Session, Error> {
        let inner = &self.0;
        let client_id =
            inner.options.client_id.replace("${clientid}", &client.client_id).replace("${node}", &inner.node);
        let login = Login {
            client_id: client_id.into(),
            username: Some(client.username.as_str()).filter(|name| !name.is_empty()).map(Into::into),
            password: password.cloned(),
        };
        // In a task of its own: the caller may run on the small stack of a guest's fiber, and a TLS handshake is deep. A
        // set, because it ends the task if the caller is dropped.
        let inner = Arc::clone(inner);
        let mut opening = JoinSet::new();
        opening.spawn(async move { Session::open(&inner, login, peer, mailbox).await });
        match opening.join_next().await {
            Some(Ok(opened)) => opened,
            Some(Err(error)) => Err(Error::Unreachable(error.to_string())),
            None => Err(Error::Stopped),
        }
    }

    /// [`PubSub::publish_as_gateway`](super::PubSub::publish_as_gateway)
    pub(super) async fn publish_as_gateway(&self, topic: &str, qos: QoS, payload: Bytes) -> Result<(), Error> {
        check_topic(topic)?;
        let own = self.0.own.get_or_init(async || session::start_own(&self.0)).await;
        own.publish(topic, qos, payload, false).await.map(drop).map_err(Error::from)
    }
}

/// Whether a topic can be published to at all.
fn check_topic(topic: &str) -> Result<(), Error> {
    crate::topic::check_name(topic).map_err(Error::from)
}

/// Why no connection to the broker came about.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// The broker could not be reached.
    #[error("cannot reach the broker at {url}: {why}")]
    Unreachable { url: String, why: String },
    /// The broker has refused.
    #[error("the broker refused the client: {0}")]
    Refused(Reason),
    /// The broker has named another one.
    #[error("the broker has moved to {0}")]
    Moved(ServerUrl),
}

/// A connection to the broker.
pub(crate) struct Connected {
    link: Link,
    url: ServerUrl,
}

impl Inner {
    /// The address that the next device begins with.
    fn next_url(&self) -> usize {
        self.next_url.fetch_add(1, Ordering::Relaxed) % self.options.urls.len()
    }

    fn bounds(&self) -> Bounds {
        Bounds {
            messages_max: usize::MAX,
            bytes_max: self.options.outage_buffer_bytes,
            inflight_max: self.options.inflight_max,
        }
    }

    fn keepalive_s(&self) -> u16 {
        u16::try_from(self.options.keepalive.as_secs()).unwrap_or(u16::MAX)
    }

    fn connect_packet(&self, login: &Login, clean_start: bool) -> Connect {
        let expiry_s = u32::try_from(self.options.session_expiry.as_secs()).unwrap_or(u32::MAX);
        Connect {
            // MQTT 3.1.1 has no expiry: a session that is kept would stay for ever once its device is gone.
            clean_start: clean_start || self.options.version == Version::V311,
            session_expiry_s: (expiry_s > 0).then_some(expiry_s),
            keepalive_s: self.keepalive_s(),
            username: login.username.clone(),
            password: login.password.as_ref().map(|password| Bytes::copy_from_slice(password.expose())),
            ..Connect::new(self.options.version, &login.client_id)
        }
    }

    /// One attempt at one address: waits for its turn, connects, waits for the CONNACK.
    async fn attempt(&self, url: &ServerUrl, login: &Login, clean_start: bool) -> Result<Connected, OpenError> {
        let unreachable = |why: String| OpenError::Unreachable { url: url.to_string(), why };
        loop {
            let now = Instant::now();
            let turn = self.pace.lock().take(&self.options.connect_rate, now, 1);
            match turn {
                Ok(()) => break,
                Err(ready) => tokio::time::sleep_until(ready.into()).await,
            }
        }
        let _under_way = self.under_way.acquire().await.map_err(|error| unreachable(error.to_string()))?;
        let connected = async {
            let stream = self.dialer.dial(url).await?;
            let connect = self.connect_packet(login, clean_start);
            mqtt_client::connect(stream, connect, self.options.packet_bytes_max).await
        };
        let timeout = self.options.connect_timeout;
        match tokio::time::timeout(timeout, connected).await {
            Err(_) => Err(unreachable(format!("no CONNACK within {} ms", timeout.as_millis()))),
            Ok(Ok(link)) => Ok(Connected { link, url: url.clone() }),
            Ok(Err(ConnectError::Refused(connack))) => Err(self.refused(url, &connack)),
            Ok(Err(error)) => Err(unreachable(error.to_string())),
        }
    }

    fn refused(&self, url: &ServerUrl, connack: &ConnAck) -> OpenError {
        self.moved(url, connack.reason, connack.server_reference.as_deref())
            .map_or(OpenError::Refused(connack.reason), OpenError::Moved)
    }

    /// Where the broker sends its client, if that is to be followed (MQTT 5.0 section 4.11).
    fn moved(&self, url: &ServerUrl, reason: Reason, reference: Option<&str>) -> Option<ServerUrl> {
        let is_moved = matches!(reason, Reason::USE_ANOTHER_SERVER | Reason::SERVER_MOVED);
        let reference = reference.filter(|_| is_moved && self.options.follow_server_reference)?;
        url.moved_to(reference)
    }

    fn message(&self, publish: Publish) -> Message {
        let number = self.messages.fetch_add(1, Ordering::Relaxed);
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Message {
            node: self.node.clone(),
            id: format!("{:016x}{number:016x}", self.epoch),
            qos: publish.qos,
            // MQTT does not say who the publisher is.
            from: String::new(),
            topic: publish.topic.into(),
            payload: publish.payload,
            timestamp_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
        }
    }
}
