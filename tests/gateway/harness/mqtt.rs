use std::net::SocketAddr;
use std::time::Duration;

use rumqttc::{AsyncClient, Event, MqttOptions, Packet, Publish, QoS};
use tokio::sync::mpsc;

use super::within;

/// An ordinary MQTT client.
pub struct MqttClient {
    client: AsyncClient,
    acks: mpsc::Receiver<()>,
    messages: mpsc::Receiver<Publish>,
}

impl MqttClient {
    pub async fn connect(broker: SocketAddr, client_id: &str) -> Self {
        Self::connect_with(broker, client_id, None).await.unwrap()
    }

    /// With a user name and a password; an error if the broker refuses.
    pub async fn connect_with(
        broker: SocketAddr,
        client_id: &str,
        credentials: Option<(&str, &str)>,
    ) -> Result<Self, rumqttc::ConnectionError> {
        let mut options = MqttOptions::new(client_id, broker.ip().to_string(), broker.port());
        options.set_keep_alive(Duration::from_secs(30));
        options.set_max_packet_size(4 << 20, 4 << 20);
        if let Some((username, password)) = credentials {
            options.set_credentials(username, password);
        }
        let (client, mut events) = AsyncClient::new(options, 64);
        within("the broker's CONNACK", async {
            loop {
                if let Event::Incoming(Packet::ConnAck(_)) = events.poll().await? {
                    return Ok::<(), rumqttc::ConnectionError>(());
                }
            }
        })
        .await?;
        let (ack, acks) = mpsc::channel(1024);
        let (message, messages) = mpsc::channel(65_536);
        tokio::spawn(async move {
            while let Ok(event) = events.poll().await {
                let reported = match event {
                    Event::Incoming(Packet::Publish(publish)) => message.send(publish).await.is_ok(),
                    Event::Incoming(Packet::SubAck(_) | Packet::PubAck(_) | Packet::UnsubAck(_)) => {
                        ack.send(()).await.is_ok()
                    }
                    _ => true,
                };
                if !reported {
                    break;
                }
            }
        });
        Ok(Self { client, acks, messages })
    }

    pub async fn subscribe(&mut self, filter: &str) {
        self.client.subscribe(filter, QoS::AtLeastOnce).await.unwrap();
        within("the broker's SUBACK", self.acks.recv()).await.unwrap();
    }

    /// Publishes with QoS 1 and waits for the PUBACK.
    pub async fn publish(&mut self, topic: &str, payload: impl Into<Vec<u8>>) {
        self.client.publish(topic, QoS::AtLeastOnce, false, payload).await.unwrap();
        within("the broker's PUBACK", self.acks.recv()).await.unwrap();
    }

    pub async fn publish_retained(&mut self, topic: &str, payload: impl Into<Vec<u8>>) {
        self.client.publish(topic, QoS::AtLeastOnce, true, payload).await.unwrap();
        within("the broker's PUBACK", self.acks.recv()).await.unwrap();
    }

    pub async fn next(&mut self) -> Publish {
        within("a message", self.messages.recv()).await.unwrap()
    }

    /// The next message's topic and payload.
    pub async fn next_text(&mut self) -> (String, String) {
        let publish = self.next().await;
        (publish.topic, String::from_utf8(publish.payload.to_vec()).unwrap())
    }
}
