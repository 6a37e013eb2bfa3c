//! One connection of an MQTT client: CONNECT, then packets both ways until one side ends it.
//!
//! One task owns it. Packets are read only while there is room for their answers, and messages are taken from the
//! session only while there is room to write them, so a peer that does not read holds what [`PacketStream`] takes and its
//! bounded queue. Ends with a DISCONNECT that gives the reason, where the version has one.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::conn::{PeerAddr, QoS};
use crate::mqtt::alias::{Known, ReceivedAliases, SentAliases};
use crate::mqtt::decode::{DecodeError, Decoder};
use crate::mqtt::encode::{self, PublishParts};
use crate::mqtt::inbound::Receipt;
use crate::mqtt::outbound::{Outbound, PubRec, Send};
use crate::mqtt::packet::{Ack, Disconnect, Publish, SubAck, Subscribe, UnsubAck, Unsubscribe};
use crate::mqtt::{Packet, Reason, Version};
use crate::mqtt_stream::{Driven, PacketStream, ReadError, Stream};
use crate::pubsub::embedded::clients::{Attached, Client, Delivery, Detached, Room, WillAction};
use crate::pubsub::embedded::message::{Origin, Publication};
use crate::topic;

use super::Context;
use super::connect::{self, Session};

/// How long a peer may take nothing of what is sent to it.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// Acknowledgements that may wait for the disk; with more, nothing is read.
const ANSWERS_MAX: usize = 1_024;

/// Why a connection ends.
#[derive(Debug)]
pub(super) enum End {
    /// The peer has closed or reset it.
    Closed(Option<io::Error>),
    /// The peer has sent DISCONNECT.
    Disconnect(Disconnect),
    /// The broker ends it, for this reason.
    Refused(Reason, &'static str),
}

impl From<DecodeError> for End {
    fn from(error: DecodeError) -> Self {
        Self::Refused(error.reason, error.what)
    }
}

impl From<ReadError> for End {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Closed => Self::Closed(None),
            ReadError::Io(error) => Self::Closed(Some(error)),
            ReadError::Decode(error) => error.into(),
        }
    }
}

impl From<Detached> for End {
    fn from(_: Detached) -> Self {
        Self::Refused(Reason::SESSION_TAKEN_OVER, "another connection has its client id")
    }
}

/// Serves one peer until its end.
pub(super) async fn run(context: Arc<Context>, stream: Box<dyn Stream>, peer: PeerAddr, since: Instant) {
    let counters = context.router.counters();
    let mut wire = PacketStream::new(stream, Decoder::server(context.settings.packet_bytes_max));
    let opened = tokio::select! {
        opened = tokio::time::timeout_at(
            (since + context.settings.connect_timeout).into(),
            Box::pin(connect::connect(&context, &mut wire, peer)),
        ) => opened,
        () = context.drain.cancelled() => return wire.close().await,
    };
    let session = match opened {
        Ok(Ok(session)) => session,
        Ok(Err(end)) => {
            connect::refuse(&context, &mut wire, peer, &end);
            return wire.close().await;
        }
        Err(_) => {
            counters.connects_refused.count("timeout");
            tracing::debug!(%peer, "no CONNECT within {} ms", context.settings.connect_timeout.as_millis());
            return wire.close().await;
        }
    };
    let Session { attached: Attached { client, connection, .. }, version, expiry, .. } = &session;
    let (client, connection, version, expiry) = (client.clone(), *connection, *version, *expiry);
    tracing::debug!(client_id = ?client.id, %peer, "MQTT client connected");
    let mut connection_state = Connection::new(context.clone(), wire, session);
    let end = connection_state.serve().await;
    let Connection { mut wire, .. } = connection_state;

    let (will, new_expiry) = match &end {
        End::Disconnect(disconnect) => {
            // MQTT 5.0 section 3.14.4: only a normal DISCONNECT withdraws the will.
            let is_normal = disconnect.reason == Reason::SUCCESS;
            let will = if is_normal { WillAction::Discard } else { WillAction::Publish };
            (will, disconnect.session_expiry_s.map(|seconds| context.settings.expiry(seconds, expiry.anonymous)))
        }
        End::Closed(_) | End::Refused(..) => (WillAction::Publish, None),
    };
    {
        let _change = context.router.begin_change();
        let aftermath = context.router.clients().detach(&client, connection, will, new_expiry, Instant::now());
        context.router.settle(aftermath);
    }
    match &end {
        End::Refused(reason, why) => {
            counters.disconnects.count(connect::label(*reason));
            tracing::debug!(client_id = ?client.id, %peer, %reason, why, "MQTT client disconnected by the broker");
            if version == Version::V5 {
                wire.send(version, &Packet::Disconnect(Disconnect::new(*reason)));
            }
        }
        End::Disconnect(disconnect) => {
            tracing::debug!(client_id = ?client.id, %peer, reason = %disconnect.reason, "MQTT client disconnected");
        }
        End::Closed(error) => {
            let error = error.as_ref().map(tracing::field::display);
            tracing::debug!(client_id = ?client.id, %peer, error, "MQTT client closed its connection");
        }
    }
    wire.close().await;
}

/// A connection that has a session.
struct Connection {
    context: Arc<Context>,
    wire: PacketStream,
    client: Arc<Client>,
    connection: u64,
    version: Version,
    username: Box<str>,
    received_aliases: ReceivedAliases,
    sent_aliases: SentAliases,
    /// The peer's Maximum Packet Size.
    packet_bytes_max: usize,
    /// The peer's Session Expiry Interval was 0: it may not be raised by DISCONNECT.
    expiry_was_zero: bool,
    keepalive: Option<Duration>,
    last_packet: Instant,
    /// Acknowledgements that wait for the disk, each with the batch that it waits for.
    answers: VecDeque<(u64, Packet)>,
    /// The last batch on the disk.
    durable: Option<watch::Receiver<u64>>,
}

impl Connection {
    fn new(context: Arc<Context>, wire: PacketStream, session: Session) -> Self {
        let durable = context.router.journal().map(|journal| journal.durable());
        Self {
            received_aliases: ReceivedAliases::new(context.settings.topic_alias_max(session.version)),
            context,
            wire,
            client: session.attached.client,
            connection: session.attached.connection,
            version: session.version,
            username: session.username,
            sent_aliases: SentAliases::new(session.topic_alias_max),
            packet_bytes_max: session.packet_bytes_max,
            expiry_was_zero: session.expiry.asked_zero,
            // MQTT 5.0 section 3.1.2.10.
            keepalive: session.keepalive.map(|keepalive| keepalive * 3 / 2),
            last_packet: Instant::now(),
            answers: VecDeque::new(),
            durable,
        }
    }

    async fn serve(&mut self) -> End {
        loop {
            if let Err(end) = self.process() {
                return end;
            }
            let deadline = self.deadline();
            let has_room = self.wire.has_room();
            let driven = tokio::select! {
                biased;
                () = self.context.drain.cancelled() => {
                    return End::Refused(Reason::SERVER_SHUTTING_DOWN, "the broker is stopping");
                }
                driven = self.wire.drive() => driven,
                () = committed(&mut self.durable), if has_room && !self.answers.is_empty() => Ok(Driven::Written),
                () = self.client.wake.notified(), if has_room => Ok(Driven::Written),
                () = sleep_until(deadline), if deadline.is_some() => {
                    match self.handle_timeout(Instant::now()) {
                        Ok(()) => continue,
                        Err(end) => return end,
                    }
                }
            };
            match driven {
                Ok(Driven::Read | Driven::Written) => {}
                Ok(Driven::Closed) => return End::Closed(None),
                Err(error) => return End::Closed(Some(error)),
            }
        }
    }

    /// Handles what has arrived, then takes from the session what is to be sent, as far as there is room.
    fn process(&mut self) -> Result<(), End> {
        self.send_answers();
        while self.wire.has_room() && self.answers.len() < ANSWERS_MAX {
            let Some(packet) = self.wire.decoder.next_packet()? else { break };
            self.last_packet = Instant::now();
            self.handle(packet)?;
        }
        if self.wire.has_room() { self.send_queued() } else { Ok(()) }
    }

    fn deadline(&self) -> Option<Instant> {
        let keepalive = self.keepalive.map(|keepalive| self.last_packet + keepalive);
        let write = self.wire.blocked_since().map(|since| since + WRITE_TIMEOUT);
        match (keepalive, write) {
            (Some(keepalive), Some(write)) => Some(keepalive.min(write)),
            (keepalive, write) => keepalive.or(write),
        }
    }

    fn handle_timeout(&self, now: Instant) -> Result<(), End> {
        if self.keepalive.is_some_and(|keepalive| now >= self.last_packet + keepalive) {
            return Err(End::Refused(Reason::KEEP_ALIVE_TIMEOUT, "no packet within 1.5 times the keep alive"));
        }
        if self.wire.blocked_since().is_some_and(|since| now >= since + WRITE_TIMEOUT) {
            return Err(End::Refused(Reason::UNSPECIFIED, "the client has read nothing for 30 s"));
        }
        Ok(())
    }

    fn send(&mut self, packet: Packet) {
        self.wire.send(self.version, &packet);
    }

    /// Sends an acknowledgement, when what it acknowledges is as safe as `durability` asks for, in the order of the
    /// packets that it answers.
    fn answer(&mut self, packet: Packet) {
        let Some(journal) = self.context.router.journal() else { return self.send(packet) };
        match journal.position() {
            Some(batch) => self.answers.push_back((batch, packet)),
            None if self.answers.is_empty() => self.send(packet),
            None => self.answers.push_back((0, packet)),
        }
    }

    /// Sends the acknowledgements of what is on the disk by now.
    fn send_answers(&mut self) {
        let Some(durable) = &mut self.durable else { return };
        let durable = *durable.borrow_and_update();
        while let Some((_, packet)) = self.answers.pop_front_if(|(batch, _)| *batch <= durable) {
            self.wire.send(self.version, &packet);
        }
    }

    fn handle(&mut self, packet: Packet) -> Result<(), End> {
        match packet {
            Packet::Publish(publish) => self.publish(publish),
            Packet::PubAck(ack) => {
                self.client.with(self.connection, |outbound, _| outbound.handle_puback(ack.packet_id))?;
                Ok(())
            }
            Packet::PubRec(ack) => {
                let answer = self
                    .client
                    .with(self.connection, |outbound, _| outbound.handle_pubrec(ack.packet_id, ack.reason))?;
                match answer.0 {
                    PubRec::Release(reason) => self.answer(Packet::PubRel(Ack::new(ack.packet_id, reason))),
                    PubRec::Refused => {}
                }
                Ok(())
            }
            Packet::PubRel(ack) => {
                let known = self.client.with(self.connection, |_, inbound| inbound.handle_pubrel(ack.packet_id))?;
                let reason = if known { Reason::SUCCESS } else { Reason::PACKET_ID_NOT_FOUND };
                self.answer(Packet::PubComp(Ack::new(ack.packet_id, reason)));
                Ok(())
            }
            Packet::PubComp(ack) => {
                self.client.with(self.connection, |outbound, _| outbound.handle_pubcomp(ack.packet_id))?;
                Ok(())
            }
            Packet::Subscribe(subscribe) => self.subscribe(&subscribe),
            Packet::Unsubscribe(unsubscribe) => self.unsubscribe(&unsubscribe),
            Packet::PingReq => {
                self.send(Packet::PingResp);
                Ok(())
            }
            Packet::Disconnect(disconnect) => {
                // MQTT 5.0 section 3.14.2.2.2.
                if self.expiry_was_zero && disconnect.session_expiry_s.is_some_and(|seconds| seconds > 0) {
                    let what = "DISCONNECT sets a session expiry after a CONNECT without one";
                    return Err(End::Refused(Reason::PROTOCOL_ERROR, what));
                }
                Err(End::Disconnect(disconnect))
            }
            Packet::Connect(_) => Err(End::Refused(Reason::PROTOCOL_ERROR, "a second CONNECT")),
            Packet::Auth(_) => {
                Err(End::Refused(Reason::PROTOCOL_ERROR, "AUTH after a CONNECT without authentication method"))
            }
            Packet::ConnAck(_) | Packet::SubAck(_) | Packet::UnsubAck(_) | Packet::PingResp => {
                Err(End::Refused(Reason::PROTOCOL_ERROR, "a packet that only a server sends"))
            }
        }
    }

    fn publish(&mut self, mut publish: Publish) -> Result<(), End> {
        if !publish.subscription_ids.is_empty() {
            return Err(End::Refused(Reason::PROTOCOL_ERROR, "PUBLISH of a client with a subscription identifier"));
        }
        self.received_aliases.resolve(publish.topic_alias, &mut publish.topic)?;
        let context = self.context.clone();
        // A message of QoS 2 and that it was received are kept together, or neither.
        let _change = context.router.begin_change();
        if let Some(packet_id) = publish.packet_id {
            // MQTT 3.1.1 has no Receive Maximum that a client could obey.
            let receive_max = match self.version {
                Version::V311 => u16::MAX,
                Version::V5 => self.context.settings.inflight_max,
            };
            let exactly_once = publish.qos == QoS::ExactlyOnce;
            let receipt = self
                .client
                .with(self.connection, |_, inbound| inbound.handle_publish(packet_id, exactly_once, receive_max))?;
            match receipt {
                Receipt::New => {}
                Receipt::Duplicate => {
                    self.answer(Packet::PubRec(Ack::new(packet_id, Reason::SUCCESS)));
                    return Ok(());
                }
                Receipt::TooMany => {
                    return Err(End::Refused(Reason::RECEIVE_MAXIMUM_EXCEEDED, "more than the Receive Maximum"));
                }
            }
        }
        let reason = self.route(&publish);
        self.acknowledge(&publish, reason)
    }

    /// Passes a message on, if it may be published, as a part of a change; gives the reason code of its acknowledgement.
    fn route(&self, publish: &Publish) -> Reason {
        let Context { router, auth, .. } = &*self.context;
        let refused = if topic::check_name(&publish.topic).is_err() {
            Reason::TOPIC_NAME_INVALID
        } else if !auth.allows_publish(&self.client.id, &self.username, &publish.topic) {
            Reason::NOT_AUTHORIZED
        } else {
            let recipients = router.publish_in_change(&Publication {
                origin: Origin::Client(&self.client.id, self.client.serial),
                topic: &publish.topic,
                qos: publish.qos,
                retain: publish.retain,
                payload: &publish.payload,
                properties: publish.properties.as_deref(),
            });
            return if recipients == 0 { Reason::NO_MATCHING_SUBSCRIBERS } else { Reason::SUCCESS };
        };
        router.counters().publishes_denied.inc();
        tracing::debug!(client_id = ?self.client.id, reason = %refused, "message of an MQTT client refused");
        refused
    }

    /// An MQTT 3.1.1 client has no way to learn that its message is denied except by losing its connection; it gets its
    /// acknowledgement instead and the message goes nowhere, as MQTT 3.1.1 section 3.3.5 allows: a client that
    /// reconnects and publishes again would only do so for ever.
    fn acknowledge(&mut self, publish: &Publish, reason: Reason) -> Result<(), End> {
        let Some(packet_id) = publish.packet_id else { return Ok(()) };
        if publish.qos == QoS::AtLeastOnce || (reason.is_error() && self.version == Version::V5) {
            self.client.with(self.connection, |_, inbound| inbound.acknowledged(packet_id))?;
        }
        let ack = Ack::new(packet_id, reason);
        self.answer(if publish.qos == QoS::AtLeastOnce { Packet::PubAck(ack) } else { Packet::PubRec(ack) });
        Ok(())
    }

    fn subscribe(&mut self, subscribe: &Subscribe) -> Result<(), End> {
        let mut reasons = Vec::with_capacity(subscribe.filters.len());
        for asked in &subscribe.filters {
            let reason = match self.may_subscribe(&asked.filter) {
                Err(refused) => refused,
                Ok(()) => {
                    let entered = self.context.router.subscribe_client(
                        &self.client,
                        self.connection,
                        &asked.filter,
                        asked.options,
                        subscribe.subscription_id,
                    )?;
                    match entered {
                        Ok(_) => Reason(asked.options.qos as u8),
                        Err(refused) => refused,
                    }
                }
            };
            if reason.is_error() {
                let counters = self.context.router.counters();
                counters.subscribes_denied.inc();
                let shown = topic::Excerpt(&asked.filter);
                tracing::debug!(client_id = ?self.client.id, filter = %shown, %reason, "subscription refused");
            }
            reasons.push(reason);
        }
        self.answer(Packet::SubAck(SubAck { packet_id: subscribe.packet_id, reasons }));
        Ok(())
    }

    fn may_subscribe(&self, filter: &str) -> Result<(), Reason> {
        if filter.len() > self.context.settings.filter_bytes_max {
            return Err(Reason::QUOTA_EXCEEDED);
        }
        if topic::parse_filter(filter).is_err() {
            return Err(Reason::TOPIC_FILTER_INVALID);
        }
        let allowed = self.context.auth.allows_subscribe(&self.client.id, &self.username, filter);
        if allowed { Ok(()) } else { Err(Reason::NOT_AUTHORIZED) }
    }

    fn unsubscribe(&mut self, unsubscribe: &Unsubscribe) -> Result<(), End> {
        let mut reasons = Vec::with_capacity(unsubscribe.filters.len());
        for filter in &unsubscribe.filters {
            reasons.push(self.context.router.unsubscribe_client(&self.client, self.connection, filter)?);
        }
        self.answer(Packet::UnsubAck(UnsubAck { packet_id: unsubscribe.packet_id, reasons }));
        Ok(())
    }

    /// Takes from the session what may be sent.
    fn send_queued(&mut self) -> Result<(), End> {
        let now = Instant::now();
        let Self { context, wire, client, version, sent_aliases, packet_bytes_max, .. } = self;
        let (version, packet_bytes_max) = (*version, *packet_bytes_max);
        let router = &context.router;
        let mut oversize = 0;
        client.poll_send(
            self.connection,
            now,
            |send, outbound| {
                match send {
                    Send::PubRel { packet_id } => {
                        wire.send(version, &Packet::PubRel(Ack::new(packet_id, Reason::SUCCESS)));
                    }
                    Send::Publish { message, qos, packet_id, dup, expires } => {
                        let left = expires.or(message.message.expires);
                        let parts = Parts { delivery: &message, qos, packet_id, dup };
                        let expiry = left.map(|expires| expires.saturating_duration_since(now));
                        if !write_publish(wire, version, &parts, expiry, packet_bytes_max, sent_aliases) {
                            // MQTT 5.0 section 3.1.2.11.4: as if it had been sent.
                            oversize += 1;
                            discard(outbound, packet_id);
                        }
                    }
                }
                if wire.has_room() { Room::Left } else { Room::Full }
            },
            |filter, from, found| router.retained_page(filter, from, now, found),
        )?;
        if oversize > 0 {
            router.counters().dropped.oversize.inc_by(oversize);
            tracing::debug!(client_id = ?client.id, messages = oversize, "larger than the client takes");
        }
        Ok(())
    }
}

fn discard(outbound: &mut Outbound<Delivery>, packet_id: Option<u16>) {
    if let Some(packet_id) = packet_id {
        outbound.discard(packet_id);
    }
}

struct Parts<'a> {
    delivery: &'a Delivery,
    qos: QoS,
    packet_id: Option<u16>,
    dup: bool,
}

/// Writes a PUBLISH; says whether the peer takes one that large.
fn write_publish(
    wire: &mut PacketStream,
    version: Version,
    parts: &Parts<'_>,
    expiry: Option<Duration>,
    packet_bytes_max: usize,
    aliases: &mut SentAliases,
) -> bool {
    let Delivery { message, retain, subscription_ids } = parts.delivery;
    let mut publish = PublishParts {
        dup: parts.dup,
        qos: parts.qos,
        retain: *retain,
        packet_id: parts.packet_id,
        topic: &message.topic,
        topic_alias: None,
        expiry,
        subscription_ids: subscription_ids.as_deref().unwrap_or_default(),
        properties: message.properties.as_deref(),
        payload: &message.payload,
    };
    // With an alias and its topic it is at its largest; what is not sent must not set an alias.
    if encode::publish_bytes(version, &publish) + 3 > packet_bytes_max {
        if encode::publish_bytes(version, &publish) > packet_bytes_max {
            return false;
        }
    } else if version == Version::V5
        && let Some((alias, known)) = aliases.assign(&message.topic)
    {
        publish.topic_alias = Some(alias);
        if known == Known::Yes {
            publish.topic = "";
        }
    }
    if let Err(error) = encode::publish(version, &publish, &mut wire.out) {
        tracing::error!(%error, "a message for an MQTT client was not sent");
        return false;
    }
    true
}

/// Returns when something more is on the disk.
async fn committed(durable: &mut Option<watch::Receiver<u64>>) {
    match durable {
        // The sender lives as long as the router.
        Some(durable) => drop(durable.changed().await),
        None => std::future::pending().await,
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}
