//! Adapter: the operations of a handler on its connection: send, close, authenticate, timers, publish, subscribe.
//!
//! An [`Adapter`] belongs to one connection. It checks each command, calls [`auth`](crate::auth) and
//! [`pubsub`](crate::pubsub), and otherwise only collects: bytes in [`Outbound`], a close request, a timer change. The
//! connection applies these between two events, so an operation called inside an event never waits for the connection
//! that waits for the event.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::auth::{Auth, Credentials, Origin};
use crate::conn::registry::Mailbox;
use crate::conn::{ClientInfo, Command, ConnId, ConnInfo, Denied, Message, Password, QoS, Refused, Timer};
use crate::pubsub::{PubSub, Session};
use crate::telemetry::{ListenerMetrics, PAYLOAD_LOG};
use crate::topic::{Identity, Malformed, Mount, Mountpoint, check_name};

mod backend;
mod command_log;
mod dry_run;
mod outbound;

pub(crate) use backend::{AdapterSlot, Backend};
pub(crate) use command_log::{CommandLog, LoggedCommand};
pub(crate) use dry_run::DryRunAdapter;
pub(crate) use outbound::Outbound;

/// Longest keepalive interval: MQTT's (3.1.1 §3.1.2.10).
const KEEPALIVE_MAX: Duration = Duration::from_secs(65_535);

/// Longest name of a client, a user or a protocol, in bytes: MQTT's longest string (3.1.1 §1.5.3).
const NAME_BYTES_MAX: usize = 65_535;

/// Services shared by the adapters of one listener.
#[derive(Clone, Debug)]
pub struct Services {
    /// Authentication and authorization.
    pub auth: Auth,
    pub pubsub: PubSub,
    /// Prefix of the devices' topics.
    pub mountpoint: Mountpoint,
    pub metrics: ListenerMetrics,
    /// How long a message of QoS 1 or 2 may take to be acknowledged before anything is sent after it; `None` without
    /// confirmation.
    pub confirm_timeout: Option<Duration>,
}

/// Pending change of the keepalive timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimerChange {
    /// Start or restart it with this interval.
    Start(Duration),
    Stop,
}

#[derive(Debug)]
pub struct Adapter {
    conn: ConnId,
    /// The connection's id towards its handler.
    handler_conn: ConnId,
    info: Arc<ConnInfo>,
    services: Arc<Services>,
    mailbox: Mailbox,
    outbound: Outbound,
    timer_change: Option<TimerChange>,
    close_asked: bool,
    ended: bool,
    client: Option<Box<Client>>,
    /// The handler may not know that the peer is authenticated.
    reintroduced: bool,
    /// A message was not acknowledged in time: nothing is sent any more.
    unconfirmed: bool,
    /// Time that the handler has waited for password verifications and the broker.
    waited: Duration,
    /// Present while a shadow or a tap needs the commands.
    command_log: Option<Box<CommandLog>>,
}

/// State of the collected commands at the start of an event, for [`Adapter::roll_back`].
#[derive(Clone, Copy, Debug)]
pub struct Savepoint {
    outbound_bytes: usize,
    timer_change: Option<TimerChange>,
    close_asked: bool,
}

/// The authenticated client.
#[derive(Debug)]
struct Client {
    info: Arc<ClientInfo>,
    mount: Mount,
    session: Session,
}

impl Adapter {
    /// The adapter of a new connection. Its messages go to `mailbox`, its bytes to `outbound`.
    pub fn new(info: Arc<ConnInfo>, services: Arc<Services>, mailbox: Mailbox, outbound: Outbound) -> Self {
        Self {
            conn: mailbox.conn(),
            handler_conn: mailbox.conn(),
            info,
            services,
            mailbox,
            outbound,
            timer_change: None,
            close_asked: false,
            ended: false,
            client: None,
            reintroduced: false,
            unconfirmed: false,
            waited: Duration::ZERO,
            command_log: None,
        }
    }

    pub fn conn(&self) -> ConnId {
        self.conn
    }

    /// The connection's id towards its handler; it changes when the connection is taken over from a remote handler.
    pub fn handler_conn(&self) -> ConnId {
        self.handler_conn
    }

    pub fn info(&self) -> &Arc<ConnInfo> {
        &self.info
    }

    /// The authenticated client id; `None` before.
    pub fn client_id(&self) -> Option<&str> {
        self.client.as_ref().map(|client| client.info.client_id.as_str())
    }

    /// Bytes queued for the socket.
    pub fn outbound(&mut self) -> &mut Outbound {
        &mut self.outbound
    }

    /// Whether the handler called Close.
    pub fn close_asked(&self) -> bool {
        self.close_asked
    }

    /// Whether the broker did not acknowledge a message in time: the connection is to end without anything that would
    /// tell the device that its record is safe.
    pub fn is_unconfirmed(&self) -> bool {
        self.unconfirmed
    }

    /// Takes the time that the handler has waited for password verifications and the broker since the last call: it is no
    /// time of the handler's own.
    pub fn take_waited(&mut self) -> Duration {
        std::mem::take(&mut self.waited)
    }

    /// Takes the timer change since the last call.
    pub fn take_timer_change(&mut self) -> Option<TimerChange> {
        self.timer_change.take()
    }

    /// Marks the commands collected so far.
    pub fn savepoint(&self) -> Savepoint {
        Savepoint {
            outbound_bytes: self.outbound.bytes(),
            timer_change: self.timer_change,
            close_asked: self.close_asked,
        }
    }

    /// Discards the commands collected since `savepoint`, of an event that failed and will be delivered again. Valid
    /// only if nothing was written in between. Messages already published stay published.
    pub fn roll_back(&mut self, savepoint: Savepoint) {
        self.outbound.truncate(savepoint.outbound_bytes);
        self.timer_change = savepoint.timer_change;
        self.close_asked = savepoint.close_asked;
    }

    /// Starts or stops logging the handler's commands.
    pub fn enable_command_log(&mut self, keep: bool) {
        if !keep {
            self.command_log = None;
        } else if self.command_log.is_none() {
            self.command_log = Some(Box::default());
        }
    }

    /// The command log, if enabled.
    pub fn command_log(&mut self) -> Option<&mut CommandLog> {
        self.command_log.as_deref_mut()
    }

    /// The command to log, if logging is enabled.
    fn logged(&self, command: impl FnOnce() -> Command) -> Option<Command> {
        self.command_log.is_some().then(command)
    }

    fn log_command(&mut self, command: Option<Command>, result: &Result<(), Refused>) {
        if let (Some(command), Some(log)) = (command, &mut self.command_log) {
            log.write(command, result.clone());
        }
    }

    /// Another handler or instance serves the connection from now on, under the id `handler_conn`. It may authenticate
    /// the peer again, as the same client.
    pub fn set_handler_conn(&mut self, handler_conn: ConnId) {
        self.handler_conn = handler_conn;
        self.allow_reauthentication();
    }

    /// The handler may have lost its state of the connection, or may get an event again in which it authenticated the
    /// peer: allows one more Authenticate, as the same client.
    pub fn allow_reauthentication(&mut self) {
        self.reintroduced = true;
    }

    /// Ends the adapter: every further operation is refused as [`Refused::Gone`], and the client leaves the broker with
    /// its subscriptions.
    pub fn end(&mut self) {
        self.ended = true;
        self.outbound.clear();
        self.client = None;
    }

    /// Executes a command.
    ///
    /// # Errors
    ///
    /// [`Refused`], with expected and received values; the connection is unchanged.
    pub async fn apply(&mut self, command: Command) -> Result<(), Refused> {
        let logged = self.logged(|| command.without_password());
        let result = match command {
            Command::Send(bytes) => return self.send(bytes),
            Command::Close => return self.close(),
            Command::StartTimer { timer, interval } => return self.start_timer(timer, interval),
            Command::StopTimer(timer) => return self.stop_timer(timer),
            Command::Authenticate { client, password } => self.authenticate(client, password).await,
            Command::Publish { topic, qos, payload } => self.publish(&topic, qos, payload).await,
            Command::Subscribe { filter, qos } => self.subscribe(&filter, qos).await,
            Command::Unsubscribe { filter } => self.unsubscribe(&filter).await,
            Command::RawPublish { topic, qos, payload } => {
                raw_publish(&self.services.pubsub, &topic, qos, payload).await
            }
        };
        self.log_command(logged, &result);
        result
    }

    /// Queues bytes for the peer, in the order of the calls.
    ///
    /// # Errors
    ///
    /// [`Refused::Gone`] after the close or after a Close command, [`Refused::Full`] when the outbound queue is full,
    /// [`Refused::Malformed`] when the bytes do not fit into one datagram.
    pub fn send(&mut self, bytes: Bytes) -> Result<(), Refused> {
        let logged = self.logged(|| Command::Send(bytes.clone()));
        let result = self.queue(bytes);
        self.log_command(logged, &result);
        result
    }

    fn queue(&mut self, bytes: Bytes) -> Result<(), Refused> {
        self.check_open()?;
        if self.unconfirmed {
            return Err(Refused::Gone);
        }
        tracing::trace!(target: PAYLOAD_LOG, conn = %self.conn, ?bytes, "from the handler");
        if let Some(bytes_max) = self.info.kind.datagram_bytes_max()
            && bytes.len() > bytes_max
        {
            let why = format!("one Send is one datagram: expected at most {bytes_max} bytes, got {}", bytes.len());
            return Err(Refused::Malformed { what: "bytes", why });
        }
        if self.outbound.is_full() {
            return Err(Refused::Full {
                what: "the outbound queue",
                limit: format!("{} bytes", self.outbound.bytes_max()),
            });
        }
        self.outbound.push(bytes);
        Ok(())
    }

    /// Requests the close of the connection, after a flush.
    ///
    /// # Errors
    ///
    /// [`Refused::Gone`] after the close or after another Close.
    pub fn close(&mut self) -> Result<(), Refused> {
        let result = self.check_open();
        self.close_asked |= result.is_ok();
        let logged = self.logged(|| Command::Close);
        self.log_command(logged, &result);
        result
    }

    /// Authenticates the peer. A refused call may be repeated; after a success a second call is refused, unless it
    /// names the same client and comes from a handler that took the connection over or gets an event again.
    ///
    /// # Errors
    ///
    /// [`Refused::Missing`] without a client id, [`Refused::Malformed`] when a name is too long, or when the client id
    /// or the user name does not fit into the mountpoint, [`Refused::AlreadyAuthenticated`], [`Refused::Denied`],
    /// [`Refused::Full`] when too many passwords are to be verified, and [`Refused::Broker`] when the broker rejects the client.
    pub async fn authenticate(&mut self, client: ClientInfo, password: Option<Password>) -> Result<(), Refused> {
        self.check_open()?;
        if let Some(known) = &self.client {
            if self.reintroduced && known.info.client_id == client.client_id {
                self.reintroduced = false;
                return Ok(());
            }
            return Err(Refused::AlreadyAuthenticated { client_id: known.info.client_id.clone() });
        }
        check_client(&client)?;
        let identity = Identity {
            client_id: &client.client_id,
            username: &client.username,
            peer_host: Some(self.info.peer.host()),
        };
        let mount = self
            .services
            .mountpoint
            .fill(&identity)
            .map_err(|unfit| Refused::Malformed { what: "clientinfo", why: unfit.to_string() })?;
        let info = Arc::new(client);
        let began = Instant::now();
        let opened = self.open_session(&info, password).await;
        self.waited += began.elapsed();
        let session = opened?;
        tracing::info!(
            conn = %self.conn,
            client_id = info.client_id,
            username = info.username,
            proto = info.proto_name,
            "authenticated"
        );
        self.client = Some(Box::new(Client { info, mount, session }));
        Ok(())
    }

    /// Verifies the password, here or at an external broker, and opens the client's session there.
    async fn open_session(&self, client: &Arc<ClientInfo>, password: Option<Password>) -> Result<Session, Refused> {
        let Services { pubsub, auth, .. } = &*self.services;
        if !pubsub.authenticates() {
            let credentials = Credentials {
                client_id: &client.client_id,
                username: &client.username,
                password: password.as_ref(),
                origin: Origin::Device,
                address: Some(self.info.peer.host()),
            };
            auth.authenticate(credentials).await?;
        }
        let opened = pubsub.open(Arc::clone(client), password.as_ref(), self.info.peer, self.mailbox.clone()).await;
        opened.map_err(Refused::from)
    }

    /// Starts or restarts the keepalive timer.
    ///
    /// # Errors
    ///
    /// [`Refused::Malformed`] when the interval is not in `1ms..=65535s`; [`Refused::Gone`].
    pub fn start_timer(&mut self, timer: Timer, interval: Duration) -> Result<(), Refused> {
        let result = self.set_timer(timer, interval);
        let logged = self.logged(|| Command::StartTimer { timer, interval });
        self.log_command(logged, &result);
        result
    }

    fn set_timer(&mut self, timer: Timer, interval: Duration) -> Result<(), Refused> {
        self.check_open()?;
        check_interval(interval)?;
        match timer {
            Timer::Keepalive => self.timer_change = Some(TimerChange::Start(interval)),
        }
        Ok(())
    }

    /// Stops a timer; no error if none runs.
    ///
    /// # Errors
    ///
    /// [`Refused::Gone`].
    pub fn stop_timer(&mut self, timer: Timer) -> Result<(), Refused> {
        let result = self.check_open();
        if result.is_ok() {
            match timer {
                Timer::Keepalive => self.timer_change = Some(TimerChange::Stop),
            }
        }
        let logged = self.logged(|| Command::StopTimer(timer));
        self.log_command(logged, &result);
        result
    }

    /// Publishes as the authenticated client, under its mountpoint.
    ///
    /// # Errors
    ///
    /// [`Refused::NotAuthenticated`], [`Refused::Malformed`] for the topic, [`Refused::Denied`] by a rule,
    /// [`Refused::Broker`], [`Refused::Gone`].
    pub async fn publish(&mut self, topic: &str, qos: QoS, payload: Bytes) -> Result<(), Refused> {
        let (client, services) = self.client("Publish")?;
        let topic = client.mount.name(topic).map_err(malformed)?;
        tracing::trace!(target: PAYLOAD_LOG, conn = %self.conn, %topic, ?qos, ?payload, "published by the handler");
        if !services.auth.allows_publish(&client.info.client_id, &client.info.username, &topic) {
            return Err(Refused::Denied(Denied::Publish { topic: topic.into_owned() }));
        }
        let confirm = services.confirm_timeout.filter(|_| qos != QoS::AtMostOnce);
        let began = Instant::now();
        let published = client.session.publish(&topic, qos, payload, confirm).await;
        self.waited += began.elapsed();
        if confirm.is_some() && published.is_err() {
            self.unconfirmed = true;
        }
        published.map_err(Refused::from)?;
        self.services.metrics.published.inc();
        Ok(())
    }

    /// Subscribes as the authenticated client, under its mountpoint. Retained messages follow the first subscribe.
    ///
    /// # Errors
    ///
    /// As [`Adapter::publish`].
    pub async fn subscribe(&mut self, filter: &str, qos: QoS) -> Result<(), Refused> {
        let (client, services) = self.client("Subscribe")?;
        let filter = client.mount.filter(filter).map_err(malformed)?;
        if !services.auth.allows_subscribe(&client.info.client_id, &client.info.username, &filter) {
            return Err(Refused::Denied(Denied::Subscribe { filter: filter.into_owned() }));
        }
        let began = Instant::now();
        let subscribed = client.session.subscribe(&filter, qos).await;
        self.waited += began.elapsed();
        subscribed.map_err(Refused::from)
    }

    /// Ends a subscription; no error if there is none.
    ///
    /// # Errors
    ///
    /// [`Refused::NotAuthenticated`], [`Refused::Malformed`] for the filter, [`Refused::Broker`],
    /// [`Refused::Gone`].
    pub async fn unsubscribe(&mut self, filter: &str) -> Result<(), Refused> {
        let (client, _) = self.client("Unsubscribe")?;
        let filter = client.mount.filter(filter).map_err(malformed)?;
        let began = Instant::now();
        let unsubscribed = client.session.unsubscribe(&filter).await;
        self.waited += began.elapsed();
        unsubscribed.map_err(Refused::from)
    }

    /// Removes the mountpoint from the topic of a message for the handler.
    pub fn unmount(&self, message: &mut Message) {
        if let Some(client) = &self.client {
            let name = client.mount.unmount(&message.topic);
            if name.len() != message.topic.len() {
                message.topic = name.to_owned();
            }
        }
    }

    fn check_open(&self) -> Result<(), Refused> {
        if self.ended || self.close_asked { Err(Refused::Gone) } else { Ok(()) }
    }

    fn client(&self, operation: &'static str) -> Result<(&Client, &Services), Refused> {
        self.check_open()?;
        match &self.client {
            Some(client) => Ok((client, &self.services)),
            None => Err(Refused::NotAuthenticated { operation }),
        }
    }
}

/// Publishes without a connection: no mountpoint, no rules; `from` is "exproto".
///
/// # Errors
///
/// [`Refused::Malformed`] for the topic, [`Refused::Broker`].
pub(crate) async fn raw_publish(pubsub: &PubSub, topic: &str, qos: QoS, payload: Bytes) -> Result<(), Refused> {
    check_name(topic).map_err(malformed)?;
    pubsub.publish_as_gateway(topic, qos, payload).await.map_err(Refused::from)
}

/// Checks that MQTT can carry these names.
fn check_client(client: &ClientInfo) -> Result<(), Refused> {
    if client.client_id.is_empty() {
        return Err(Refused::Missing { what: "clientinfo.clientid" });
    }
    for (what, name) in [
        ("clientinfo.clientid", &client.client_id),
        ("clientinfo.username", &client.username),
        ("clientinfo.proto_name", &client.proto_name),
        ("clientinfo.proto_ver", &client.proto_ver),
    ] {
        if name.len() > NAME_BYTES_MAX {
            let why = format!("expected at most {NAME_BYTES_MAX} bytes, got {}", name.len());
            return Err(Refused::Malformed { what, why });
        }
    }
    Ok(())
}

/// Checks the range of a timer interval.
fn check_interval(interval: Duration) -> Result<(), Refused> {
    if interval.is_zero() || interval > KEEPALIVE_MAX {
        return Err(Refused::Malformed {
            what: "interval",
            why: format!("expected more than zero and at most 65535 s, got {} ms", interval.as_millis()),
        });
    }
    Ok(())
}

fn malformed(malformed: Malformed) -> Refused {
    Refused::Malformed { what: "topic", why: malformed.to_string() }
}
