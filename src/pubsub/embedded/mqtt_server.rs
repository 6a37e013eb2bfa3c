//! The MQTT listeners of the embedded broker: MQTT 3.1.1 and 5.0 over TCP, TLS and WebSocket.
//!
//! Peers pass the same listener code as devices: PROXY header, access rules, limits of an address, handshake. One task
//! serves one connection. Owns the sockets and the tasks; ends with [`MqttServer::stop`].

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::auth::Auth;
use crate::byte_budget::ByteBudget;
use crate::conn::PeerAddr;
use crate::conn::limit::{ConnectionLimit, Permit};
use crate::listener::{AcceptLimiter, Accepted, BindError, Handle, Listener, Pending, Socket};
use crate::mqtt::Version;
use crate::mqtt_stream::{Stream, websocket};
use crate::telemetry::Telemetry;

use super::router::Router;
use super::{MqttListener, Options};

mod connect;
mod connection;

/// Topic aliases of one MQTT 5.0 connection, each way.
const TOPIC_ALIAS_MAX: u16 = 64;

/// How long connections may take to end at a stop, their last bytes included.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// What all connections share.
struct Context {
    router: Arc<Router>,
    auth: Auth,
    settings: Settings,
    drain: CancellationToken,
}

/// What connections are held to.
#[derive(Clone, Debug)]
struct Settings {
    packet_bytes_max: u32,
    filter_bytes_max: usize,
    inflight_max: u16,
    connect_timeout: Duration,
    keepalive_min_s: u16,
    session_expiry_max: Duration,
    anonymous_session_expiry_max: Duration,
    response_information: Option<Box<str>>,
}

impl Settings {
    fn new(options: &Options) -> Self {
        Self {
            packet_bytes_max: options.packet_bytes_max,
            filter_bytes_max: options.filter_bytes_max,
            inflight_max: options.inflight_max,
            connect_timeout: options.connect_timeout,
            keepalive_min_s: u16::try_from(options.keepalive_min.as_secs()).unwrap_or(u16::MAX),
            session_expiry_max: options.session_expiry_max,
            anonymous_session_expiry_max: options.anonymous_session_expiry_max,
            response_information: options.response_information.clone(),
        }
    }

    /// How long a session may outlive its connection, when its client asks for so many seconds.
    fn expiry(&self, asked_s: u32, anonymous: bool) -> Duration {
        let max = self.session_expiry_max;
        let max = if anonymous { max.min(self.anonymous_session_expiry_max) } else { max };
        Duration::from_secs(asked_s.into()).min(max)
    }

    fn topic_alias_max(&self, version: Version) -> u16 {
        match version {
            Version::V311 => 0,
            Version::V5 => TOPIC_ALIAS_MAX,
        }
    }
}

/// The listeners, open.
pub(super) struct MqttServer {
    context: Arc<Context>,
    bound: Vec<(Arc<str>, SocketAddr)>,
    /// They keep the sockets open, so they are let go of at the stop.
    handles: Mutex<Vec<(Arc<str>, Handle)>>,
    drain: CancellationToken,
    tasks: Mutex<Vec<JoinHandle<JoinSet<()>>>>,
    expiry: JoinHandle<()>,
}

impl MqttServer {
    /// Binds every listener, then accepts.
    pub(super) fn start(
        options: &Options,
        auth: Auth,
        router: Arc<Router>,
        telemetry: &Telemetry,
        limit: Option<&ConnectionLimit>,
    ) -> Result<Self, BindError> {
        let drain = CancellationToken::new();
        let context =
            Arc::new(Context { router: router.clone(), auth, settings: Settings::new(options), drain: drain.clone() });
        let sockets = options.all_listeners().into_iter().map(|listener| {
            // Only datagrams take from the budget, and MQTT has none.
            let (metrics, queued) = (telemetry.listener(&listener.socket.name), Arc::new(ByteBudget::new(0)));
            let socket = Listener::bind(&listener.socket, None, metrics, &queued)?;
            Ok((listener, socket))
        });
        let sockets = sockets.collect::<Result<Vec<_>, BindError>>()?;
        let (mut bound, mut handles) = (Vec::new(), Vec::new());
        let mut tasks = Vec::new();
        for (listener, mut socket) in sockets {
            socket.begin();
            let address = socket.local_addr();
            tracing::info!(
                listener = %listener.socket.name,
                transport = %listener.transport(),
                %address,
                "MQTT listener started"
            );
            bound.push((listener.socket.name.clone(), address.0));
            handles.push((listener.socket.name.clone(), socket.handle()));
            let limits = Limits { own: ConnectionLimit::new(listener.connections_max), shared: limit.cloned() };
            tasks.push(tokio::spawn(accept(context.clone(), listener, socket, limits)));
        }
        let expiry = tokio::spawn(async move {
            loop {
                router.clients().timeout().await;
                let _change = router.begin_change();
                for aftermath in router.clients().handle_timeout(Instant::now()) {
                    router.settle(aftermath);
                }
            }
        });
        Ok(Self { context, bound, handles: Mutex::new(handles), drain, tasks: Mutex::new(tasks), expiry })
    }

    /// Serves one peer over a stream that no listener has accepted, to its end.
    pub(super) async fn serve(&self, stream: Box<dyn Stream>, peer: PeerAddr) {
        connection::run(self.context.clone(), stream, peer, Instant::now()).await;
    }

    /// The bound addresses, in the order of the options.
    pub(super) fn bound(&self) -> &[(Arc<str>, SocketAddr)] {
        &self.bound
    }

    /// Gives the listeners that keep their address what new connections are to pass: rules, limits, certificates.
    pub(super) fn follow(&self, options: &Options) {
        let handles = self.handles.lock();
        for listener in options.all_listeners() {
            let socket = &listener.socket;
            let running = handles.iter().find(|(name, handle)| *name == socket.name && handle.bind() == socket.bind);
            if let Some((name, handle)) = running
                && let Err(error) = handle.follow(socket)
            {
                tracing::error!(listener = %name, %error, "the socket does not take its new options");
            }
        }
    }

    /// Closes the listeners, then ends the connections.
    pub(super) async fn stop(&self) {
        self.drain.cancel();
        self.handles.lock().clear();
        let tasks = std::mem::take(&mut *self.tasks.lock());
        let ended = async {
            for task in tasks {
                let Ok(mut connections) = task.await else { continue };
                while connections.join_next().await.is_some() {}
            }
        };
        if tokio::time::timeout(STOP_TIMEOUT, ended).await.is_err() {
            tracing::warn!("MQTT connections did not end in time");
        }
        self.expiry.abort();
    }
}

/// How many connections a listener may hold: its own bound, and the one that it shares with the others.
struct Limits {
    own: ConnectionLimit,
    shared: Option<ConnectionLimit>,
}

/// The next peer and its right to a connection. Cancel-safe: an accepted peer is in
/// `accepted`.
///
/// The shared right is taken last, so that an idle listener holds none of it.
async fn next(
    socket: &mut Listener,
    limits: &Limits,
    limiter: &mut AcceptLimiter,
    accepted: &mut Option<(Permit, Pending)>,
) -> Option<Permit> {
    if accepted.is_none() {
        let own = limits.own.permit().await;
        limiter.wait(socket).await;
        let pending = socket.accept().await;
        limiter.count(socket);
        *accepted = Some((own, pending));
    }
    match &limits.shared {
        Some(shared) => Some(shared.permit().await),
        None => None,
    }
}

/// Accepts until the stop, one task for each peer; gives the tasks that still run then.
async fn accept(context: Arc<Context>, listener: MqttListener, mut socket: Listener, limits: Limits) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    let mut limiter = AcceptLimiter::default();
    let mut accepted = None;
    loop {
        tokio::select! {
            biased;
            () = context.drain.cancelled() => return tasks,
            Some(ended) = tasks.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "the task of an MQTT connection has panicked");
                }
            }
            shared = next(&mut socket, &limits, &mut limiter, &mut accepted) => {
                let Some((own, pending)) = accepted.take() else { continue };
                let (context, websocket) = (context.clone(), listener.websocket.clone());
                tasks.spawn(async move {
                    open(context, websocket, pending).await;
                    drop((own, shared));
                });
            }
        }
    }
}

/// One peer, from its arrival to its end.
async fn open(context: Arc<Context>, websocket: Option<Arc<str>>, pending: Pending) {
    let since = Instant::now();
    // The futures of the beginning are boxed, here and below: else each connection would keep their size, that of a TLS
    // handshake above all, to its end.
    let accepted = tokio::select! {
        biased;
        accepted = Box::pin(pending.establish()) => accepted,
        () = context.drain.cancelled() => return,
    };
    let Some(Accepted { info, socket, entered, place: _ }) = accepted else { return };
    let stream: Box<dyn Stream> = match socket {
        Socket::Tcp(stream) => Box::new(stream),
        Socket::Tls(stream) => Box::new(stream),
        // The configuration has no such MQTT listener.
        Socket::Udp(_) | Socket::Dtls(_) => return,
    };
    let stream = match websocket {
        None => stream,
        Some(path) => {
            let upgraded = Box::pin(websocket::accept(stream, &path));
            let deadline = since + context.settings.connect_timeout;
            let refused = match tokio::time::timeout_at(deadline.into(), upgraded).await {
                Ok(Ok(stream)) => Ok(stream),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err("the WebSocket handshake was not finished in time".to_owned()),
            };
            match refused {
                Ok(stream) => Box::new(stream),
                Err(why) => {
                    context.router.counters().connects_refused.count("websocket");
                    tracing::debug!(peer = %info.peer, why, "MQTT client refused");
                    return;
                }
            }
        }
    };
    connection::run(context, stream, info.peer, since).await;
    drop(entered);
}
