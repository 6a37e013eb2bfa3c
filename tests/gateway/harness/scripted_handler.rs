use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use polygate::testing::exproto::proto;
use proto::connection_adapter_client::ConnectionAdapterClient;
use proto::connection_handler_server::{ConnectionHandler, ConnectionHandlerServer};
use proto::connection_unary_handler_server::{ConnectionUnaryHandler, ConnectionUnaryHandlerServer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tonic::service::Routes;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};

use super::{PATIENCE, within};

/// The service of the server, and its variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serves {
    /// `ConnectionUnaryHandler`.
    Unary,
    /// `ConnectionHandler`, reading its streams to their end before it answers.
    Streaming,
    /// `ConnectionHandler` as enterprise 4.2 had it: answers after the first message.
    UnaryConnectionHandler,
    /// Both services.
    Both,
}

/// One callback as the server received it.
#[derive(Clone, Debug)]
pub struct Callback {
    pub conn: String,
    pub event: Event,
}

#[derive(Clone, Debug)]
pub enum Event {
    Created(proto::ConnInfo),
    Bytes(Bytes),
    Timer,
    Messages(Vec<proto::Message>),
    Closed(String),
}

type Answer = Pin<Box<dyn Future<Output = Result<(), Status>> + Send>>;
type Script = Arc<dyn Fn(Callback, Calls) -> Answer + Send + Sync>;

/// A real ExProto server with a closure as its behaviour. Killed on drop.
pub struct ScriptedHandler {
    address: SocketAddr,
    scheme: &'static str,
    calls: Calls,
    seen: mpsc::Receiver<Callback>,
    /// Its own runtime, whose end is the end of all of its connections, as for a process.
    runtime: Option<Runtime>,
}

/// The address and transport of a server.
#[derive(Default)]
pub struct Transport {
    /// A port to reuse after a restart.
    pub port: u16,
    /// The files of a certificate and its key, and of an authority that clients' certificates must have.
    pub tls: Option<(PathBuf, PathBuf, PathBuf)>,
    /// A proxy in front of the server.
    pub proxy: Option<Proxy>,
}

/// Responses of the proxy itself for a path; other requests are passed on.
pub type Proxy = Box<dyn Fn(&str) -> Option<axum::response::Response> + Send + Sync>;

impl ScriptedHandler {
    pub async fn start<F>(serves: Serves, script: impl Fn(Callback, Calls) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), Status>> + Send + 'static,
    {
        Self::start_on(Transport::default(), serves, script).await
    }

    pub async fn start_on<F>(
        transport: Transport,
        serves: Serves,
        script: impl Fn(Callback, Calls) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<(), Status>> + Send + 'static,
    {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = std::net::TcpListener::bind(("127.0.0.1", transport.port)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (see, seen) = mpsc::channel(65_536);
        let calls = Calls { adapter: watch::channel(None).0.into() };
        let service = Service {
            see,
            calls: calls.clone(),
            script: Arc::new(move |callback, calls| Box::pin(script(callback, calls))),
            ends: serves != Serves::UnaryConnectionHandler,
        };
        let mut server = Server::builder();
        if let Some((certificate, key, ca)) = &transport.tls {
            let read = |file: &PathBuf| std::fs::read(file).unwrap();
            let tls = ServerTlsConfig::new()
                .identity(Identity::from_pem(read(certificate), read(key)))
                .client_ca_root(Certificate::from_pem(read(ca)));
            server = server.tls_config(tls).unwrap();
        }
        let routes = match serves {
            Serves::Unary => Routes::new(ConnectionUnaryHandlerServer::new(service)),
            Serves::Both => Routes::new(ConnectionUnaryHandlerServer::new(service.clone()))
                .add_service(ConnectionHandlerServer::new(service)),
            Serves::Streaming | Serves::UnaryConnectionHandler => Routes::new(ConnectionHandlerServer::new(service)),
        };
        let proxy = Arc::new(transport.proxy);
        let proxy = axum::middleware::from_fn(move |request: axum::extract::Request, next: axum::middleware::Next| {
            let answer = proxy.as_ref().as_ref().and_then(|proxy| proxy(request.uri().path()));
            async move {
                match answer {
                    Some(answer) => answer,
                    None => next.run(request).await,
                }
            }
        });
        let router = server.add_routes(Routes::from(routes.into_axum_router().layer(proxy)));
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            router.serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true))).await.unwrap();
        });
        let scheme = if transport.tls.is_some() { "https" } else { "http" };
        Self { address, scheme, calls, seen, runtime: Some(runtime) }
    }

    /// A server that speaks the JSON echo protocol.
    pub async fn echo(serves: Serves) -> Self {
        let echo = Echo::default();
        Self::start(serves, move |callback, calls| echo.clone().handle(callback, calls)).await
    }

    /// The same on https.
    pub async fn echo_on(transport: Transport, serves: Serves) -> Self {
        let echo = Echo::default();
        Self::start_on(transport, serves, move |callback, calls| echo.clone().handle(callback, calls)).await
    }

    pub fn url(&self) -> String {
        format!("{}://localhost:{}", self.scheme, self.address.port())
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Sets the adapter's address of the server.
    pub fn use_adapter(&self, adapter: SocketAddr) {
        let channel = Channel::from_shared(format!("http://{adapter}")).unwrap().connect_lazy();
        self.calls.adapter.send_replace(Some(ConnectionAdapterClient::new(channel)));
    }

    /// The same on https, with a client certificate.
    pub fn use_adapter_tls(&self, adapter: SocketAddr, (certificate, key, ca): &(PathBuf, PathBuf, PathBuf)) {
        let read = |file: &PathBuf| std::fs::read(file).unwrap();
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(read(ca)))
            .identity(Identity::from_pem(read(certificate), read(key)))
            .domain_name("localhost");
        let endpoint = Channel::from_shared(format!("https://{adapter}")).unwrap().tls_config(tls).unwrap();
        self.calls.adapter.send_replace(Some(ConnectionAdapterClient::new(endpoint.connect_lazy())));
    }

    /// The adapter, for calls from outside of a callback.
    pub fn calls(&self) -> Calls {
        self.calls.clone()
    }

    /// The next callback.
    pub async fn next(&mut self) -> Callback {
        within("a callback", self.seen.recv()).await.unwrap()
    }

    /// Expects that the next callback is this device's first; returns its `conn`.
    pub async fn next_created(&mut self) -> String {
        let callback = self.next().await;
        assert!(matches!(callback.event, Event::Created(_)), "{callback:?}");
        callback.conn
    }

    /// Skips callbacks until the end of a connection; returns its reason.
    pub async fn next_closed(&mut self) -> String {
        loop {
            if let Event::Closed(reason) = self.next().await.event {
                return reason;
            }
        }
    }

    /// Kills the server with its connections, and returns when its port is free.
    pub async fn kill(mut self) {
        let runtime = self.runtime.take().unwrap();
        tokio::task::spawn_blocking(move || runtime.shutdown_timeout(PATIENCE)).await.unwrap();
    }
}

impl Drop for ScriptedHandler {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// The gateway's adapter, as the server uses it.
#[derive(Clone)]
pub struct Calls {
    adapter: Arc<watch::Sender<Option<ConnectionAdapterClient<Channel>>>>,
}

macro_rules! operation {
    ($name:ident, $request:ty) => {
        pub async fn $name(&self, request: $request) -> proto::CodeResponse {
            self.client().await.$name(request).await.unwrap().into_inner()
        }
    };
}

impl Calls {
    pub async fn client(&self) -> ConnectionAdapterClient<Channel> {
        let mut adapter = self.adapter.subscribe();
        within("the adapter's address", adapter.wait_for(Option::is_some)).await.unwrap().clone().unwrap()
    }

    operation!(send, proto::SendBytesRequest);
    operation!(close, proto::CloseSocketRequest);
    operation!(authenticate, proto::AuthenticateRequest);
    operation!(start_timer, proto::TimerRequest);
    operation!(publish, proto::PublishRequest);
    operation!(raw_publish, proto::RawPublishRequest);
    operation!(subscribe, proto::SubscribeRequest);
    operation!(unsubscribe, proto::UnsubscribeRequest);

    /// Sends bytes, with success.
    pub async fn send_ok(&self, conn: &str, bytes: impl Into<Bytes>) {
        let answer = self.send(proto::SendBytesRequest { conn: conn.to_owned(), bytes: bytes.into() }).await;
        assert_eq!(answer, proto::CodeResponse::default());
    }

    /// Authenticates, with success.
    pub async fn authenticate_ok(&self, conn: &str, client_id: &str) {
        let answer = self.authenticate(authentication(conn, client_id)).await;
        assert_eq!(answer, proto::CodeResponse::default());
    }
}

/// A request that names a client.
pub fn authentication(conn: &str, client_id: &str) -> proto::AuthenticateRequest {
    proto::AuthenticateRequest {
        conn: conn.to_owned(),
        clientinfo: Some(proto::ClientInfo { clientid: client_id.to_owned(), ..proto::ClientInfo::default() }),
        password: String::new(),
    }
}

#[derive(Clone)]
struct Service {
    see: mpsc::Sender<Callback>,
    calls: Calls,
    script: Script,
    /// Streams are read to their end before they are answered.
    ends: bool,
}

impl Service {
    async fn handle(&self, callback: Callback) -> Result<Response<proto::EmptySuccess>, Status> {
        if self.see.try_send(callback.clone()).is_err() {
            return Err(Status::aborted("the test is over"));
        }
        (self.script)(callback, self.calls.clone()).await?;
        Ok(Response::new(proto::EmptySuccess {}))
    }

    async fn handle_stream<T: Into<Callback>>(
        &self,
        mut stream: Streaming<T>,
    ) -> Result<Response<proto::EmptySuccess>, Status> {
        while let Some(request) = stream.message().await? {
            let answer = self.handle(request.into()).await?;
            if !self.ends {
                return Ok(answer);
            }
        }
        Ok(Response::new(proto::EmptySuccess {}))
    }
}

impl From<proto::SocketCreatedRequest> for Callback {
    fn from(request: proto::SocketCreatedRequest) -> Self {
        Self { conn: request.conn, event: Event::Created(request.conninfo.unwrap()) }
    }
}

impl From<proto::SocketClosedRequest> for Callback {
    fn from(request: proto::SocketClosedRequest) -> Self {
        Self { conn: request.conn, event: Event::Closed(request.reason) }
    }
}

impl From<proto::ReceivedBytesRequest> for Callback {
    fn from(request: proto::ReceivedBytesRequest) -> Self {
        Self { conn: request.conn, event: Event::Bytes(request.bytes) }
    }
}

impl From<proto::TimerTimeoutRequest> for Callback {
    fn from(request: proto::TimerTimeoutRequest) -> Self {
        Self { conn: request.conn, event: Event::Timer }
    }
}

impl From<proto::ReceivedMessagesRequest> for Callback {
    fn from(request: proto::ReceivedMessagesRequest) -> Self {
        Self { conn: request.conn, event: Event::Messages(request.messages) }
    }
}

macro_rules! callbacks {
    ($($name:ident: $request:ty),*) => {
        #[tonic::async_trait]
        impl ConnectionUnaryHandler for Service {
            $(async fn $name(&self, request: Request<$request>) -> Result<Response<proto::EmptySuccess>, Status> {
                self.handle(request.into_inner().into()).await
            })*
        }

        #[tonic::async_trait]
        impl ConnectionHandler for Service {
            $(async fn $name(
                &self,
                request: Request<Streaming<$request>>,
            ) -> Result<Response<proto::EmptySuccess>, Status> {
                self.handle_stream(request.into_inner()).await
            })*
        }
    };
}

callbacks! {
    on_socket_created: proto::SocketCreatedRequest,
    on_socket_closed: proto::SocketClosedRequest,
    on_received_bytes: proto::ReceivedBytesRequest,
    on_timer_timeout: proto::TimerTimeoutRequest,
    on_received_messages: proto::ReceivedMessagesRequest
}

/// The JSON echo protocol, as a server.
#[derive(Clone, Default)]
struct Echo {
    unread: Arc<Mutex<HashMap<String, Vec<u8>>>>,
}

impl Echo {
    async fn handle(self, callback: Callback, calls: Calls) -> Result<(), Status> {
        let Callback { conn, event } = callback;
        match event {
            Event::Bytes(bytes) => {
                for object in self.objects(&conn, &bytes) {
                    Self::object(&conn, object, &calls).await;
                }
            }
            Event::Messages(messages) => {
                for message in messages {
                    let payload = String::from_utf8_lossy(&message.payload);
                    let object = json!({"type": 3, "topic": message.topic, "qos": message.qos, "payload": payload});
                    calls.send_ok(&conn, object.to_string()).await;
                }
            }
            Event::Closed(_) => {
                self.unread.lock().unwrap().remove(&conn);
            }
            Event::Created(_) | Event::Timer => {}
        }
        Ok(())
    }

    /// The complete objects among the bytes so far.
    fn objects(&self, conn: &str, bytes: &[u8]) -> Vec<Value> {
        let mut unread = self.unread.lock().unwrap();
        let buffer = unread.entry(conn.to_owned()).or_default();
        buffer.extend_from_slice(bytes);
        let mut objects = serde_json::Deserializer::from_slice(buffer).into_iter::<Value>();
        let mut found = Vec::new();
        let mut used = 0;
        while let Some(Ok(object)) = objects.next() {
            found.push(object);
            used = objects.byte_offset();
        }
        buffer.drain(..used);
        found
    }

    async fn object(conn: &str, object: Value, calls: &Calls) {
        let conn = conn.to_owned();
        let text = |key: &str| object[key].as_str().unwrap_or_default().to_owned();
        let qos = object["qos"].as_u64().unwrap_or_default() as u32;
        let payload = Bytes::from(text("payload"));
        let (answer, code) = match object["type"].as_u64() {
            Some(1) => (2, Self::connect(&conn, &object, calls).await),
            Some(3) => {
                let request = proto::PublishRequest { conn: conn.clone(), topic: text("topic"), qos, payload };
                (4, calls.publish(request).await.code)
            }
            Some(5) => {
                let request = proto::SubscribeRequest { conn: conn.clone(), topic: text("topic"), qos };
                (6, calls.subscribe(request).await.code)
            }
            Some(7) => {
                let request = proto::UnsubscribeRequest { conn: conn.clone(), topic: text("topic") };
                (8, calls.unsubscribe(request).await.code)
            }
            Some(10) => {
                let request = proto::RawPublishRequest { topic: text("topic"), qos, payload };
                (4, calls.raw_publish(request).await.code)
            }
            _ => {
                calls.close(proto::CloseSocketRequest { conn }).await;
                return;
            }
        };
        calls.send_ok(&conn, json!({"type": answer, "code": code.min(1)}).to_string()).await;
        if answer == 2 && code != 0 {
            calls.close(proto::CloseSocketRequest { conn }).await;
        }
    }

    async fn connect(conn: &str, object: &Value, calls: &Calls) -> i32 {
        let info = &object["clientinfo"];
        let text = |key: &str| info[key].as_str().unwrap_or_default().to_owned();
        let code = calls
            .authenticate(proto::AuthenticateRequest {
                conn: conn.to_owned(),
                clientinfo: Some(proto::ClientInfo {
                    proto_name: text("proto_name"),
                    proto_ver: text("proto_ver"),
                    clientid: text("clientid"),
                    username: text("username"),
                    mountpoint: String::new(),
                }),
                password: object["password"].as_str().unwrap_or_default().to_owned(),
            })
            .await
            .code;
        if let (0, Some(keepalive)) = (code, info["keepalive"].as_u64()) {
            let request =
                proto::TimerRequest { conn: conn.to_owned(), r#type: 0, interval: u32::try_from(keepalive).unwrap() };
            assert_eq!(calls.start_timer(request).await.code, 0);
        }
        code
    }
}
