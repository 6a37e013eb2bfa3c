//! MQTT client of the demo: receives positions like any MQTT client.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::byte_budget::ByteBudget;
use crate::conn::QoS;
use crate::mqtt::outbound::Bounds;
use crate::mqtt::packet::{Connect, Publish, SubscribeFilter, SubscriptionOptions};
use crate::mqtt::{Reason, Version};
use crate::mqtt_client::{self, ConnectError, Requests, Session};

/// The topics of positions.
const FILTER: &str = "jt808/+/location";

/// The printed fields of a position.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Position {
    phone: String,
    time: Option<String>,
    latitude: f64,
    longitude: f64,
    speed_kmh: f64,
    course_deg: u16,
    altitude_m: i32,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (north, east) = (if self.latitude < 0.0 { 'S' } else { 'N' }, if self.longitude < 0.0 { 'W' } else { 'E' });
        write!(
            f,
            "  {:<14} {:<20}  {:>9.5} {north} {:>10.5} {east}  {:>5} km/h  {:>3}°  {:>4} m",
            self.phone,
            self.time.as_deref().unwrap_or("no time"),
            self.latitude.abs(),
            self.longitude.abs(),
            self.speed_kmh,
            self.course_deg,
            self.altitude_m,
        )
    }
}

/// How often the client shows the broker that it lives, in seconds.
const KEEPALIVE_S: u16 = 30;

/// The largest packet that is taken.
const PACKET_BYTES_MAX: u32 = 1024 * 1024;

/// The MQTT client could not subscribe.
#[derive(Debug, thiserror::Error)]
pub(super) enum SubscribeError {
    #[error("cannot subscribe to {FILTER}")]
    Connect(#[from] std::io::Error),
    #[error("cannot subscribe to {FILTER}")]
    Refused(#[from] ConnectError),
    #[error("the broker refused a subscription to {FILTER}: {0}")]
    NotGranted(Reason),
    #[error("the broker did not grant {FILTER} within {} s", .0.as_secs())]
    Timeout(Duration),
}

/// Subscribes, and returns once the broker has granted it. Positions arrive until the receiver is dropped.
pub(super) async fn subscribe(
    broker: SocketAddr,
    waiting_max: usize,
    timeout: Duration,
) -> Result<mpsc::Receiver<Position>, SubscribeError> {
    let connect = Connect { keepalive_s: KEEPALIVE_S, ..Connect::new(Version::V5, "demo") };
    let connected = async {
        let socket = TcpStream::connect(broker).await?;
        Ok::<_, SubscribeError>(mqtt_client::connect(Box::new(socket), connect, PACKET_BYTES_MAX).await?)
    };
    let link = tokio::time::timeout(timeout, connected).await.map_err(|_| SubscribeError::Timeout(timeout))??;

    let (positions, receiver) = mpsc::channel(waiting_max);
    let (requests, mut queue) = Requests::new(1);
    let closed = positions.clone();
    let handle = requests.clone();
    tokio::spawn(async move {
        // It publishes nothing.
        let bounds = Bounds { messages_max: 1, bytes_max: 1, inflight_max: 1 };
        let mut session = Session::new(bounds, Arc::new(ByteBudget::new(0)), Counter::default());
        let mut deliver = |publish: Publish| show(&publish, &positions);
        mqtt_client::serve(link, &mut session, Vec::new(), &mut queue, &mut deliver).await;
    });
    tokio::spawn(async move {
        closed.closed().await;
        handle.disconnect().await;
    });
    let filter = SubscribeFilter { filter: FILTER.into(), options: SubscriptionOptions::new(QoS::AtLeastOnce) };
    let granted = tokio::time::timeout(timeout, requests.subscribe(vec![filter])).await.ok().flatten();
    match granted.as_deref() {
        Some([reason]) if reason.is_error() => Err(SubscribeError::NotGranted(*reason)),
        Some(_) => Ok(receiver),
        None => Err(SubscribeError::Timeout(timeout)),
    }
}

/// Hands a position on; one that finds no room is left out of what is printed, with a warning.
fn show(publish: &Publish, positions: &mpsc::Sender<Position>) {
    match serde_json::from_slice(&publish.payload) {
        Ok(position) => {
            if let Err(mpsc::error::TrySendError::Full(_)) = positions.try_send(position) {
                tracing::warn!(topic = ?publish.topic, "position not shown: too many wait to be printed");
            }
        }
        Err(error) => tracing::warn!(topic = ?publish.topic, %error, "not a position"),
    }
}
