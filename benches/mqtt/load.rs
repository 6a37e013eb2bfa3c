//! MQTT clients that cost little: all packets of a case have one size, so they are counted and not parsed.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::PATIENCE;
use crate::server::Server;

const PAYLOAD: [u8; 64] = [b'x'; 64];

/// Messages that are on their way at a time under load: as many as mosquitto keeps in flight to a client by default.
const WINDOW: usize = 20;

#[derive(Clone, Copy)]
pub enum Case {
    /// One publisher, one subscriber, and so many messages on their way at a time.
    One { qos: u8, window: usize },
    /// One publisher, 1,000 subscribers.
    FanOut,
    /// 20,000 filters with a wildcard, of 20 subscribers; each message matches one.
    Wildcards,
}

impl Case {
    pub const ALL: [Self; 6] = [
        Self::One { qos: 0, window: 1 },
        Self::One { qos: 0, window: WINDOW },
        Self::One { qos: 1, window: 1 },
        Self::One { qos: 1, window: WINDOW },
        Self::FanOut,
        Self::Wildcards,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::One { qos: 0, window: 1 } => "1 subscriber, QoS 0, 1 at a time",
            Self::One { qos: 0, .. } => "1 subscriber, QoS 0, 20 at a time",
            Self::One { window: 1, .. } => "1 subscriber, QoS 1, 1 at a time",
            Self::One { .. } => "1 subscriber, QoS 1, 20 at a time",
            Self::FanOut => "1,000 subscribers, QoS 0",
            Self::Wildcards => "20,000 filters with a wildcard, QoS 0",
        }
    }

    /// Microseconds of CPU per delivered message.
    pub async fn run(self, server: &Server) -> f64 {
        let window = if let Self::One { window, .. } = self { window } else { WINDOW };
        let (mut subscribers, topics, messages, qos) = match self {
            Self::One { qos, window: 1 } => (subscribers(server, 1, 1, qos).await, 1, 40_000, qos),
            Self::One { qos, .. } => (subscribers(server, 1, 1, qos).await, 1, 200_000, qos),
            Self::FanOut => (subscribers(server, 1_000, 0, 0).await, 1, 200, 0),
            Self::Wildcards => (subscribers(server, 20, 1_000, 0).await, 20_000, 100_000, 0),
        };
        let mut publisher = connect(server, "publisher", true).await;
        let before = server.cpu();
        let mut delivered = 0;
        for first in (0..messages).step_by(window) {
            let sent: Vec<usize> = (first..first + window).map(|number| number * 7_919 % topics).collect();
            let packets: Vec<u8> =
                sent.iter().zip(1..).flat_map(|(topic, id)| publish(&topic_name(*topic), qos, id, 0)).collect();
            write(&mut publisher, &packets).await;
            if qos == 1 {
                read(&mut publisher, 4 * window).await;
            }
            let length = publish(&topic_name(0), qos, 1, 0).len();
            if topics == 1 {
                for subscriber in &mut subscribers {
                    receive(subscriber, window, length, qos).await;
                }
                delivered += window * subscribers.len();
            } else {
                for (number, subscriber) in subscribers.iter_mut().enumerate() {
                    let count = sent.iter().filter(|topic| *topic / 1_000 == number).count();
                    receive(subscriber, count, length, qos).await;
                }
                delivered += window;
            }
        }
        (server.cpu() - before).as_secs_f64() * 1e6 / delivered as f64
    }
}

/// Of the same length for all.
fn topic_name(number: usize) -> String {
    format!("devices/{number:05}/cmd/x")
}

/// Subscribers with so many filters each; with 0 all have the same one.
async fn subscribers(server: &Server, count: usize, filters: usize, qos: u8) -> Vec<TcpStream> {
    let mut subscribers = Vec::with_capacity(count);
    for number in 0..count {
        let mut stream = connect(server, &format!("s{number}"), true).await;
        for filter in 0..filters.max(1) {
            let text = match filters {
                0 => topic_name(0),
                _ => format!("devices/{:05}/+/x", number * filters + filter),
            };
            subscribe(&mut stream, &text, qos).await;
        }
        subscribers.push(stream);
    }
    subscribers
}

async fn connect(server: &Server, id: &str, clean: bool) -> TcpStream {
    let mut stream = TcpStream::connect(server.address).await.expect("the server accepts");
    stream.set_nodelay(true).expect("an option of the socket");
    let mut packet = vec![0x10, 12 + id.len() as u8];
    packet.extend_from_slice(b"\x00\x04MQTT\x04");
    packet.extend_from_slice(&[if clean { 2 } else { 0 }, 0, 0, 0, id.len() as u8]);
    packet.extend_from_slice(id.as_bytes());
    write(&mut stream, &packet).await;
    assert_eq!(read(&mut stream, 4).await[3], 0, "CONNACK");
    stream
}

async fn subscribe(stream: &mut TcpStream, filter: &str, qos: u8) {
    let mut packet = vec![0x82, 5 + filter.len() as u8, 0, 1, 0, filter.len() as u8];
    packet.extend_from_slice(filter.as_bytes());
    packet.push(qos);
    write(stream, &packet).await;
    assert_eq!(read(stream, 5).await[4], qos, "SUBACK");
}

fn publish(topic: &str, qos: u8, id: u16, retain: u8) -> Vec<u8> {
    let id = if qos > 0 { id.to_be_bytes().to_vec() } else { Vec::new() };
    let length = 2 + topic.len() + id.len() + PAYLOAD.len();
    [&[0x30 | qos << 1 | retain, length as u8, 0, topic.len() as u8], topic.as_bytes(), &id, &PAYLOAD].concat()
}

/// Takes so many messages, and acknowledges them.
async fn receive(stream: &mut TcpStream, count: usize, length: usize, qos: u8) {
    let packets = read(stream, count * length).await;
    if qos == 1 {
        let at = length - PAYLOAD.len() - 2;
        let acks: Vec<u8> = packets.chunks(length).flat_map(|packet| [0x40, 2, packet[at], packet[at + 1]]).collect();
        write(stream, &acks).await;
    }
}

async fn write(stream: &mut TcpStream, bytes: &[u8]) {
    tokio::time::timeout(PATIENCE, stream.write_all(bytes)).await.expect("the server reads").expect("it is connected");
}

async fn read(stream: &mut TcpStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    let read = tokio::time::timeout(PATIENCE, stream.read_exact(&mut bytes)).await;
    read.expect("the server answers").expect("it is connected");
    bytes
}

/// Bytes of resident memory for each of so many clients.
pub async fn idle_memory(server: &Server, clients: usize) -> f64 {
    // What the first ones cost beside their own memory is not counted.
    let mut streams = Vec::with_capacity(clients + 100);
    let mut before = 0;
    for number in 0..clients + 100 {
        if number == 100 {
            before = server.resident();
        }
        let mut stream = connect(server, &format!("idle-{number:06}"), true).await;
        subscribe(&mut stream, &format!("devices/{number:06}/cmd"), 1).await;
        streams.push(stream);
    }
    (server.resident() - before) as f64 / clients as f64
}

/// Gives the broker a state to keep.
pub async fn fill(server: &Server, retained: usize, sessions: usize) {
    let mut publisher = connect(server, "filler", true).await;
    for first in (0..retained).step_by(100) {
        let packets: Vec<u8> = (first..first + 100)
            .zip(1..)
            .flat_map(|(topic, id)| publish(&format!("state/{topic:06}"), 1, id, 1))
            .collect();
        write(&mut publisher, &packets).await;
        read(&mut publisher, 4 * 100).await;
    }
    for number in 0..sessions {
        let mut stream = connect(server, &format!("session-{number:06}"), false).await;
        subscribe(&mut stream, &format!("devices/{number:06}/cmd"), 1).await;
        write(&mut stream, b"\xe0\x00").await;
    }
}
