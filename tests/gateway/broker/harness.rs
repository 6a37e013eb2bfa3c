//! A broker on a free port, devices with mailboxes, and MQTT clients of both versions.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use polygate::testing::auth::{Action, Auth, Effect, Options as AuthOptions, Rule, User};
use polygate::testing::byte_budget::ByteBudget;
use polygate::testing::conn::registry::{DroppedMessages, Mail, MailReceiver, Mailbox, MessageBounds, MessageQuota};
use polygate::testing::conn::{ClientInfo, CloseReason, ConnIds, Message, PeerAddr, QoS};
use polygate::testing::pubsub::embedded::{Broker, Options};
use polygate::testing::pubsub::{Error, PubSub, Session};
use polygate::testing::telemetry::Telemetry;
use prometheus_client::metrics::counter::Counter;
use secrecy::SecretString;
use tokio::sync::mpsc;

/// Timeout of every wait.
const PATIENCE: Duration = Duration::from_secs(10);

pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: not within {PATIENCE:?}"),
    }
}

pub struct TestBroker {
    pub broker: Broker,
    pub auth: Auth,
    pubsub: PubSub,
}

impl TestBroker {
    /// Anonymous access, and an MQTT port.
    pub async fn start() -> Self {
        Self::with(AuthOptions { allow_anonymous: true, ..AuthOptions::default() }, |_| ()).await
    }

    pub async fn with(auth: AuthOptions, adjust: impl FnOnce(&mut Options)) -> Self {
        let auth = Auth::new(auth).unwrap();
        let mut options =
            Options { node: "gw-test".to_owned(), bind: Some("127.0.0.1:0".parse().unwrap()), ..Options::default() };
        adjust(&mut options);
        let broker = Broker::start(options, auth.clone(), &Telemetry::new(), None).await.unwrap();
        Self { pubsub: PubSub::Embedded(broker.clone()), broker, auth }
    }

    pub fn addr(&self) -> SocketAddr {
        self.broker.local_addr().unwrap()
    }

    pub async fn device(&self, client_id: &str) -> Device {
        self.device_with_mailbox(client_id, 64).await
    }

    pub async fn device_with_mailbox(&self, client_id: &str, messages_max: usize) -> Device {
        self.open(client_id, Connection::new(messages_max)).await
    }

    pub async fn open(&self, client_id: &str, connection: Connection) -> Device {
        let Connection { mailbox, mails, dropped } = connection;
        let held = Arc::clone(mailbox.quota());
        let client = ClientInfo { client_id: client_id.to_owned(), ..ClientInfo::default() };
        let peer = PeerAddr("192.0.2.1:4711".parse().unwrap());
        let session = self.pubsub.open(Arc::new(client), None, peer, mailbox).await.unwrap();
        Device { session, mails, held, dropped }
    }

    pub async fn publish_as_gateway(&self, topic: &str, payload: &str) -> Result<(), Error> {
        self.pubsub.publish_as_gateway(topic, QoS::AtLeastOnce, Bytes::from(payload.to_owned())).await
    }
}

/// Users whose password is "secret".
pub fn users(names: &[&str]) -> Vec<User> {
    names
        .iter()
        .map(|name| User { username: (*name).to_owned(), password_hash: secret_hash(), client_ids: None })
        .collect()
}

/// A hash of "secret" with cheap parameters.
fn secret_hash() -> SecretString {
    use argon2::{Argon2, CustomizedPasswordHasher, Params, PasswordHash};

    let params = Params::new(8, 1, 1, None).unwrap();
    let hash: PasswordHash =
        Argon2::default().hash_password_customized(b"secret", b"salt salt salt s", None, Some(19), params).unwrap();
    hash.to_string().into()
}

pub fn rule(effect: Effect, action: Action, client: &str, topic: &str) -> Rule {
    Rule { effect, action, clients: vec![client.to_owned()], usernames: None, topics: vec![topic.to_owned()] }
}

/// The services of a connection before its device has authenticated.
pub struct Connection {
    mailbox: Mailbox,
    mails: MailReceiver,
    dropped: Counter,
}

impl Connection {
    pub fn new(messages_max: usize) -> Self {
        let dropped = Counter::default();
        let counters = DroppedMessages { full: dropped.clone(), over_budget: Counter::default() };
        let budget = Arc::new(ByteBudget::new(1 << 30));
        let bounds = MessageBounds { messages_max, bytes_max: 1 << 30 };
        let (mailbox, mails) = Mailbox::new(ConnIds::new().unwrap().next(), bounds, counters, budget);
        Self { mailbox, mails, dropped }
    }
}

/// A device's session and the mailbox of its connection.
pub struct Device {
    pub session: Session,
    pub mails: MailReceiver,
    held: Arc<MessageQuota>,
    pub dropped: Counter,
}

impl Device {
    pub async fn publish(&self, topic: &str, payload: &str) {
        self.publish_qos(topic, payload, QoS::AtMostOnce).await;
    }

    pub async fn publish_qos(&self, topic: &str, payload: &str, qos: QoS) {
        self.session.publish(topic, qos, Bytes::from(payload.to_owned()), None).await.unwrap();
    }

    pub async fn subscribe(&self, filter: &str) {
        self.session.subscribe(filter, QoS::AtMostOnce).await.unwrap();
    }

    pub async fn message(&mut self) -> Message {
        match *soon("a message for the device", self.mails.recv()).await.unwrap() {
            Mail::Deliver(message) => {
                self.held.remove(std::slice::from_ref(&message));
                message
            }
            other => panic!("expected a message, got {other:?}"),
        }
    }

    pub async fn payload(&mut self) -> String {
        text(&self.message().await.payload)
    }

    /// The payloads up to the last one of a test.
    pub async fn payloads_until(&mut self, last: &str) -> Vec<String> {
        let mut payloads = Vec::new();
        loop {
            match self.payload().await {
                payload if payload == last => return payloads,
                payload => payloads.push(payload),
            }
        }
    }

    pub async fn end(&mut self) -> CloseReason {
        match *soon("the device's end", self.mails.recv()).await.unwrap() {
            Mail::End(reason) => reason,
            other => panic!("expected the end, got {other:?}"),
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A packet of an MQTT client, common to both versions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Got {
    Connected,
    Ended(String),
    SubAck(String),
    PubAck(String),
    Publish { topic: String, payload: String, qos: u8, retain: bool },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    V3,
    V5,
}

pub const BOTH: [Version; 2] = [Version::V3, Version::V5];

/// A real MQTT client.
pub struct Client {
    client: AnyClient,
    got: mpsc::Receiver<Got>,
    /// Packets received while the test waited for another one.
    earlier: VecDeque<Got>,
    task: tokio::task::JoinHandle<()>,
}

enum AnyClient {
    V3(rumqttc::AsyncClient),
    V5(rumqttc::v5::AsyncClient),
}

/// Options of a client's connect.
#[derive(Clone, Default)]
pub struct Connect<'a> {
    pub user: Option<(&'a str, &'a str)>,
    pub will: Option<&'a str>,
    pub keeps_session: bool,
    /// MQTT 5.0 only.
    pub packet_bytes_max: Option<u32>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Client {
    pub async fn connect(version: Version, addr: SocketAddr, client_id: &str) -> Self {
        Self::connect_with(version, addr, client_id, Connect::default()).await.expect("connected")
    }

    /// The error is the broker's reason.
    pub async fn connect_with(
        version: Version,
        addr: SocketAddr,
        client_id: &str,
        connect: Connect<'_>,
    ) -> Result<Self, String> {
        let (sender, got) = mpsc::channel(1_024);
        let (client, task) = match version {
            Version::V3 => start_v3(addr, client_id, connect, sender),
            Version::V5 => start_v5(addr, client_id, connect, sender),
        };
        let mut client = Self { client, got, earlier: VecDeque::new(), task };
        match soon("CONNACK", client.got.recv()).await {
            Some(Got::Connected) => Ok(client),
            Some(Got::Ended(reason)) => Err(reason),
            other => panic!("expected CONNACK, got {other:?}"),
        }
    }

    pub async fn subscribe(&mut self, filter: &str) {
        let code = self.try_subscribe(filter).await;
        assert!(code.contains("Success") || code.contains("Granted"), "{filter}: {code}");
    }

    /// The code of the SUBACK.
    pub async fn try_subscribe(&mut self, filter: &str) -> String {
        match &self.client {
            AnyClient::V3(client) => client.subscribe(filter, rumqttc::QoS::ExactlyOnce).await.unwrap(),
            AnyClient::V5(client) => {
                client.subscribe(filter, rumqttc::v5::mqttbytes::QoS::ExactlyOnce).await.unwrap();
            }
        }
        match self.wait_for(|got| matches!(got, Got::SubAck(_) | Got::Ended(_))).await {
            Got::SubAck(code) => code,
            other => panic!("expected SUBACK, got {other:?}"),
        }
    }

    /// Publishes with QoS 1; the code of the PUBACK.
    pub async fn publish(&mut self, topic: &str, payload: &str) -> String {
        self.publish_as(topic, payload, 1, false).await;
        match self.wait_for(|got| matches!(got, Got::PubAck(_) | Got::Ended(_))).await {
            Got::PubAck(code) => code,
            other => panic!("expected PUBACK, got {other:?}"),
        }
    }

    /// Publishes a retained message with QoS 1 and waits until the broker has it.
    pub async fn retain(&mut self, topic: &str, payload: &str) {
        self.publish_as(topic, payload, 1, true).await;
        self.wait_for(|got| matches!(got, Got::PubAck(_))).await;
    }

    pub async fn publish_as(&self, topic: &str, payload: &str, qos: u8, retain: bool) {
        match &self.client {
            AnyClient::V3(client) => {
                client.publish(topic, rumqttc::qos(qos).unwrap(), retain, payload).await.unwrap();
            }
            AnyClient::V5(client) => {
                let qos = rumqttc::v5::mqttbytes::qos(qos).unwrap();
                client.publish(topic, qos, retain, payload.to_owned()).await.unwrap();
            }
        }
    }

    pub async fn message(&mut self) -> Got {
        self.wait_for(|got| matches!(got, Got::Publish { .. })).await
    }

    pub async fn payload(&mut self) -> String {
        match self.message().await {
            Got::Publish { payload, .. } => payload,
            other => panic!("expected a message, got {other:?}"),
        }
    }

    pub async fn payloads_until(&mut self, last: &str) -> Vec<String> {
        let mut payloads = Vec::new();
        loop {
            match self.payload().await {
                payload if payload == last => return payloads,
                payload => payloads.push(payload),
            }
        }
    }

    /// Waits until the broker has ended the connection.
    pub async fn ended(&mut self) -> String {
        match self.wait_for(|got| matches!(got, Got::Ended(_))).await {
            Got::Ended(reason) => reason,
            other => panic!("expected the end, got {other:?}"),
        }
    }

    async fn wait_for(&mut self, wanted: impl Fn(&Got) -> bool) -> Got {
        if let Some(place) = self.earlier.iter().position(&wanted) {
            return self.earlier.remove(place).unwrap();
        }
        loop {
            let got = soon("a packet for the MQTT client", self.got.recv()).await.expect("the client lives");
            if wanted(&got) {
                return got;
            }
            assert!(!matches!(got, Got::Ended(_)), "the connection has ended: {got:?}");
            self.earlier.push_back(got);
        }
    }
}

type Started = (AnyClient, tokio::task::JoinHandle<()>);

fn start_v3(addr: SocketAddr, client_id: &str, connect: Connect<'_>, sender: mpsc::Sender<Got>) -> Started {
    use rumqttc::{Event, LastWill, MqttOptions, Packet, QoS};

    let mut options = MqttOptions::new(client_id, addr.ip().to_string(), addr.port());
    options.set_clean_session(!connect.keeps_session);
    if let Some((username, password)) = connect.user {
        options.set_credentials(username, password);
    }
    if let Some(topic) = connect.will {
        options.set_last_will(LastWill::new(topic, "will", QoS::AtMostOnce, false));
    }
    let (client, mut events) = rumqttc::AsyncClient::new(options, 64);
    let task = tokio::spawn(async move {
        loop {
            let got = match events.poll().await {
                Ok(Event::Incoming(Packet::ConnAck(_))) => Got::Connected,
                Ok(Event::Incoming(Packet::SubAck(ack))) => Got::SubAck(format!("{:?}", ack.return_codes[0])),
                Ok(Event::Incoming(Packet::PubAck(_))) => Got::PubAck("Success".to_owned()),
                Ok(Event::Incoming(Packet::Publish(publish))) => Got::Publish {
                    topic: publish.topic,
                    payload: text(&publish.payload),
                    qos: publish.qos as u8,
                    retain: publish.retain,
                },
                Ok(_) => continue,
                Err(error) => Got::Ended(error.to_string()),
            };
            let last = matches!(got, Got::Ended(_));
            if sender.send(got).await.is_err() || last {
                return;
            }
        }
    });
    (AnyClient::V3(client), task)
}

fn start_v5(addr: SocketAddr, client_id: &str, connect: Connect<'_>, sender: mpsc::Sender<Got>) -> Started {
    use rumqttc::v5::mqttbytes::QoS;
    use rumqttc::v5::mqttbytes::v5::{ConnectProperties, LastWill, Packet};
    use rumqttc::v5::{Event, MqttOptions};

    let mut options = MqttOptions::new(client_id, addr.ip().to_string(), addr.port());
    options.set_clean_start(!connect.keeps_session);
    options.set_outgoing_inflight_upper_limit(16);
    options.set_connect_properties(ConnectProperties {
        session_expiry_interval: connect.keeps_session.then_some(3_600),
        max_packet_size: connect.packet_bytes_max,
        ..ConnectProperties::new()
    });
    if let Some((username, password)) = connect.user {
        options.set_credentials(username, password);
    }
    if let Some(topic) = connect.will {
        options.set_last_will(LastWill::new(topic, "will", QoS::AtMostOnce, false, None));
    }
    let (client, mut events) = rumqttc::v5::AsyncClient::new(options, 64);
    let task = tokio::spawn(async move {
        loop {
            let got = match events.poll().await {
                Ok(Event::Incoming(Packet::ConnAck(_))) => Got::Connected,
                Ok(Event::Incoming(Packet::SubAck(ack))) => Got::SubAck(format!("{:?}", ack.return_codes[0])),
                Ok(Event::Incoming(Packet::PubAck(ack))) => Got::PubAck(format!("{:?}", ack.reason)),
                Ok(Event::Incoming(Packet::Publish(publish))) => Got::Publish {
                    topic: text(&publish.topic),
                    payload: text(&publish.payload),
                    qos: publish.qos as u8,
                    retain: publish.retain,
                },
                Ok(_) => continue,
                Err(error) => Got::Ended(error.to_string()),
            };
            let last = matches!(got, Got::Ended(_));
            if sender.send(got).await.is_err() || last {
                return;
            }
        }
    });
    (AnyClient::V5(client), task)
}
