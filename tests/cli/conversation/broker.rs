//! A minimal MQTT 5 broker for one client: grants subscriptions, reports packets, publishes on request.

use bytes::BytesMut;
use rumqttc::v5::mqttbytes::v5::{
    ConnAck, ConnectReturnCode, Packet, PubAck, PubAckReason, Publish, SubAck, SubscribeReasonCode,
};
use rumqttc::v5::mqttbytes::{Error, QoS};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// Speaks with the last client that connected.
pub struct Broker {
    pub url: String,
    /// Topics that were subscribed, then topics and payloads that were published.
    pub heard: mpsc::Receiver<String>,
    pub say: mpsc::Sender<(String, QoS, String)>,
}

impl Broker {
    /// Serves one client after the other; refuses subscriptions to `refused`.
    pub async fn start(refused: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("mqtt://user:secret@{}", listener.local_addr().unwrap());
        let (tell, heard) = mpsc::channel(100);
        let (say, mut said) = mpsc::channel(100);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                serve(stream, refused, &tell, &mut said).await;
            }
        });
        Self { url, heard, say }
    }
}

async fn serve(
    mut stream: TcpStream,
    refused: &str,
    tell: &mpsc::Sender<String>,
    said: &mut mpsc::Receiver<(String, QoS, String)>,
) {
    let mut buffer = BytesMut::new();
    let mut pkid = 0;
    loop {
        let answer = match Packet::read(&mut buffer, None) {
            Ok(packet) => answer(packet, refused, tell).await,
            Err(Error::InsufficientBytes(_)) => tokio::select! {
                read = stream.read_buf(&mut buffer) => match read {
                    Ok(count) if count > 0 => None,
                    _ => return,
                },
                Some((topic, qos, payload)) = said.recv() => {
                    let mut publish = Publish::new(topic, qos, payload, None);
                    pkid += 1;
                    publish.pkid = pkid;
                    Some(Packet::Publish(publish))
                }
            },
            Err(error) => panic!("{error}"),
        };
        if let Some(packet) = answer {
            let mut bytes = BytesMut::new();
            packet.write(&mut bytes, None).unwrap();
            stream.write_all(&bytes).await.unwrap();
        }
    }
}

async fn answer(packet: Packet, refused: &str, tell: &mpsc::Sender<String>) -> Option<Packet> {
    match packet {
        Packet::Connect(_, _, login) => {
            let login = login.unwrap();
            assert_eq!((login.username.as_str(), login.password.as_str()), ("user", "secret"));
            Some(Packet::ConnAck(ConnAck {
                session_present: false,
                code: ConnectReturnCode::Success,
                properties: None,
            }))
        }
        Packet::Subscribe(subscribe) => {
            let mut return_codes = Vec::new();
            for filter in subscribe.filters {
                assert!(filter.nolocal, "it would see its own messages");
                tell.send(filter.path.clone()).await.unwrap();
                let code = SubscribeReasonCode::Success(filter.qos);
                return_codes.push(if filter.path == refused { SubscribeReasonCode::NotAuthorized } else { code });
            }
            Some(Packet::SubAck(SubAck { pkid: subscribe.pkid, return_codes, properties: None }))
        }
        Packet::Publish(publish) => {
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            tell.send(format!("{} {}", text(&publish.topic), text(&publish.payload))).await.unwrap();
            let (pkid, reason) = (publish.pkid, PubAckReason::Success);
            (publish.qos == QoS::AtLeastOnce).then_some(Packet::PubAck(PubAck { pkid, reason, properties: None }))
        }
        _ => None,
    }
}
