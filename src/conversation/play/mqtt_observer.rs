//! MQTT observer: a client of the broker behind the gateway that receives the messages of handlers, and publishes the
//! ones for devices.
//!
//! One client for all conversations of a run, over MQTT 5, which supports subscriptions without own and retained
//! messages. A task of its own drives the client and ends with [`MqttObserver::close`], with the last `MqttObserver`,
//! or with the connection to the broker. It never reconnects: a message that was published meanwhile would be missing.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use tokio::net::TcpStream;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::task::JoinHandle;

use super::BrokerUrl;
use crate::byte_budget::ByteBudget;
use crate::conn::QoS;
use crate::conversation::run::Published;
use crate::conversation::{Action, Conversation, Message};
use crate::mqtt::Version;
use crate::mqtt::outbound::Bounds;
use crate::mqtt::packet::{Connect, Publish, RetainHandling, SubscribeFilter, SubscriptionOptions};
use crate::mqtt_client::{self, Requests, Session};

/// Maximum number of messages queued for one conversation.
const INBOX_MAX: usize = 1024;

/// Maximum number of requests queued for the client's task.
const REQUESTS_MAX: usize = 64;

/// Topics in one SUBSCRIBE packet; brokers limit the packet's size.
const TOPICS_A_PACKET: usize = 64;

/// How often the client shows the broker that it lives, in seconds.
const KEEPALIVE_S: u16 = 30;

/// The largest packet that is taken.
const PACKET_BYTES_MAX: u32 = 16 * 1024 * 1024;

/// What may wait for the broker's acknowledgement.
const BOUNDS: Bounds = Bounds { messages_max: REQUESTS_MAX, bytes_max: 64 * 1024 * 1024, inflight_max: 64 };

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
    requests: Requests,
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
        let mut connect = Connect {
            keepalive_s: KEEPALIVE_S,
            ..Connect::new(Version::V5, &format!("polygate-replay-{suffix:016x}"))
        };
        if let Some((user, password)) = broker.login() {
            connect.username = Some(user.into());
            connect.password = Some(password.to_owned().into());
        }
        let connected = async {
            let socket = TcpStream::connect((broker.host(), broker.port())).await.map_err(|error| error.to_string())?;
            mqtt_client::connect(Box::new(socket), connect, PACKET_BYTES_MAX).await.map_err(|error| error.to_string())
        };
        let late = || refused(format!("no answer within {}", humantime::format_duration(timeout)));
        let connected = tokio::time::timeout(timeout, connected).await.map_err(|_| late())?;
        let link = connected.map_err(refused)?;

        let dispatcher = Arc::new(Dispatcher { mountpoint: mountpoint.to_owned(), subscribers: Mutex::default() });
        let (requests, mut queue) = Requests::new(REQUESTS_MAX);
        let task = tokio::spawn({
            let dispatcher = Arc::clone(&dispatcher);
            async move {
                let mut session = Session::new(BOUNDS, Arc::new(ByteBudget::new(BOUNDS.bytes_max)), Counter::default());
                let mut deliver = |publish: Publish| dispatcher.dispatch(publish);
                let end = mqtt_client::serve(link, &mut session, Vec::new(), &mut queue, &mut deliver).await;
                dispatcher.close(end.to_string());
            }
        });
        // From here on the task ends with the observer, whatever happens.
        let observer = Self { requests, dispatcher, watch, task };
        let filters: Vec<String> = match &observer.watch {
            Watch::Topics(topics) => topics.iter().map(|topic| format!("{mountpoint}{topic}")).collect(),
            Watch::Everything => vec![format!("{mountpoint}#")],
        };
        let granted = subscribe(&observer.requests, &observer.dispatcher, &filters);
        tokio::time::timeout(timeout, granted).await.map_err(|_| late())??;
        Ok(observer)
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
        // Taken is enough: the conversation shows whether it arrives.
        let publishing = self.requests.publish_later(&topic, message.qos, message.payload.to_bytes(), false);
        match tokio::time::timeout(timeout, publishing).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(self.dispatcher.lost().unwrap_or_else(|| ObserverError::Lost(error.to_string()))),
            Err(_) => Err(ObserverError::NotTaken { topic, timeout }),
        }
    }

    /// Disconnects; waits at most `timeout` for the DISCONNECT packet to be sent.
    pub async fn close(mut self, timeout: Duration) {
        if self.requests.disconnect().await {
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

/// Subscribes packet by packet.
async fn subscribe(requests: &Requests, dispatcher: &Dispatcher, filters: &[String]) -> Result<(), ObserverError> {
    let lost = || dispatcher.lost().unwrap_or_else(|| ObserverError::Lost("the connection has ended".to_owned()));
    for names in filters.chunks(TOPICS_A_PACKET) {
        let packet = names.iter().map(|name| SubscribeFilter {
            filter: name.as_str().into(),
            options: SubscriptionOptions {
                // The publisher's own quality of service comes through only when this one is the highest.
                qos: QoS::ExactlyOnce,
                no_local: true,
                retain_as_published: false,
                retain_handling: RetainHandling::DoNotSend,
            },
        });
        let reasons = requests.subscribe(packet.collect()).await.ok_or_else(lost)?;
        for (topic, reason) in names.iter().zip(reasons) {
            if reason.is_error() {
                return Err(ObserverError::Subscribe { topic: topic.clone(), code: reason.to_string() });
            }
        }
    }
    Ok(())
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
        let Some(topic) = publish.topic.strip_prefix(self.mountpoint.as_str()) else {
            return;
        };
        let published = Published { topic: topic.to_owned(), qos: publish.qos, payload: publish.payload.clone() };
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
