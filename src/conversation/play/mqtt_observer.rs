//! MQTT observer: a client of the broker behind the gateway that receives the messages of handlers, and publishes the
//! ones for devices.
//!
//! One client for all conversations of a run, over MQTT 5, which supports subscriptions without own and retained
//! messages. A task of its own drives the client and ends with [`MqttObserver::close`], with the last `MqttObserver`,
//! or with the connection to the broker. It never reconnects: a message that was published meanwhile would be missing.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rumqttc::v5::mqttbytes::QoS as WireQoS;
use rumqttc::v5::mqttbytes::v5::{Filter, Packet, Publish, RetainForwardRule, SubscribeReasonCode};
use rumqttc::v5::{AsyncClient, Event, EventLoop, MqttOptions};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::task::JoinHandle;

use super::BrokerUrl;
use crate::conn::QoS;
use crate::conversation::run::Published;
use crate::conversation::{Action, Conversation, Message};

/// Maximum number of messages queued for one conversation.
const INBOX_MAX: usize = 1024;

/// Maximum number of requests queued for the client's task.
const REQUESTS_MAX: usize = 64;

/// Topics in one SUBSCRIBE packet; brokers limit the packet's size.
const TOPICS_A_PACKET: usize = 64;

/// Keepalive interval of the client.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// The broker, or the connection to it, failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ObserverError {
    /// The connect failed or timed out.
    #[error("cannot connect to the broker at {broker}: {why}")]
    Connect {
        /// The broker, without its login.
        broker: String,
        /// Why.
        why: String,
    },
    /// The broker denied a subscription.
    #[error("expected the broker to grant a subscription to {topic:?}, it answered {code}")]
    Subscribe {
        /// Topic name or filter.
        topic: String,
        /// The broker's reason code, by name.
        code: String,
    },
    /// The connection to the broker ended.
    #[error("lost the broker: {0}")]
    Lost(String),
    /// Too many messages were queued for a conversation.
    #[error("expected at most {INBOX_MAX} messages to wait for one conversation, more came")]
    Flooded,
    /// The broker did not accept a message in time.
    #[error("expected the broker to take a message on {topic:?} within {}, it did not", humantime::format_duration(*.timeout))]
    NotTaken {
        /// Topic name.
        topic: String,
        /// The timeout.
        timeout: Duration,
    },
}

/// The observed topics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Watch {
    /// These topic names, as the handler sees them.
    Topics(BTreeSet<String>),
    /// Everything below the mountpoint: to record unknown messages.
    Everything,
}

/// The topics of the expected messages, as handlers see them.
pub fn topics<'c>(conversations: impl IntoIterator<Item = &'c Conversation>) -> BTreeSet<String> {
    let expected =
        |conversation: &'c Conversation| conversation.steps().filter_map(|(_, step)| published_topic(&step.action));
    conversations.into_iter().flat_map(expected).map(str::to_owned).collect()
}

fn published_topic(action: &Action) -> Option<&str> {
    match action {
        Action::Publish(message) => Some(&message.topic),
        Action::FromPeer(_) | Action::ToPeer(_) | Action::Deliver(_) | Action::Timer(_) | Action::Close(_) => None,
    }
}

/// The MQTT client.
#[derive(Debug)]
pub struct MqttObserver {
    client: AsyncClient,
    dispatcher: Arc<Dispatcher>,
    watch: Watch,
    task: JoinHandle<()>,
}

impl MqttObserver {
    /// Connects, subscribes, and returns when the broker has granted all subscriptions.
    ///
    /// `mountpoint` is the mountpoint of these devices, already expanded; empty for none.
    ///
    /// # Errors
    ///
    /// No connection within `timeout`, or a denied subscription.
    pub async fn connect(
        broker: &BrokerUrl,
        mountpoint: &str,
        watch: Watch,
        timeout: Duration,
    ) -> Result<Self, ObserverError> {
        let refused = |why: String| ObserverError::Connect { broker: broker.to_string(), why };
        let suffix = getrandom::u64().map_err(|error| refused(error.to_string()))?;
        let mut options = MqttOptions::new(format!("polygate-replay-{suffix:016x}"), broker.host(), broker.port());
        options.set_keep_alive(KEEP_ALIVE).set_clean_start(true);
        if let Some((user, password)) = broker.login() {
            options.set_credentials(user, password);
        }
        let (client, mut events) = AsyncClient::new(options, REQUESTS_MAX);
        let filters: Vec<String> = match &watch {
            Watch::Topics(topics) => topics.iter().map(|topic| format!("{mountpoint}{topic}")).collect(),
            Watch::Everything => vec![format!("{mountpoint}#")],
        };
        let ready = tokio::time::timeout(timeout, subscribe(&client, &mut events, &filters, broker)).await;
        let early =
            ready.map_err(|_| refused(format!("no answer within {}", humantime::format_duration(timeout))))??;

        let dispatcher = Arc::new(Dispatcher { mountpoint: mountpoint.to_owned(), subscribers: Mutex::default() });
        for publish in early {
            dispatcher.dispatch(publish);
        }
        let task = tokio::spawn(drive(events, Arc::clone(&dispatcher)));
        Ok(Self { client, dispatcher, watch, task })
    }

    /// The queue of messages for one conversation, from now on.
    pub(super) fn inbox(&self, conversation: &Conversation) -> Inbox {
        let topics = match &self.watch {
            Watch::Topics(_) => topics([conversation]).into_iter().collect(),
            Watch::Everything => vec![EVERY_TOPIC.to_owned()],
        };
        let (sender, receiver) = mpsc::channel(INBOX_MAX);
        let id = self.dispatcher.subscribe(&topics, &sender);
        Inbox { receiver, dispatcher: Arc::clone(&self.dispatcher), id, topics }
    }

    /// Publishes a `deliver` line.
    pub(super) async fn publish(&self, message: &Message, timeout: Duration) -> Result<(), ObserverError> {
        let topic = format!("{}{}", self.dispatcher.mountpoint, message.topic);
        let qos = match message.qos {
            QoS::AtMostOnce => WireQoS::AtMostOnce,
            QoS::AtLeastOnce => WireQoS::AtLeastOnce,
            QoS::ExactlyOnce => WireQoS::ExactlyOnce,
        };
        let publishing = self.client.publish(topic.as_str(), qos, false, message.payload.to_bytes());
        match tokio::time::timeout(timeout, publishing).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(self.dispatcher.lost().unwrap_or_else(|| ObserverError::Lost(error.to_string()))),
            Err(_) => Err(ObserverError::NotTaken { topic, timeout }),
        }
    }

    /// Disconnects; waits at most `timeout` for the DISCONNECT packet to be sent.
    pub async fn close(mut self, timeout: Duration) {
        if self.client.disconnect().await.is_ok() {
            // The caller has no use for the result of the task.
            drop(tokio::time::timeout(timeout, &mut self.task).await);
        }
    }
}

impl Drop for MqttObserver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Waits for the connection, then subscribes packet by packet. Returns messages that arrived in between.
async fn subscribe(
    client: &AsyncClient,
    events: &mut EventLoop,
    filters: &[String],
    broker: &BrokerUrl,
) -> Result<Vec<Publish>, ObserverError> {
    let mut early = Vec::new();
    wait_for(events, &mut early, broker, |packet| matches!(packet, Packet::ConnAck(_)).then_some(())).await?;
    for names in filters.chunks(TOPICS_A_PACKET) {
        let packet = names.iter().map(|name| Filter {
            path: name.clone(),
            // The subscription's QoS caps that of the publisher, so it has to be the highest.
            qos: WireQoS::ExactlyOnce,
            nolocal: true,
            preserve_retain: false,
            retain_forward_rule: RetainForwardRule::Never,
        });
        let lost = |error: rumqttc::v5::ClientError| ObserverError::Lost(error.to_string());
        client.subscribe_many(packet).await.map_err(lost)?;
        let codes = wait_for(events, &mut early, broker, |packet| {
            if let Packet::SubAck(ack) = packet { Some(ack.return_codes.clone()) } else { None }
        });
        for (topic, code) in names.iter().zip(codes.await?) {
            if !matches!(code, SubscribeReasonCode::Success(_)) {
                return Err(ObserverError::Subscribe { topic: topic.clone(), code: format!("{code:?}") });
            }
        }
    }
    Ok(early)
}

async fn wait_for<T>(
    events: &mut EventLoop,
    early: &mut Vec<Publish>,
    broker: &BrokerUrl,
    wanted: impl Fn(&Packet) -> Option<T>,
) -> Result<T, ObserverError> {
    loop {
        let connect = |error: rumqttc::v5::ConnectionError| ObserverError::Connect {
            broker: broker.to_string(),
            why: error.to_string(),
        };
        match events.poll().await.map_err(connect)? {
            Event::Incoming(Packet::Publish(publish)) if early.len() < INBOX_MAX => early.push(publish),
            Event::Incoming(packet) => {
                if let Some(found) = wanted(&packet) {
                    return Ok(found);
                }
            }
            Event::Outgoing(_) => {}
        }
    }
}

/// Drives the client until its connection ends.
async fn drive(mut events: EventLoop, dispatcher: Arc<Dispatcher>) {
    loop {
        match events.poll().await {
            Ok(Event::Incoming(Packet::Publish(publish))) => dispatcher.dispatch(publish),
            Ok(_) => {}
            Err(error) => return dispatcher.close(error.to_string()),
        }
    }
}

/// The key of [`Watch::Everything`]; no topic name has a wildcard.
const EVERY_TOPIC: &str = "#";

/// Dispatches messages to the conversations that expect them. The lock is never held across an await.
#[derive(Debug)]
struct Dispatcher {
    mountpoint: String,
    subscribers: Mutex<Subscribers>,
}

#[derive(Debug, Default)]
struct Subscribers {
    by_topic: HashMap<String, Vec<(u64, Sender<Published>)>>,
    next: u64,
    /// Why the client has ended.
    lost: Option<String>,
}

impl Dispatcher {
    fn subscribers(&self) -> MutexGuard<'_, Subscribers> {
        // The table is consistent between any two statements, also after a panic elsewhere.
        self.subscribers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn subscribe(&self, topics: &[String], sender: &Sender<Published>) -> u64 {
        let mut subscribers = self.subscribers();
        let id = subscribers.next;
        subscribers.next += 1;
        if subscribers.lost.is_none() {
            for topic in topics {
                subscribers.by_topic.entry(topic.clone()).or_default().push((id, sender.clone()));
            }
        }
        id
    }

    fn unsubscribe(&self, topics: &[String], id: u64) {
        let mut subscribers = self.subscribers();
        for topic in topics {
            if let Some(senders) = subscribers.by_topic.get_mut(topic) {
                senders.retain(|(other, _)| *other != id);
                if senders.is_empty() {
                    subscribers.by_topic.remove(topic);
                }
            }
        }
    }

    fn dispatch(&self, publish: Publish) {
        let qos = match publish.qos {
            WireQoS::AtMostOnce => QoS::AtMostOnce,
            WireQoS::AtLeastOnce => QoS::AtLeastOnce,
            WireQoS::ExactlyOnce => QoS::ExactlyOnce,
        };
        let topic = String::from_utf8_lossy(&publish.topic);
        let Some(topic) = topic.strip_prefix(self.mountpoint.as_str()) else {
            return;
        };
        let published = Published { topic: topic.to_owned(), qos, payload: publish.payload };
        let mut subscribers = self.subscribers();
        for key in [topic, EVERY_TOPIC] {
            if let Some(senders) = subscribers.by_topic.get_mut(key) {
                // A full subscriber is removed; its closed channel reports it.
                senders.retain(|(_, sender)| !matches!(sender.try_send(published.clone()), Err(TrySendError::Full(_))));
            }
        }
    }

    fn close(&self, why: String) {
        let mut subscribers = self.subscribers();
        subscribers.by_topic.clear();
        subscribers.lost = Some(why);
    }

    fn lost(&self) -> Option<ObserverError> {
        self.subscribers().lost.clone().map(ObserverError::Lost)
    }
}

/// The messages for one conversation.
#[derive(Debug)]
pub(super) struct Inbox {
    receiver: Receiver<Published>,
    dispatcher: Arc<Dispatcher>,
    id: u64,
    topics: Vec<String>,
}

impl Inbox {
    /// The next message. Cancel safe.
    pub(super) async fn next(&mut self) -> Result<Published, ObserverError> {
        match self.receiver.recv().await {
            Some(published) => Ok(published),
            None => self.ended().await,
        }
    }

    /// The next queued message.
    pub(super) fn try_next(&mut self) -> Result<Option<Published>, ObserverError> {
        match self.receiver.try_recv() {
            Ok(published) => Ok(Some(published)),
            Err(mpsc::error::TryRecvError::Empty) => Ok(None),
            Err(mpsc::error::TryRecvError::Disconnected) if self.topics.is_empty() => Ok(None),
            Err(mpsc::error::TryRecvError::Disconnected) => {
                Err(self.dispatcher.lost().unwrap_or(ObserverError::Flooded))
            }
        }
    }

    /// Why the channel is closed. A conversation that expects no message never had a sender, and waits.
    async fn ended(&self) -> Result<Published, ObserverError> {
        if self.topics.is_empty() {
            return std::future::pending().await;
        }
        Err(self.dispatcher.lost().unwrap_or(ObserverError::Flooded))
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        self.dispatcher.unsubscribe(&self.topics, self.id);
    }
}
