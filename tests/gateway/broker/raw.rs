//! A peer that sends the bytes of a test and shows the packets of the broker.

use std::net::SocketAddr;

use polygate::testing::mqtt::decode::Decoder;
use polygate::testing::mqtt::packet::{ConnAck, Publish};
use polygate::testing::mqtt::{Packet, Reason, Version};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use super::harness::soon;

pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

pub struct RawClient {
    stream: Box<dyn Stream>,
    decoder: Decoder,
}

/// A CONNECT of MQTT 5.0 with a keep alive of 0: flags, properties and the rest of the payload are the test's.
pub fn connect_v5(client_id: &str, flags: u8, properties: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut body = b"\x00\x04MQTT\x05".to_vec();
    body.extend_from_slice(&[flags, 0, 0, properties.len() as u8]);
    body.extend_from_slice(properties);
    body.extend_from_slice(&(client_id.len() as u16).to_be_bytes());
    body.extend_from_slice(client_id.as_bytes());
    body.extend_from_slice(payload);
    packet(0x10, &body)
}

pub fn connect_v311(client_id: &str, flags: u8) -> Vec<u8> {
    let mut body = b"\x00\x04MQTT\x04".to_vec();
    body.extend_from_slice(&[flags, 0, 0]);
    body.extend_from_slice(&(client_id.len() as u16).to_be_bytes());
    body.extend_from_slice(client_id.as_bytes());
    packet(0x10, &body)
}

/// A packet of the given first byte and body.
pub fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![first];
    let mut length = body.len();
    loop {
        let byte = (length & 0x7F) as u8;
        length >>= 7;
        packet.push(if length > 0 { byte | 0x80 } else { byte });
        if length == 0 {
            break;
        }
    }
    packet.extend_from_slice(body);
    packet
}

/// SUBSCRIBE of MQTT 5.0 to one filter.
pub fn subscribe_v5(packet_id: u16, properties: &[u8], filter: &str, options: u8) -> Vec<u8> {
    let mut body = packet_id.to_be_bytes().to_vec();
    body.push(properties.len() as u8);
    body.extend_from_slice(properties);
    body.extend_from_slice(&(filter.len() as u16).to_be_bytes());
    body.extend_from_slice(filter.as_bytes());
    body.push(options);
    packet(0x82, &body)
}

/// PUBLISH of MQTT 5.0; `first` has the flags, and a packet identifier is written when it has a QoS.
pub fn publish_v5(first: u8, topic: &str, packet_id: u16, properties: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut body = (topic.len() as u16).to_be_bytes().to_vec();
    body.extend_from_slice(topic.as_bytes());
    if first & 0b0110 != 0 {
        body.extend_from_slice(&packet_id.to_be_bytes());
    }
    body.push(properties.len() as u8);
    body.extend_from_slice(properties);
    body.extend_from_slice(payload);
    packet(first, &body)
}

impl RawClient {
    pub async fn open(addr: SocketAddr, version: Version) -> Self {
        Self::over(TcpStream::connect(addr).await.unwrap(), version)
    }

    pub fn over(stream: impl Stream + 'static, version: Version) -> Self {
        Self { stream: Box::new(stream), decoder: Decoder::client(version, 1 << 20) }
    }

    /// Connects with MQTT 5.0, a clean start and nothing else.
    pub async fn v5(addr: SocketAddr, client_id: &str) -> Self {
        Self::v5_with(addr, &connect_v5(client_id, 0x02, &[], &[])).await.0
    }

    pub async fn v5_with(addr: SocketAddr, connect: &[u8]) -> (Self, ConnAck) {
        let mut client = Self::open(addr, Version::V5).await;
        client.send(connect).await;
        let connack = client.connack().await;
        assert_eq!(connack.reason, Reason::SUCCESS);
        (client, connack)
    }

    pub async fn v311(addr: SocketAddr, client_id: &str) -> Self {
        let mut client = Self::open(addr, Version::V311).await;
        client.send(&connect_v311(client_id, 0x02)).await;
        assert_eq!(client.connack().await.reason, Reason::SUCCESS);
        client
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        soon("the broker to read", self.stream.write_all(bytes)).await.unwrap();
    }

    /// The next packet; `None` when the broker has closed the connection.
    pub async fn next(&mut self) -> Option<Packet> {
        let mut buffer = [0; 4096];
        loop {
            if let Some(packet) = self.decoder.next_packet().unwrap() {
                return Some(packet);
            }
            match soon("a packet", self.stream.read(&mut buffer)).await {
                Ok(0) | Err(_) => return None,
                Ok(count) => self.decoder.push(&buffer[..count]),
            }
        }
    }

    pub async fn packet(&mut self) -> Packet {
        self.next().await.expect("a packet, and the connection was closed")
    }

    pub async fn connack(&mut self) -> ConnAck {
        match self.packet().await {
            Packet::ConnAck(connack) => *connack,
            other => panic!("expected a CONNACK, got {other:?}"),
        }
    }

    pub async fn publish(&mut self) -> Publish {
        match self.packet().await {
            Packet::Publish(publish) => publish,
            other => panic!("expected a PUBLISH, got {other:?}"),
        }
    }

    /// The reason codes of a SUBACK.
    pub async fn suback(&mut self) -> Vec<Reason> {
        match self.packet().await {
            Packet::SubAck(suback) => suback.reasons,
            other => panic!("expected a SUBACK, got {other:?}"),
        }
    }

    /// Sends a SUBSCRIBE of MQTT 5.0 and takes a success.
    pub async fn subscribe(&mut self, filter: &str, options: u8) {
        self.send(&subscribe_v5(9, &[], filter, options)).await;
        assert_eq!(self.suback().await, [Reason(options & 3)]);
    }

    /// Waits until the broker has handled everything that was sent.
    pub async fn ping(&mut self) {
        self.send(b"\xc0\x00").await;
        assert_eq!(self.packet().await, Packet::PingResp);
    }

    /// Takes so many PUBACKs.
    pub async fn pubacks(&mut self, count: usize) {
        for _ in 0..count {
            let packet = self.packet().await;
            assert!(matches!(packet, Packet::PubAck(_)), "expected a PUBACK, got {packet:?}");
        }
    }

    /// The reason of the DISCONNECT after which the broker closes the connection.
    pub async fn disconnected(&mut self) -> Reason {
        match self.packet().await {
            Packet::Disconnect(disconnect) => {
                self.closed().await;
                disconnect.reason
            }
            other => panic!("expected a DISCONNECT, got {other:?}"),
        }
    }

    /// The broker closes the connection without a word.
    pub async fn closed(&mut self) {
        assert_eq!(self.next().await, None);
    }
}
