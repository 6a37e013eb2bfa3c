use std::net::SocketAddr;

use serde_json::{Value, json};

use super::peer::RawPeer;
use super::within;

/// A device that speaks the JSON protocol of the echo handlers: one object a write, no delimiter.
pub struct EchoDevice {
    peer: RawPeer,
    buffer: Vec<u8>,
}

impl EchoDevice {
    /// Over any transport.
    pub fn over(peer: RawPeer) -> Self {
        Self { peer, buffer: Vec::new() }
    }

    /// Over plain TCP.
    pub async fn connect(address: SocketAddr) -> Self {
        Self::over(RawPeer::connect(address).await)
    }

    /// Connects over plain TCP and authenticates.
    pub async fn login(address: SocketAddr, client_id: &str) -> Self {
        let mut device = Self::connect(address).await;
        device.log_in(client_id).await;
        device
    }

    /// Authenticates.
    pub async fn log_in(&mut self, client_id: &str) {
        let connect = json!({"type": 1, "clientinfo": {"proto_name": "echo", "proto_ver": "1", "clientid": client_id}});
        assert_eq!(self.ask(connect).await, json!({"type": 2, "code": 0}));
    }

    pub fn peer(&mut self) -> &mut RawPeer {
        &mut self.peer
    }

    pub async fn send(&mut self, object: &Value) {
        self.peer.send(object.to_string()).await;
    }

    /// Sends, and returns the answer.
    pub async fn ask(&mut self, object: Value) -> Value {
        self.send(&object).await;
        self.receive().await
    }

    pub async fn publish(&mut self, topic: &str, payload: &str) -> Value {
        self.ask(json!({"type": 3, "topic": topic, "qos": 0, "payload": payload})).await
    }

    pub async fn subscribe(&mut self, filter: &str) -> Value {
        self.ask(json!({"type": 5, "topic": filter, "qos": 1})).await
    }

    /// The next object.
    pub async fn receive(&mut self) -> Value {
        within("an object from the gateway", async {
            loop {
                let mut objects = serde_json::Deserializer::from_slice(&self.buffer).into_iter::<Value>();
                if let Some(Ok(object)) = objects.next() {
                    let used = objects.byte_offset();
                    self.buffer.drain(..used);
                    return object;
                }
                let bytes = self.peer.read_some().await.unwrap();
                assert!(!bytes.is_empty(), "closed while an object was awaited; so far {:?}", self.buffer);
                self.buffer.extend_from_slice(&bytes);
            }
        })
        .await
    }

    pub fn into_peer(self) -> RawPeer {
        self.peer
    }

    pub fn reset(self) {
        self.peer.reset();
    }

    pub async fn expect_closed(&mut self) {
        assert!(self.buffer.is_empty(), "unexpected {:?}", String::from_utf8_lossy(&self.buffer));
        self.peer.expect_closed().await;
    }
}
