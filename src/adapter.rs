//! The operations a handler has on its connection: send, close, authenticate, timers, publish, subscribe.
//!
//! An [`Adapter`] belongs to one connection. It checks what is asked, talks to [`auth`](crate::auth) and
//! [`pubsub`](crate::pubsub), and otherwise only collects: bytes in [`Outbound`], a wish to close, a change
//! of the timer. The connection acts on these between two events, so a call from inside an event never
//! waits for the connection that waits for the event.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::auth::{Auth, Credentials};
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

/// What the adapters of one listener share.
#[derive(Clone, Debug)]
pub struct Services {
    /// Who may authenticate, publish and subscribe.
    pub auth: Auth,
    /// Where messages go and come from.
    pub pubsub: PubSub,
    /// Put in front of the devices' topics.
    pub mountpoint: Mountpoint,
    /// The listener's counters.
    pub metrics: ListenerMetrics,
}

/// A wish about the keepalive timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimerChange {
    /// Start it, or start it anew with this interval.
    Start(Duration),
    /// Stop it.
    Stop,
}

/// The operations of one connection.
#[derive(Debug)]
pub struct Adapter {
    conn: ConnId,
    /// The id by which the handler knows the connection.
    handler_conn: ConnId,
    info: Arc<ConnInfo>,
    services: Arc<Services>,
    mailbox: Mailbox,
    outbound: Outbound,
    timer_change: Option<TimerChange>,
    close_asked: bool,
    ended: bool,
    client: Option<Box<Client>>,
    /// Its handler may not know that the peer has proved who it is.
    reintroduced: bool,
    /// Kept while somebody compares or watches what the handler does.
    command_log: Option<Box<CommandLog>>,
}

/// How far a handler had come when an event began.
#[derive(Clone, Copy, Debug)]
pub struct Savepoint {
    outbound_bytes: usize,
    timer_change: Option<TimerChange>,
    close_asked: bool,
}

/// Who the peer has proved to be.
#[derive(Debug)]
struct Client {
    info: Arc<ClientInfo>,
    mount: Mount,
    session: Session,
}

impl Adapter {
    /// The operations of a connection that was just accepted. `mailbox` gets its messages, `outbound` its bytes.
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
            command_log: None,
        }
    }

    /// Whose operations these are.
    pub fn conn(&self) -> ConnId {
        self.conn
    }

    /// The id by which the handler knows the connection; another one after it was taken over from a remote handler.
    pub fn handler_conn(&self) -> ConnId {
        self.handler_conn
    }

    /// What is known of the peer.
    pub fn info(&self) -> &Arc<ConnInfo> {
        &self.info
    }

    /// The client id that the peer has proved; `None` before.
    pub fn client_id(&self) -> Option<&str> {
        self.client.as_ref().map(|client| client.info.client_id.as_str())
    }

    /// The bytes that wait for the socket.
    pub fn outbound(&mut self) -> &mut Outbound {
        &mut self.outbound
    }

    /// Whether the handler has asked to close.
    pub fn close_asked(&self) -> bool {
        self.close_asked
    }

    /// What the handler has asked of the timer since this was called last.
    pub fn take_timer_change(&mut self) -> Option<TimerChange> {
        self.timer_change.take()
    }

    /// Remembers what is collected so far.
    pub fn savepoint(&self) -> Savepoint {
        Savepoint {
            outbound_bytes: self.outbound.bytes(),
            timer_change: self.timer_change,
            close_asked: self.close_asked,
        }
    }

    /// Forgets what was collected since `savepoint`, of an event that failed and will be delivered again. Only good while
    /// nothing was written in between. What went to the broker stays there.
    pub fn roll_back(&mut self, savepoint: Savepoint) {
        self.outbound.truncate(savepoint.outbound_bytes);
        self.timer_change = savepoint.timer_change;
        self.close_asked = savepoint.close_asked;
    }

    /// From now on, what the handler asks for is written down, or is not any more.
    pub fn enable_command_log(&mut self, keep: bool) {
        if !keep {
            self.command_log = None;
        } else if self.command_log.is_none() {
            self.command_log = Some(Box::default());
        }
    }

    /// What was written down, while somebody wants it.
    pub fn command_log(&mut self) -> Option<&mut CommandLog> {
        self.command_log.as_deref_mut()
    }

    /// What is to be written down, if somebody wants to know.
    fn logged(&self, command: impl FnOnce() -> Command) -> Option<Command> {
        self.command_log.is_some().then(command)
    }

    fn log_command(&mut self, command: Option<Command>, result: &Result<(), Refused>) {
        if let (Some(command), Some(log)) = (command, &mut self.command_log) {
            log.write(command, result.clone());
        }
    }

    /// Another handler, or another instance, serves the connection from now on. It may authenticate the peer again,
    /// as the client that it is already. `handler_conn` is the id by which it knows the connection.
    pub fn set_handler_conn(&mut self, handler_conn: ConnId) {
        self.handler_conn = handler_conn;
        self.allow_reauthentication();
    }

    /// The handler may have lost what it knew of the connection, or gets an event again in which it may have
    /// authenticated the peer: it may do so once more, as the client that the peer is already.
    pub fn allow_reauthentication(&mut self) {
        self.reintroduced = true;
    }

    /// The connection has ended: from now on every operation is refused as [`Refused::Gone`], and the client
    /// leaves the broker with its subscriptions.
    pub fn end(&mut self) {
        self.ended = true;
        self.outbound.clear();
        self.client = None;
    }

    /// Does what is asked.
    ///
    /// # Errors
    ///
    /// [`Refused`], which names what was expected and what came; the connection stays as it was.
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

    /// Queues bytes for the peer; the order of calls is the order on the wire.
    ///
    /// # Errors
    ///
    /// [`Refused::Gone`] after the end or after a Close, [`Refused::Full`] when as much waits as may,
    /// [`Refused::Malformed`] when the peer is sent datagrams and no datagram is that long.
    pub fn send(&mut self, bytes: Bytes) -> Result<(), Refused> {
        let logged = self.logged(|| Command::Send(bytes.clone()));
        let result = self.queue(bytes);
        self.log_command(logged, &result);
        result
    }

    fn queue(&mut self, bytes: Bytes) -> Result<(), Refused> {
        self.check_open()?;
        tracing::trace!(target: PAYLOAD_LOG, conn = %self.conn, ?bytes, "from the handler");
        if let Some(bytes_max) = self.info.kind.datagram_bytes_max()
            && bytes.len() > bytes_max
        {
            let why = format!("one Send is one datagram, of at most {bytes_max} bytes, and came with {}", bytes.len());
            return Err(Refused::Malformed { what: "bytes", why });
        }
        if self.outbound.is_full() {
            return Err(Refused::Full {
                what: "the queue of bytes to the peer",
                limit: format!("{} bytes", self.outbound.bytes_max()),
            });
        }
        self.outbound.push(bytes);
        Ok(())
    }

    /// Asks to end the connection once what was sent is flushed.
    ///
    /// # Errors
    ///
    /// [`Refused::Gone`] after the end or after another Close.
    pub fn close(&mut self) -> Result<(), Refused> {
        let result = self.check_open();
        self.close_asked |= result.is_ok();
        let logged = self.logged(|| Command::Close);
        self.log_command(logged, &result);
        result
    }

    /// Says who the peer is. A refusal may be retried; after a success, a second call is refused, unless it comes from
    /// a handler that has taken the connection over, or gets an event again, and says the same.
    ///
    /// # Errors
    ///
    /// [`Refused::Missing`] without a client id, [`Refused::Malformed`] when a name is too long, or the client id
    /// or the user name does not fit into the mountpoint, [`Refused::AlreadyAuthenticated`], [`Refused::Denied`], and
    /// [`Refused::Broker`] when the broker does not take the client.
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
        if !self.services.pubsub.authenticates() {
            let credentials =
                Credentials { client_id: &client.client_id, username: &client.username, password: password.as_ref() };
            self.services.auth.authenticate(credentials).await.map_err(Refused::Denied)?;
        }

        let info = Arc::new(client);
        let session = self
            .services
            .pubsub
            .open(Arc::clone(&info), password.as_ref(), self.info.peer, self.mailbox.clone())
            .await
            .map_err(Refused::from)?;
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

    /// Starts the keepalive timer, or starts it anew.
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

    /// Stops a timer; none running is fine.
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

    /// Publishes as this client, under its mountpoint.
    ///
    /// # Errors
    ///
    /// [`Refused::NotAuthenticated`], [`Refused::Malformed`] for the topic, [`Refused::Denied`] by a rule,
    /// [`Refused::Broker`], [`Refused::Gone`].
    pub async fn publish(&self, topic: &str, qos: QoS, payload: Bytes) -> Result<(), Refused> {
        let (client, services) = self.client("Publish")?;
        let topic = client.mount.name(topic).map_err(malformed)?;
        tracing::trace!(target: PAYLOAD_LOG, conn = %self.conn, %topic, ?qos, ?payload, "published by the handler");
        if !services.auth.allows_publish(&client.info.client_id, &client.info.username, &topic) {
            return Err(Refused::Denied(Denied::Publish { topic: topic.into_owned() }));
        }
        client.session.publish(&topic, qos, payload).await.map_err(Refused::from)?;
        services.metrics.published.inc();
        Ok(())
    }

    /// Subscribes as this client, under its mountpoint. Retained messages follow on the first subscribe.
    ///
    /// # Errors
    ///
    /// As [`Adapter::publish`].
    pub async fn subscribe(&self, filter: &str, qos: QoS) -> Result<(), Refused> {
        let (client, services) = self.client("Subscribe")?;
        let filter = client.mount.filter(filter).map_err(malformed)?;
        if !services.auth.allows_subscribe(&client.info.client_id, &client.info.username, &filter) {
            return Err(Refused::Denied(Denied::Subscribe { filter: filter.into_owned() }));
        }
        client.session.subscribe(&filter, qos).await.map_err(Refused::from)
    }

    /// Ends a subscription; none is fine.
    ///
    /// # Errors
    ///
    /// [`Refused::NotAuthenticated`], [`Refused::Malformed`] for the filter, [`Refused::Broker`],
    /// [`Refused::Gone`].
    pub async fn unsubscribe(&self, filter: &str) -> Result<(), Refused> {
        let (client, _) = self.client("Unsubscribe")?;
        let filter = client.mount.filter(filter).map_err(malformed)?;
        client.session.unsubscribe(&filter).await.map_err(Refused::from)
    }

    /// Makes of a message what the handler is to see: its topic without the mountpoint.
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

/// Publishes on no connection's behalf: no mountpoint, no rules; `from` is "exproto".
///
/// # Errors
///
/// [`Refused::Malformed`] for the topic, [`Refused::Broker`].
pub(crate) async fn raw_publish(pubsub: &PubSub, topic: &str, qos: QoS, payload: Bytes) -> Result<(), Refused> {
    check_name(topic).map_err(malformed)?;
    pubsub.publish_as_gateway(topic, qos, payload).await.map_err(Refused::from)
}

/// Whether the broker can know a client by these names.
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

/// Whether a timer can have this interval.
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
