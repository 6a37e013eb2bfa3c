//! MQTT client of the demo: receives positions like any MQTT client.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS};
use serde::Deserialize;
use tokio::sync::mpsc;

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

/// The MQTT client could not subscribe.
#[derive(Debug, thiserror::Error)]
pub(super) enum SubscribeError {
    #[error("cannot subscribe to {FILTER}")]
    Refused(#[from] rumqttc::ConnectionError),
    #[error("cannot subscribe to {FILTER}")]
    Client(#[from] rumqttc::ClientError),
    #[error("the broker did not grant {FILTER} within {} s", .0.as_secs())]
    Timeout(Duration),
}

/// Subscribes, and returns once the broker has granted it. Positions arrive until the receiver is dropped.
pub(super) async fn subscribe(
    broker: SocketAddr,
    waiting_max: usize,
    timeout: Duration,
) -> Result<mpsc::Receiver<Position>, SubscribeError> {
    let mut options = MqttOptions::new("demo", broker.ip().to_string(), broker.port());
    options.set_keep_alive(Duration::from_secs(30));
    let (client, mut events) = AsyncClient::new(options, 8);
    client.subscribe(FILTER, QoS::AtLeastOnce).await?;
    let granted = async {
        while !matches!(events.poll().await?, Event::Incoming(Packet::SubAck(_))) {}
        Ok::<(), rumqttc::ConnectionError>(())
    };
    tokio::time::timeout(timeout, granted).await.map_err(|_| SubscribeError::Timeout(timeout))??;

    let (tell, positions) = mpsc::channel(waiting_max);
    tokio::spawn(async move {
        // Without its client the event loop would end.
        let _client = client;
        while let Ok(event) = events.poll().await {
            let Event::Incoming(Packet::Publish(publish)) = event else { continue };
            match serde_json::from_slice(&publish.payload) {
                Ok(position) => {
                    if tell.send(position).await.is_err() {
                        break;
                    }
                }
                Err(error) => tracing::warn!(topic = publish.topic, %error, "not a position"),
            }
        }
    });
    Ok(positions)
}
