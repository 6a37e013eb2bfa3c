//! A device's client of an external broker: one task, over all of its connections.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use super::{Connected, Inner, Login, OpenError, REDIRECTS_MAX, REQUESTS_MAX, check_topic};
use crate::conn::registry::Mailbox;
use crate::conn::{CloseReason, PeerAddr, QoS};
use crate::mqtt::Reason;
use crate::mqtt::packet::{Publish, SubscribeFilter, SubscriptionOptions};
use crate::mqtt_client::{self, End, PublishError, Request, Requests};
use crate::mqtt_stream::ReadError;
use crate::pubsub::Error;
use crate::topic;

/// The first pause after a lost connection, and the longest.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// A connection that was made again and is closed again within this time, without a reason, has been taken over: brokers
/// that do not say so (mosquitto 2.0) would else give the client id to and fro between two gateways for ever. The newer
/// connection meets this for the first time after its first loss, so it is the one that stays.
const TAKEOVER_WITHIN: Duration = Duration::from_secs(10);

/// How long a handler waits for the broker's answer; a device's connection does nothing else meanwhile.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Subscriptions of one device.
const SUBSCRIPTIONS_MAX: usize = 10_000;

/// Filters in one SUBSCRIBE when subscriptions are made again; brokers limit the packet's size.
const FILTERS_IN_A_PACKET: usize = 32;

/// A device's client of the broker; [`Session`](crate::pubsub::Session) says what it does.
pub struct Session {
    requests: Requests,
    shared: Arc<Shared>,
}

/// What the session and its task share.
#[derive(Debug, Default)]
struct Shared {
    /// To be made again on a connection without a session.
    filters: Mutex<BTreeMap<Box<str>, QoS>>,
    /// The broker has given the client id to another connection.
    is_replaced: AtomicBool,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").finish_non_exhaustive()
    }
}

impl Session {
    /// Connects; the broker's CONNACK decides.
    pub(super) async fn open(
        inner: &Arc<Inner>,
        login: Login,
        peer: PeerAddr,
        mailbox: Mailbox,
    ) -> Result<Self, Error> {
        let mut client = Client::new(inner.clone(), login);
        let link = match client.connect(true).await {
            Ok(link) => link,
            Err(error) => {
                inner.counters.connects_failed.inc();
                tracing::debug!(client_id = ?client.login.client_id, %peer, %error, "not connected to the broker");
                return Err(match error {
                    OpenError::Refused(reason) => Error::Refused(reason),
                    OpenError::Unreachable { .. } | OpenError::Moved(_) => Error::Unreachable(error.to_string()),
                });
            }
        };
        let shared = Arc::new(Shared::default());
        let (requests, queue) = Requests::new(REQUESTS_MAX);
        let session = Self { requests, shared: shared.clone() };
        tokio::spawn(async move {
            let delivery = mailbox.clone();
            let inner = client.inner.clone();
            let mut deliver = move |publish: Publish| delivery.deliver(inner.message(publish));
            let ended = client.run(Some(link), queue, &shared, &mut deliver).await;
            match ended {
                Ended::Asked => {}
                Ended::Replaced => mailbox.end(CloseReason::Replaced).await,
                // The broker lets the device in no more.
                Ended::Refused => mailbox.end(CloseReason::Expired).await,
            }
        });
        Ok(session)
    }

    fn check(&self) -> Result<(), Error> {
        if self.shared.is_replaced.load(Ordering::Acquire) { Err(Error::Replaced) } else { Ok(()) }
    }

    pub(in crate::pubsub) async fn publish(
        &self,
        topic: &str,
        qos: QoS,
        payload: Bytes,
        confirm: Option<Duration>,
    ) -> Result<(), Error> {
        check_topic(topic)?;
        self.check()?;
        self.publish_within(confirm.unwrap_or(ANSWER_TIMEOUT), topic, qos, payload, confirm.is_some()).await
    }

    async fn publish_within(
        &self,
        limit: Duration,
        topic: &str,
        qos: QoS,
        payload: Bytes,
        confirm: bool,
    ) -> Result<(), Error> {
        let deadline = tokio::time::Instant::now() + limit;
        let queued = self.requests.publish_later(topic, qos, payload, confirm);
        let answer = match tokio::time::timeout_at(deadline, queued).await {
            Ok(queued) => queued?,
            Err(_) if confirm => return Err(Error::Unconfirmed),
            // The task takes no more requests, so the message is with nobody yet.
            Err(_) => return Err(Error::Unreachable("the broker reads nothing".to_owned())),
        };
        match tokio::time::timeout_at(deadline, answer).await {
            Ok(Ok(Ok(_))) => Ok(()),
            // Dropped, and counted by the task.
            Ok(Ok(Err(PublishError::Lost)) | Err(_)) if qos == QoS::AtMostOnce => Ok(()),
            Ok(Ok(Err(error))) => Err(error.into()),
            Ok(Err(_)) => Err(PublishError::Lost.into()),
            Err(_) if confirm => Err(Error::Unconfirmed),
            // A slow broker: the message is in the outage buffer, as it is when there is no broker.
            Err(_) => Ok(()),
        }
    }

    pub(in crate::pubsub) async fn subscribe(&self, filter: &str, qos: QoS) -> Result<(), Error> {
        topic::parse_filter(filter)?;
        self.check()?;
        {
            let filters = self.shared.filters.lock();
            if filters.get(filter) == Some(&qos) {
                return Ok(());
            }
            if filters.len() >= SUBSCRIPTIONS_MAX {
                return Err(Error::TooManySubscriptions { subscriptions_max: SUBSCRIPTIONS_MAX });
            }
        }
        let asked = SubscribeFilter { filter: filter.into(), options: SubscriptionOptions::new(qos) };
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, self.requests.subscribe(vec![asked])).await;
        match answer.ok().flatten().as_deref() {
            Some([reason]) if reason.is_error() => Err(Error::Refused(*reason)),
            Some(_) => {
                self.shared.filters.lock().insert(filter.into(), qos);
                Ok(())
            }
            None => Err(Error::Unreachable("the broker did not answer".to_owned())),
        }
    }

    pub(in crate::pubsub) async fn unsubscribe(&self, filter: &str) -> Result<(), Error> {
        topic::parse_filter(filter)?;
        self.check()?;
        if self.shared.filters.lock().remove(filter).is_none() {
            return Ok(());
        }
        // Without a connection it is not made again on the next one.
        drop(tokio::time::timeout(ANSWER_TIMEOUT, self.requests.unsubscribe(vec![filter.into()])).await);
        Ok(())
    }
}

/// How the task of a client has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Asked,
    Replaced,
    Refused,
}

/// The client of one device, or the gateway's own.
struct Client {
    inner: Arc<Inner>,
    login: Login,
    /// Which of the addresses is tried next.
    url: usize,
}

impl Client {
    fn new(inner: Arc<Inner>, login: Login) -> Self {
        let url = inner.next_url();
        Self { inner, login, url }
    }

    /// Tries each address once, and follows the broker to another one.
    async fn connect(&mut self, clean_start: bool) -> Result<Connected, OpenError> {
        let urls = &self.inner.options.urls;
        let mut last = None;
        for _ in 0..urls.len() {
            let mut url = urls[self.url].clone();
            for _ in 0..=REDIRECTS_MAX {
                match self.inner.attempt(&url, &self.login, clean_start).await {
                    Ok(link) => return Ok(link),
                    Err(OpenError::Moved(next)) => {
                        url = next.clone();
                        last = Some(OpenError::Moved(next));
                    }
                    Err(OpenError::Refused(reason)) if !is_transient(reason) => {
                        return Err(OpenError::Refused(reason));
                    }
                    Err(error) => {
                        last = Some(error);
                        break;
                    }
                }
            }
            self.url = (self.url + 1) % urls.len();
        }
        Err(last.unwrap_or(OpenError::Refused(Reason::UNSPECIFIED)))
    }

    async fn run(
        mut self,
        mut link: Option<Connected>,
        mut queue: mpsc::Receiver<Request>,
        shared: &Shared,
        deliver: &mut (dyn FnMut(Publish) + Send),
    ) -> Ended {
        let inner = self.inner.clone();
        let mut session =
            mqtt_client::Session::new(inner.bounds(), inner.budget.clone(), inner.counters.dropped.clone());
        loop {
            let (connected, reconnected) = match link.take() {
                Some(link) => (link, None),
                None => match self.reconnect(&mut session, &mut queue).await {
                    Ok(link) => (link, Some(Instant::now())),
                    Err(ended) => return ended,
                },
            };
            let Connected { link: served, url } = connected;
            let again = if served.session_present() { Vec::new() } else { resubscribe(shared) };
            inner.counters.connected.inc();
            let end = mqtt_client::serve(served, &mut session, again, &mut queue, deliver).await;
            inner.counters.connected.dec();
            match end {
                End::Asked => return Ended::Asked,
                End::Disconnected(disconnect) if disconnect.reason == Reason::SESSION_TAKEN_OVER => {
                    shared.is_replaced.store(true, Ordering::Release);
                    return Ended::Replaced;
                }
                End::Disconnected(disconnect) => {
                    let reference = disconnect.server_reference.as_deref();
                    if let Some(moved) = inner.moved(&url, disconnect.reason, reference) {
                        link = inner.attempt(&moved, &self.login, false).await.ok();
                    }
                    tracing::debug!(client_id = ?self.login.client_id, reason = %disconnect.reason, "broker lost");
                }
                End::Lost(ReadError::Closed) if reconnected.is_some_and(|since| since.elapsed() < TAKEOVER_WITHIN) => {
                    shared.is_replaced.store(true, Ordering::Release);
                    return Ended::Replaced;
                }
                End::Lost(_) | End::Broken(..) => {
                    tracing::debug!(client_id = ?self.login.client_id, %end, "broker lost");
                }
            }
            inner.counters.connections_lost.inc();
        }
    }

    /// Connects anew, with pauses that grow and are drawn at random; answers requests meanwhile.
    async fn reconnect(
        &mut self,
        session: &mut mqtt_client::Session,
        queue: &mut mpsc::Receiver<Request>,
    ) -> Result<Connected, Ended> {
        let mut pause = PAUSE_MIN;
        loop {
            // Decorrelated jitter: devices that were cut off together do not come back together.
            pause = jitter(PAUSE_MIN, pause.saturating_mul(3).min(PAUSE_MAX));
            let connected = {
                let attempt = async {
                    tokio::time::sleep(pause).await;
                    self.connect(false).await
                };
                let mut attempt = std::pin::pin!(attempt);
                loop {
                    tokio::select! {
                        connected = &mut attempt => break connected,
                        request = queue.recv() => match request {
                            None | Some(Request::Disconnect) => return Err(Ended::Asked),
                            Some(Request::Publish(outgoing)) => session.queue(outgoing),
                            // Their answer is that there is no connection.
                            Some(Request::Subscribe(..) | Request::Unsubscribe(..)) => {}
                        },
                    }
                }
            };
            match connected {
                Ok(link) => return Ok(link),
                Err(OpenError::Refused(reason)) if !is_transient(reason) => {
                    tracing::warn!(client_id = ?self.login.client_id, %reason, "the broker refuses a client that it had");
                    return Err(Ended::Refused);
                }
                Err(error) => {
                    self.inner.counters.connects_failed.inc();
                    tracing::debug!(client_id = ?self.login.client_id, %error, "the broker is not back");
                }
            }
        }
    }
}

/// Whether the broker may accept the same client later.
fn is_transient(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::UNSPECIFIED
            | Reason::IMPLEMENTATION_SPECIFIC
            | Reason::SERVER_UNAVAILABLE
            | Reason::SERVER_BUSY
            | Reason::QUOTA_EXCEEDED
            | Reason::USE_ANOTHER_SERVER
            | Reason::SERVER_MOVED
            | Reason::CONNECTION_RATE_EXCEEDED
    )
}

/// The subscriptions, to be made again.
fn resubscribe(shared: &Shared) -> Vec<Request> {
    let filters: Vec<SubscribeFilter> = shared
        .filters
        .lock()
        .iter()
        .map(|(filter, qos)| SubscribeFilter { filter: filter.clone(), options: SubscriptionOptions::new(*qos) })
        .collect();
    let packets = filters.chunks(FILTERS_IN_A_PACKET);
    // The answer shows in what arrives; a filter that was granted once is asked for again at the next connection.
    packets.map(|filters| Request::Subscribe(filters.to_vec(), oneshot::channel().0)).collect()
}

/// A span between the two, drawn at random.
fn jitter(min: Duration, max: Duration) -> Duration {
    let Ok(random) = getrandom::u32() else { return max };
    let span = max.saturating_sub(min);
    min + span.mul_f64(f64::from(random) / f64::from(u32::MAX))
}

/// Starts the gateway's own client, which publishes what no device is the origin of.
pub(super) fn start_own(inner: &Arc<Inner>) -> Requests {
    let (requests, queue) = Requests::new(REQUESTS_MAX * 4);
    let options = &inner.options;
    let login = Login {
        client_id: format!("{}-gateway", options.node).into(),
        username: options.login.as_ref().map(|(username, _)| username.as_str().into()),
        password: options.login.as_ref().map(|(_, password)| password.clone()),
    };
    let client = Client::new(inner.clone(), login);
    // It subscribes to nothing.
    tokio::spawn(async move { client.run(None, queue, &Shared::default(), &mut |_| {}).await });
    requests
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message that is queued waits for a slow broker; one that is not even queued is an error.
    #[tokio::test]
    async fn success_means_that_the_message_is_queued() {
        let (requests, mut queue) = Requests::new(1);
        let session = Session { requests, shared: Arc::default() };
        let publish =
            |confirm| session.publish_within(Duration::from_millis(10), "t", QoS::AtLeastOnce, Bytes::new(), confirm);
        publish(false).await.unwrap();
        assert!(matches!(publish(false).await, Err(Error::Unreachable(_))));
        assert!(matches!(publish(true).await, Err(Error::Unconfirmed)));
        assert!(matches!(queue.recv().await, Some(Request::Publish(_))));
        assert!(queue.try_recv().is_err());
        assert!(matches!(publish(true).await, Err(Error::Unconfirmed)));
    }
}
