//! One connection of an MQTT client: CONNECT, then requests and messages both ways until one side ends it.
//!
//! The state of the session outlives the connection and belongs to the caller, who may [`serve`] it again on the next
//! one. What the server's CONNACK allows is obeyed: Receive Maximum, Maximum QoS, Retain Available, Maximum Packet Size,
//! Topic Alias Maximum, Server Keep Alive. A publish is answered when the server has acknowledged it: at PUBACK for
//! QoS 1, at PUBREC for QoS 2, and when it is taken for QoS 0.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::{mpsc, oneshot};

use crate::byte_budget::ByteBudget;
use crate::conn::QoS;
use crate::mqtt::alias::{Known, ReceivedAliases, SentAliases};
use crate::mqtt::decode::{DecodeError, Decoder};
use crate::mqtt::encode::{self, PublishParts};
use crate::mqtt::inbound::{Inbound, Receipt};
use crate::mqtt::outbound::{Bounds, Outbound, PubRec, Send};
use crate::mqtt::packet::{Ack, ConnAck, Connect, Disconnect, Publish, Subscribe, SubscribeFilter, Unsubscribe};
use crate::mqtt::{PACKET_BYTES_MAX, Packet, Reason, Version};
use crate::mqtt_stream::{Driven, PacketStream, ReadError, Stream};

/// The client's Receive Maximum: messages of QoS 2 that it has not released.
const RECEIVE_MAX: u16 = 1_000;

/// Topic aliases that the server may set.
const TOPIC_ALIAS_MAX: u16 = 16;

/// How long the server may take nothing of what is sent, and how long for the answer to a PINGREQ.
const SERVER_TIMEOUT: Duration = Duration::from_secs(30);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// The connection has failed before CONNACK.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The server has refused.
    #[error("the server refused the connection: {}", .0.reason)]
    Refused(Box<ConnAck>),
    /// Something else than a CONNACK came.
    #[error("expected CONNACK, got {0}")]
    Unexpected(&'static str),
}

/// A connection that the server has accepted.
#[derive(Debug)]
pub(crate) struct Link {
    stream: PacketStream,
    version: Version,
    /// What CONNECT has asked for.
    keepalive_s: u16,
    connack: Box<ConnAck>,
}

impl Link {
    /// Whether the server has kept the session.
    pub(crate) fn session_present(&self) -> bool {
        self.connack.session_present
    }
}

/// Sends CONNECT and waits for a CONNACK of success.
///
/// # Errors
///
/// [`ConnectError`].
pub(crate) async fn connect(
    stream: Box<dyn Stream>,
    mut connect: Connect,
    packet_bytes_max: u32,
) -> Result<Link, ConnectError> {
    let (version, keepalive_s) = (connect.version, connect.keepalive_s);
    let mut stream = PacketStream::new(stream, Decoder::client(version, packet_bytes_max.min(PACKET_BYTES_MAX)));
    connect.receive_max = Some(RECEIVE_MAX);
    connect.topic_alias_max = TOPIC_ALIAS_MAX;
    connect.packet_bytes_max = (packet_bytes_max < PACKET_BYTES_MAX).then_some(packet_bytes_max);
    stream.send(version, &Packet::Connect(Box::new(connect)));
    let packet = stream.packet().await?;
    let Packet::ConnAck(connack) = packet else { return Err(ConnectError::Unexpected(packet.name())) };
    if connack.reason == Reason::SUCCESS {
        Ok(Link { stream, version, keepalive_s, connack })
    } else {
        Err(ConnectError::Refused(connack))
    }
}

/// A message to publish.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) topic: Box<str>,
    pub(crate) qos: QoS,
    pub(crate) retain: bool,
    pub(crate) payload: Bytes,
    /// Whether its publisher waits for the acknowledgement itself, also without a connection.
    confirm: bool,
    /// Who waits for the acknowledgement.
    answer: Mutex<Option<oneshot::Sender<Result<Reason, PublishError>>>>,
}

/// What an unacknowledged message costs beside topic and payload, in bytes, about.
const OVERHEAD_BYTES: usize = 200;

impl Outgoing {
    pub(crate) fn bytes(&self) -> usize {
        self.topic.len() + self.payload.len() + OVERHEAD_BYTES
    }

    /// It waits for the next connection.
    fn answer_kept(&self) {
        if !self.confirm {
            self.answer(Ok(Reason::SUCCESS));
        }
    }

    fn answer(&self, result: Result<Reason, PublishError>) {
        if let Some(answer) = self.answer.lock().take() {
            // Who does not wait any more does not need it.
            drop(answer.send(result));
        }
    }
}

/// Why a message was not published.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PublishError {
    /// The server has refused it.
    #[error("the broker refused the message: {0}")]
    Refused(Reason),
    /// More wait for acknowledgement than is allowed.
    #[error("too many messages wait for the broker")]
    Full,
    /// The server takes no packet that large.
    #[error("the packet has {bytes} bytes, and the broker takes {bytes_max}")]
    TooLarge { bytes: usize, bytes_max: usize },
    /// The server keeps no retained messages.
    #[error("the broker keeps no retained messages")]
    RetainNotAvailable,
    /// The connection has ended before the acknowledgement, or there was none.
    #[error("there is no connection to the broker")]
    Lost,
}

/// What a client is asked to do.
pub(crate) enum Request {
    Publish(Arc<Outgoing>),
    Subscribe(Vec<SubscribeFilter>, oneshot::Sender<Vec<Reason>>),
    Unsubscribe(Vec<Box<str>>, oneshot::Sender<Vec<Reason>>),
    Disconnect,
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Publish(_) => "Publish",
            Self::Subscribe(..) => "Subscribe",
            Self::Unsubscribe(..) => "Unsubscribe",
            Self::Disconnect => "Disconnect",
        })
    }
}

/// Puts requests into the queue of a client. Clones share it; the client ends when the last one is gone.
#[derive(Clone, Debug)]
pub(crate) struct Requests(mpsc::Sender<Request>);

impl Requests {
    /// A queue of at most `requests_max`.
    pub(crate) fn new(requests_max: usize) -> (Self, mpsc::Receiver<Request>) {
        let (sender, receiver) = mpsc::channel(requests_max);
        (Self(sender), receiver)
    }

    /// Publishes; returns when the server has acknowledged.
    ///
    /// # Errors
    ///
    /// [`PublishError`].
    pub(crate) async fn publish(
        &self,
        topic: &str,
        qos: QoS,
        payload: Bytes,
        confirm: bool,
    ) -> Result<Reason, PublishError> {
        self.publish_later(topic, qos, payload, confirm).await?.await.unwrap_or(Err(PublishError::Lost))
    }

    /// Publishes; what is given back is answered when the server has acknowledged.
    ///
    /// # Errors
    ///
    /// [`PublishError::Lost`].
    pub(crate) async fn publish_later(
        &self,
        topic: &str,
        qos: QoS,
        payload: Bytes,
        confirm: bool,
    ) -> Result<oneshot::Receiver<Result<Reason, PublishError>>, PublishError> {
        let (sender, receiver) = oneshot::channel();
        let answer = Mutex::new(Some(sender));
        let outgoing = Outgoing { topic: topic.into(), qos, retain: false, payload, confirm, answer };
        self.0.send(Request::Publish(Arc::new(outgoing))).await.map_err(|_| PublishError::Lost)?;
        Ok(receiver)
    }

    /// Subscribes; gives the reason codes of the SUBACK, `None` when the connection has ended before.
    pub(crate) async fn subscribe(&self, filters: Vec<SubscribeFilter>) -> Option<Vec<Reason>> {
        let (sender, receiver) = oneshot::channel();
        self.0.send(Request::Subscribe(filters, sender)).await.ok()?;
        receiver.await.ok()
    }

    /// Ends subscriptions; gives the reason codes of the UNSUBACK, `None` when the connection has ended before.
    pub(crate) async fn unsubscribe(&self, filters: Vec<Box<str>>) -> Option<Vec<Reason>> {
        let (sender, receiver) = oneshot::channel();
        self.0.send(Request::Unsubscribe(filters, sender)).await.ok()?;
        receiver.await.ok()
    }

    /// Asks for a DISCONNECT; says whether there was a client to ask.
    pub(crate) async fn disconnect(&self) -> bool {
        self.0.send(Request::Disconnect).await.is_ok()
    }
}

/// The state of a session, which outlives connections.
pub(crate) struct Session {
    outbound: Outbound<Arc<Outgoing>>,
    inbound: Inbound,
    /// Of all sessions of one broker together.
    budget: Arc<ByteBudget>,
    /// Bytes that the budget knows of.
    accounted: usize,
    /// Messages that were dropped: of QoS 0 without a connection, or of a session that has ended.
    dropped: Counter,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.budget.update(self.accounted, 0);
        self.dropped.inc_by(self.outbound.messages().count() as u64);
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("messages", &self.outbound.len()).finish_non_exhaustive()
    }
}

impl Session {
    pub(crate) fn new(bounds: Bounds, budget: Arc<ByteBudget>, dropped: Counter) -> Self {
        Self { outbound: Outbound::new(bounds), inbound: Inbound::default(), budget, accounted: 0, dropped }
    }

    /// Queues a message while there is no connection. One of QoS 0 is not kept; one of QoS 1 or 2 is answered when it
    /// is in the queue, or refused when there is no room.
    pub(crate) fn queue(&mut self, outgoing: Arc<Outgoing>) {
        if outgoing.qos == QoS::AtMostOnce {
            self.dropped.inc();
            return outgoing.answer(Err(PublishError::Lost));
        }
        let qos = outgoing.qos;
        self.push(outgoing.clone(), qos);
        outgoing.answer_kept();
        self.account();
    }

    /// Answers an unanswered message when it finds no room.
    fn push(&mut self, outgoing: Arc<Outgoing>, qos: QoS) {
        let bytes = outgoing.bytes();
        if !self.budget.admits(self.outbound.bytes(), bytes) {
            return outgoing.answer(Err(PublishError::Full));
        }
        let pushed = self.outbound.push(outgoing.clone(), qos, bytes, None);
        if !pushed.queued {
            outgoing.answer(Err(PublishError::Full));
        }
        // The publisher of this message gets an error; those of messages of QoS 0 that made room do not.
        self.dropped.inc_by((pushed.dropped - usize::from(!pushed.queued)) as u64);
    }

    /// The connection is gone: what waits for an acknowledgement is kept for the next one, and its publishers wait no
    /// longer.
    fn disconnected(&mut self) {
        self.dropped.inc_by(self.outbound.disconnected() as u64);
        for message in self.outbound.messages() {
            message.answer_kept();
        }
        self.account();
    }

    /// Follows a change of the queued bytes in the sum of all.
    fn account(&mut self) {
        let bytes = self.outbound.bytes();
        self.budget.update(self.accounted, bytes);
        self.accounted = bytes;
    }
}

/// Why a connection has ended.
#[derive(Debug)]
pub(crate) enum End {
    /// The server has closed it, or it has failed.
    Lost(ReadError),
    /// The server has said why.
    Disconnected(Disconnect),
    /// The server has broken the protocol, or does not answer.
    Broken(Reason, &'static str),
    /// It was asked for.
    Asked,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost(error) => error.fmt(f),
            Self::Disconnected(disconnect) => write!(f, "the broker ended the connection: {}", disconnect.reason),
            Self::Broken(reason, what) => write!(f, "{what}: {reason}"),
            Self::Asked => f.write_str("disconnected"),
        }
    }
}

impl<E: Into<ReadError>> From<E> for End {
    fn from(error: E) -> Self {
        match error.into() {
            ReadError::Decode(DecodeError { reason, what }) => Self::Broken(reason, what),
            error @ (ReadError::Closed | ReadError::Io(_)) => Self::Lost(error),
        }
    }
}

/// Who waits for SUBACK or UNSUBACK.
type Waiting = HashMap<u16, oneshot::Sender<Vec<Reason>>>;

/// What has been agreed on with the server.
#[derive(Clone, Copy, Debug)]
struct Terms {
    version: Version,
    packet_bytes_max: usize,
    qos_max: QoS,
    retain_available: bool,
}

/// Serves a connection until its end: answers requests, hands messages to `deliver`.
///
/// `first` is requested before all else.
pub(crate) async fn serve(
    link: Link,
    session: &mut Session,
    first: Vec<Request>,
    requests: &mut mpsc::Receiver<Request>,
    deliver: &mut (dyn FnMut(Publish) + std::marker::Send),
) -> End {
    let Link { mut stream, version, keepalive_s, connack } = link;
    if !connack.session_present {
        session.inbound = Inbound::default();
        session.outbound.restart();
    }
    session.inbound.connected();
    session.outbound.connected(connack.receive_max.unwrap_or(u16::MAX));
    let mut connection = Connection {
        terms: Terms {
            version,
            packet_bytes_max: connack.packet_bytes_max.map_or(usize::MAX, |bytes| bytes as usize),
            qos_max: connack.qos_max.unwrap_or(QoS::ExactlyOnce),
            retain_available: connack.retain_available,
        },
        stream: &mut stream,
        session,
        waiting: Waiting::new(),
        received_aliases: ReceivedAliases::new(if version == Version::V5 { TOPIC_ALIAS_MAX } else { 0 }),
        sent_aliases: SentAliases::new(connack.topic_alias_max),
        keepalive: Duration::from_secs(connack.keepalive_s.unwrap_or(keepalive_s).into()),
        last_sent: Instant::now(),
        ping_sent: None,
    };
    for request in first {
        connection.request(request);
    }
    let end = connection.run(requests, deliver).await.err().unwrap_or(End::Asked);
    session.disconnected();
    match &end {
        // With the connection the session ends, whatever CONNECT has asked for.
        End::Asked => stream.send(
            version,
            &Packet::Disconnect(Disconnect { session_expiry_s: Some(0), ..Disconnect::new(Reason::SUCCESS) }),
        ),
        End::Broken(reason, _) if version == Version::V5 => {
            stream.send(version, &Packet::Disconnect(Disconnect::new(*reason)));
        }
        End::Broken(..) | End::Lost(_) | End::Disconnected(_) => {}
    }
    stream.close().await;
    end
}

struct Connection<'a> {
    terms: Terms,
    stream: &'a mut PacketStream,
    session: &'a mut Session,
    waiting: Waiting,
    received_aliases: ReceivedAliases,
    sent_aliases: SentAliases,
    /// Zero turns it off.
    keepalive: Duration,
    last_sent: Instant,
    ping_sent: Option<Instant>,
}

impl Connection<'_> {
    /// Ends with an error, or without one when that was asked for.
    async fn run(
        &mut self,
        requests: &mut mpsc::Receiver<Request>,
        deliver: &mut (dyn FnMut(Publish) + std::marker::Send),
    ) -> Result<(), End> {
        loop {
            while self.stream.has_room() {
                let Some(packet) = self.stream.decoder.next_packet()? else { break };
                self.handle(packet, deliver)?;
            }
            self.send_queued();
            self.session.account();
            if !self.stream.out.is_empty() {
                self.last_sent = Instant::now();
            }
            let deadline = self.deadline();
            let takes_requests = self.stream.has_room();
            tokio::select! {
                driven = self.stream.drive() => match driven? {
                    Driven::Read | Driven::Written => {}
                    Driven::Closed => return Err(End::Lost(ReadError::Closed)),
                },
                request = requests.recv(), if takes_requests => match request {
                    None | Some(Request::Disconnect) => return Ok(()),
                    Some(request) => self.request(request),
                },
                () = sleep_until(deadline) => self.handle_timeout(Instant::now())?,
            }
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let ping = match self.ping_sent {
            Some(sent) => Some(sent + SERVER_TIMEOUT),
            None if self.keepalive.is_zero() => None,
            None => Some(self.last_sent + self.keepalive),
        };
        let write = self.stream.blocked_since().map(|since| since + SERVER_TIMEOUT);
        match (ping, write) {
            (Some(ping), Some(write)) => Some(ping.min(write)),
            (ping, write) => ping.or(write),
        }
    }

    fn handle_timeout(&mut self, now: Instant) -> Result<(), End> {
        let is_over = |since: Option<Instant>| since.is_some_and(|since| now >= since + SERVER_TIMEOUT);
        if is_over(self.ping_sent) || is_over(self.stream.blocked_since()) {
            return Err(End::Broken(Reason::KEEP_ALIVE_TIMEOUT, "the broker did not answer within 30 s"));
        }
        if self.ping_sent.is_none() && !self.keepalive.is_zero() && now >= self.last_sent + self.keepalive {
            self.stream.send(self.terms.version, &Packet::PingReq);
            self.ping_sent = Some(now);
        }
        Ok(())
    }

    fn send(&mut self, packet: &Packet) {
        self.stream.send(self.terms.version, packet);
    }

    fn request(&mut self, request: Request) {
        match request {
            Request::Publish(outgoing) => self.publish(outgoing),
            Request::Subscribe(filters, answer) => {
                let packet_id = self.reserve(answer);
                self.send(&Packet::Subscribe(Subscribe { packet_id, subscription_id: None, filters }));
            }
            Request::Unsubscribe(filters, answer) => {
                let packet_id = self.reserve(answer);
                self.send(&Packet::Unsubscribe(Unsubscribe { packet_id, filters }));
            }
            // The caller has seen to it.
            Request::Disconnect => {}
        }
    }

    fn reserve(&mut self, answer: oneshot::Sender<Vec<Reason>>) -> u16 {
        let packet_id = self.session.outbound.reserve_request();
        self.waiting.insert(packet_id, answer);
        packet_id
    }

    fn publish(&mut self, outgoing: Arc<Outgoing>) {
        if outgoing.retain && !self.terms.retain_available {
            return outgoing.answer(Err(PublishError::RetainNotAvailable));
        }
        let qos = outgoing.qos.min(self.terms.qos_max);
        let parts = parts(&outgoing, qos, Some(1).filter(|_| qos != QoS::AtMostOnce), false);
        let bytes = encode::publish_bytes(self.terms.version, &parts);
        let bytes_max = self.terms.packet_bytes_max;
        if bytes > bytes_max {
            return outgoing.answer(Err(PublishError::TooLarge { bytes, bytes_max }));
        }
        self.session.push(outgoing, qos);
    }

    /// Takes from the session what may be sent.
    fn send_queued(&mut self) {
        let now = Instant::now();
        while self.stream.has_room()
            && let Some(next) = self.session.outbound.poll_send(now, &mut 0)
        {
            match next {
                Send::PubRel { packet_id } => self.send(&Packet::PubRel(Ack::new(packet_id, Reason::SUCCESS))),
                Send::Publish { message, qos, packet_id, dup, .. } => {
                    let mut publish = parts(&message, qos, packet_id, dup);
                    let fits = encode::publish_bytes(self.terms.version, &publish) + 3 <= self.terms.packet_bytes_max;
                    if fits && let Some((alias, known)) = self.sent_aliases.assign(&message.topic) {
                        publish.topic_alias = Some(alias);
                        if known == Known::Yes {
                            publish.topic = "";
                        }
                    }
                    let result = encode::publish(self.terms.version, &publish, &mut self.stream.out);
                    match (result, packet_id) {
                        (Ok(()), Some(_)) => {}
                        (Ok(()), None) => message.answer(Ok(Reason::SUCCESS)),
                        (Err(_), id) => {
                            if let Some(id) = id {
                                self.session.outbound.discard(id);
                            }
                            let bytes = encode::publish_bytes(self.terms.version, &publish);
                            let bytes_max = PACKET_BYTES_MAX as usize;
                            message.answer(Err(PublishError::TooLarge { bytes, bytes_max }));
                        }
                    }
                }
            }
        }
    }

    fn handle(&mut self, packet: Packet, deliver: &mut (dyn FnMut(Publish) + std::marker::Send)) -> Result<(), End> {
        match packet {
            Packet::Publish(publish) => self.handle_publish(publish, deliver)?,
            Packet::PubAck(ack) => {
                if let Some(message) = self.session.outbound.handle_puback(ack.packet_id) {
                    message.answer(acknowledged(ack.reason));
                }
            }
            Packet::PubRec(ack) => {
                let (next, message) = self.session.outbound.handle_pubrec(ack.packet_id, ack.reason);
                if let Some(message) = message {
                    message.answer(acknowledged(ack.reason));
                }
                match next {
                    PubRec::Release(reason) => self.send(&Packet::PubRel(Ack::new(ack.packet_id, reason))),
                    PubRec::Refused => {}
                }
            }
            Packet::PubComp(ack) => {
                self.session.outbound.handle_pubcomp(ack.packet_id);
            }
            Packet::PubRel(ack) => {
                let known = self.session.inbound.handle_pubrel(ack.packet_id);
                let reason = if known { Reason::SUCCESS } else { Reason::PACKET_ID_NOT_FOUND };
                self.send(&Packet::PubComp(Ack::new(ack.packet_id, reason)));
            }
            Packet::SubAck(suback) => self.answer(suback.packet_id, suback.reasons),
            Packet::UnsubAck(unsuback) => self.answer(unsuback.packet_id, unsuback.reasons),
            Packet::PingResp => self.ping_sent = None,
            Packet::Disconnect(disconnect) => return Err(End::Disconnected(disconnect)),
            Packet::Connect(_)
            | Packet::ConnAck(_)
            | Packet::Subscribe(_)
            | Packet::Unsubscribe(_)
            | Packet::PingReq
            | Packet::Auth(_) => {
                return Err(End::Broken(Reason::PROTOCOL_ERROR, "a packet that a server does not send here"));
            }
        }
        Ok(())
    }

    fn answer(&mut self, packet_id: u16, reasons: Vec<Reason>) {
        self.session.outbound.release_request(packet_id);
        if let Some(answer) = self.waiting.remove(&packet_id) {
            // Who does not wait any more does not need it.
            drop(answer.send(reasons));
        }
    }

    fn handle_publish(
        &mut self,
        mut publish: Publish,
        deliver: &mut (dyn FnMut(Publish) + std::marker::Send),
    ) -> Result<(), End> {
        self.received_aliases.resolve(publish.topic_alias, &mut publish.topic)?;
        let Some(packet_id) = publish.packet_id else {
            deliver(publish);
            return Ok(());
        };
        let exactly_once = publish.qos == QoS::ExactlyOnce;
        match self.session.inbound.handle_publish(packet_id, exactly_once, RECEIVE_MAX) {
            Receipt::New => deliver(publish),
            Receipt::Duplicate => {}
            Receipt::TooMany => {
                return Err(End::Broken(Reason::RECEIVE_MAXIMUM_EXCEEDED, "more than the Receive Maximum"));
            }
        }
        let ack = Ack::new(packet_id, Reason::SUCCESS);
        if exactly_once {
            self.send(&Packet::PubRec(ack));
        } else {
            self.session.inbound.acknowledged(packet_id);
            self.send(&Packet::PubAck(ack));
        }
        Ok(())
    }
}

fn acknowledged(reason: Reason) -> Result<Reason, PublishError> {
    if reason.is_error() { Err(PublishError::Refused(reason)) } else { Ok(reason) }
}

fn parts(outgoing: &Outgoing, qos: QoS, packet_id: Option<u16>, dup: bool) -> PublishParts<'_> {
    PublishParts {
        dup,
        qos,
        retain: outgoing.retain,
        packet_id,
        topic: &outgoing.topic,
        topic_alias: None,
        expiry: None,
        subscription_ids: &[],
        properties: None,
        payload: &outgoing.payload,
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is not kept, and what is left when the session ends, is counted.
    #[tokio::test]
    async fn lost_messages_are_counted() {
        let (budget, dropped) = (Arc::new(ByteBudget::new(1 << 20)), Counter::default());
        let bounds = Bounds { messages_max: 3, bytes_max: 1 << 20, inflight_max: 1 };
        let mut session = Session::new(bounds, budget.clone(), dropped.clone());
        let mut queue = |qos| {
            let (sender, receiver) = oneshot::channel();
            let answer = Mutex::new(Some(sender));
            let payload = Bytes::new();
            session.queue(Arc::new(Outgoing {
                topic: "t".into(),
                qos,
                retain: false,
                payload,
                confirm: false,
                answer,
            }));
            receiver
        };
        assert_eq!(queue(QoS::AtMostOnce).await.unwrap(), Err(PublishError::Lost));
        assert_eq!(dropped.get(), 1);
        for _ in 0..3 {
            assert_eq!(queue(QoS::AtLeastOnce).await.unwrap(), Ok(Reason::SUCCESS));
        }
        assert_eq!(queue(QoS::AtLeastOnce).await.unwrap(), Err(PublishError::Full));
        assert_eq!(dropped.get(), 1, "the publisher of a refused message has an error");
        assert!(budget.used() > 0);
        drop(session);
        assert_eq!((dropped.get(), budget.used()), (4, 0));
    }
}
