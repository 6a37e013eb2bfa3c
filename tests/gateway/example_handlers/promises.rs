//! What each handler asks of the adapter, to the call: a stand-in for the gateway plays devices to it and writes down
//! what it asks for. Nothing here waits for a moment to pass: a callback is answered after the calls made inside it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::stream;
use polygate::testing::exproto::proto::connection_adapter_server::{ConnectionAdapter, ConnectionAdapterServer};
use polygate::testing::exproto::proto::connection_handler_client::ConnectionHandlerClient;
use polygate::testing::exproto::proto::connection_unary_handler_client::ConnectionUnaryHandlerClient;
use polygate::testing::exproto::proto::*;
use tokio::task::JoinHandle;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};

use crate::example_handlers::example::{Example, Process};

#[tokio::test]
async fn rust() {
    keeps_its_promises(Example::Rust).await;
}

#[tokio::test]
async fn python() {
    keeps_its_promises(Example::Python).await;
}

#[tokio::test]
async fn python_streaming() {
    keeps_its_promises(Example::PythonStreaming).await;
}

#[tokio::test]
async fn node() {
    keeps_its_promises(Example::Node).await;
}

/// By this answer the gateway's `service = "auto"` knows that it has to call the older service.
#[tokio::test]
async fn a_streaming_server_does_not_implement_the_unary_service() {
    let gateway = Gateway::start(Example::PythonStreaming).await;
    let mut client = ConnectionUnaryHandlerClient::new(gateway.channel.clone());
    let refused = client.on_socket_created(SocketCreatedRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unimplemented);
}

async fn keeps_its_promises(example: Example) {
    let gateway = Gateway::start(example).await;
    a_login_starts_a_keepalive_and_a_subscription(&gateway).await;
    any_cut_of_the_stream_gives_the_same_calls(&gateway).await;
    a_refused_login_may_be_tried_again(&gateway).await;
    a_line_before_the_login_is_refused(&gateway).await;
    a_refused_publish_is_told(&gateway).await;
    messages_become_lines(&gateway).await;
    a_line_without_an_end_ends_the_connection(&gateway).await;
    connections_share_nothing(&gateway).await;
    an_ended_connection_is_forgotten(&gateway).await;
    a_timeout_needs_no_answer_to_the_device(&gateway).await;
}

async fn a_login_starts_a_keepalive_and_a_subscription(gateway: &Gateway) {
    let device = gateway.connect().await;
    assert_eq!(
        device.says(b"login meter-7 secret\n").await,
        [
            authenticate("meter-7", "secret"),
            Call::StartTimer(60),
            Call::Subscribe { topic: "meter-7/down".into(), qos: 1 },
            sent("ok\n"),
        ]
    );
    assert_eq!(gateway.connect().await.says(b"login meter-8\r\n").await[0], authenticate("meter-8", ""));
}

async fn any_cut_of_the_stream_gives_the_same_calls(gateway: &Gateway) {
    const STREAM: &[u8] = b"login meter-7 secret\r\n21.5\n\xff\x00 raw\r\n\nlogin again\n";
    let whole = gateway.connect().await.says(STREAM).await;
    assert_eq!(
        whole[4..],
        [
            published("meter-7/up", b"21.5"),
            sent("ok\n"),
            published("meter-7/up", b"\xff\x00 raw"),
            sent("ok\n"),
            published("meter-7/up", b""),
            sent("ok\n"),
            authenticate("again", ""),
            sent("refused: the connection is authenticated already\n"),
        ]
    );

    for cut in 1..STREAM.len() {
        let device = gateway.connect().await;
        let (head, tail) = STREAM.split_at(cut);
        let calls = [device.says(head).await, device.says(tail).await].concat();
        assert_eq!(calls, whole, "cut after byte {cut}");
        device.closes().await;
    }

    let device = gateway.connect().await;
    let mut calls = Vec::new();
    for byte in STREAM {
        calls.extend(device.says(&[*byte]).await);
    }
    assert_eq!(calls, whole, "cut after every byte");
}

async fn a_refused_login_may_be_tried_again(gateway: &Gateway) {
    let device = gateway.connect().await;
    assert_eq!(
        device.says(b"login meter-7 wrong\n").await,
        [authenticate("meter-7", "wrong"), sent("refused: the password is wrong\n")]
    );
    assert_eq!(device.says(b"login\n").await, [authenticate("", ""), sent("refused: clientid is required\n")]);
    assert_eq!(device.says(b"login meter-7 secret\n").await.last(), Some(&sent("ok\n")));
}

async fn a_line_before_the_login_is_refused(gateway: &Gateway) {
    let device = gateway.connect().await;
    assert_eq!(device.says(b"21.5\n").await, [sent("refused: expected login <id> [<password>]\n")]);
}

async fn a_refused_publish_is_told(gateway: &Gateway) {
    let device = gateway.connect().await;
    device.says(b"login # secret\n").await;
    assert_eq!(
        device.says(b"21.5\n").await,
        [published("#/up", b"21.5"), sent("refused: a topic name has no wildcards\n")]
    );
}

async fn messages_become_lines(gateway: &Gateway) {
    let device = gateway.connect().await;
    device.says(b"login meter-7\n").await;
    assert_eq!(
        device.is_delivered(&[b"reboot", b"", b"\xff\x00"]).await,
        [sent("reboot\n"), sent("\n"), Call::Send(b"\xff\x00\n".to_vec())]
    );
}

/// The longest line has 1,024 bytes; however the stream is cut, the next byte is one too many.
async fn a_line_without_an_end_ends_the_connection(gateway: &Gateway) {
    let too_long = [sent("refused: a line has at most 1024 bytes\n"), Call::Close];

    let device = gateway.connect().await;
    device.says(b"login meter-7\n").await;
    let longest = [b'x'; 1024];
    assert_eq!(device.says(&longest).await, []);
    assert_eq!(device.says(b"\n").await, [published("meter-7/up", &longest), sent("ok\n")]);
    assert_eq!(device.says(&longest).await, []);
    assert_eq!(device.says(b"x").await, too_long);

    let device = gateway.connect().await;
    assert_eq!(device.says(&[&longest[..], b"x\n21.5\n"].concat()).await, too_long);
}

async fn connections_share_nothing(gateway: &Gateway) {
    let (one, other) = (gateway.connect().await, gateway.connect().await);
    assert_eq!(one.says(b"login o").await, []);
    assert_eq!(other.says(b"login oth").await, []);
    assert_eq!(one.says(b"ne\n").await[0], authenticate("one", ""));
    assert_eq!(other.says(b"er\n").await[0], authenticate("other", ""));
    one.closes().await;
    assert_eq!(other.says(b"still here\n").await[0], published("other/up", b"still here"));
}

/// What a handler does not know, it closes: then the device logs in to a process that had been restarted.
async fn an_ended_connection_is_forgotten(gateway: &Gateway) {
    let device = gateway.connect().await;
    device.says(b"login meter-7\nhalf a li").await;
    device.closes().await;
    assert_eq!(device.says(b"ne\n").await, [Call::Close]);
}

async fn a_timeout_needs_no_answer_to_the_device(gateway: &Gateway) {
    let device = gateway.connect().await;
    device.says(b"login meter-7\n").await;
    assert_eq!(device.is_silent_for_too_long().await, []);
}

fn authenticate(id: &str, password: &str) -> Call {
    Call::Authenticate { id: id.to_owned(), username: id.to_owned(), password: password.to_owned() }
}

fn published(topic: &str, payload: &[u8]) -> Call {
    Call::Publish { topic: topic.to_owned(), qos: 1, payload: payload.to_vec() }
}

fn sent(text: &str) -> Call {
    Call::Send(text.as_bytes().to_vec())
}

/// What a handler asked of the adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Call {
    Authenticate { id: String, username: String, password: String },
    StartTimer(u32),
    Subscribe { topic: String, qos: u32 },
    Publish { topic: String, qos: u32, payload: Vec<u8> },
    Send(Vec<u8>),
    Close,
}

/// Both sides of the gateway that a handler sees, and the handler.
struct Gateway {
    adapter: Adapter,
    service: JoinHandle<()>,
    channel: Channel,
    callbacks: Callbacks,
    connections: AtomicU32,
    _handler: Process,
}

impl Gateway {
    async fn start(example: Example) -> Self {
        let adapter = Adapter::default();
        let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let url = format!("http://{}", incoming.local_addr().unwrap());
        let served = Server::builder().add_service(ConnectionAdapterServer::new(adapter.clone()));
        let service = tokio::spawn(async move { served.serve_with_incoming(incoming).await.unwrap() });

        let handler = Process::start(example, &url).await;
        let endpoint = Endpoint::from_shared(format!("http://{}", handler.address)).unwrap();
        let channel = endpoint.timeout(Duration::from_secs(10)).connect().await.unwrap();
        let callbacks = match example {
            Example::PythonStreaming => Callbacks::Streaming(ConnectionHandlerClient::new(channel.clone())),
            Example::Rust | Example::Python | Example::Node => {
                Callbacks::Unary(ConnectionUnaryHandlerClient::new(channel.clone()))
            }
        };
        Self { adapter, service, channel, callbacks, connections: AtomicU32::new(0), _handler: handler }
    }

    async fn connect(&self) -> Device<'_> {
        let number = self.connections.fetch_add(1, Ordering::Relaxed);
        let device = Device { gateway: self, conn: format!("{number:016x}") };
        let conninfo = Some(ConnInfo {
            socktype: SocketType::Tcp.into(),
            peername: Some(Address { host: "192.0.2.7".into(), port: 40_000 }),
            sockname: Some(Address { host: "192.0.2.1".into(), port: 7993 }),
            peercert: None,
        });
        self.callbacks.socket_created(SocketCreatedRequest { conn: device.conn.clone(), conninfo }).await;
        assert_eq!(device.calls(), []);
        device
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.service.abort();
    }
}

/// A connection, as its device and its broker see it. Each event gives what the handler asked for meanwhile.
struct Device<'a> {
    gateway: &'a Gateway,
    conn: String,
}

impl Device<'_> {
    async fn says(&self, bytes: &[u8]) -> Vec<Call> {
        let request = ReceivedBytesRequest { conn: self.conn.clone(), bytes: bytes.to_vec().into() };
        self.gateway.callbacks.received_bytes(request).await;
        self.calls()
    }

    async fn is_delivered(&self, payloads: &[&[u8]]) -> Vec<Call> {
        let message = |payload: &&[u8]| Message {
            node: "gw-1".into(),
            id: "0".repeat(32),
            qos: 1,
            from: "console".into(),
            topic: "meter-7/down".into(),
            payload: payload.to_vec().into(),
            timestamp: 1_700_000_000_000,
        };
        let messages = payloads.iter().map(message).collect();
        self.gateway.callbacks.received_messages(ReceivedMessagesRequest { conn: self.conn.clone(), messages }).await;
        self.calls()
    }

    async fn is_silent_for_too_long(&self) -> Vec<Call> {
        let request = TimerTimeoutRequest { conn: self.conn.clone(), r#type: TimerType::Keepalive.into() };
        self.gateway.callbacks.timer_timeout(request).await;
        self.calls()
    }

    async fn closes(&self) {
        let reason = "{shutdown,tcp_closed}".to_owned();
        self.gateway.callbacks.socket_closed(SocketClosedRequest { conn: self.conn.clone(), reason }).await;
        self.gateway.adapter.clients.lock().unwrap().remove(&self.conn);
        assert_eq!(self.calls(), []);
    }

    fn calls(&self) -> Vec<Call> {
        self.gateway.adapter.calls.lock().unwrap().remove(&self.conn).unwrap_or_default()
    }
}

/// The handler's service, of either kind; the streaming one is called with one request a stream.
#[derive(Clone)]
enum Callbacks {
    Unary(ConnectionUnaryHandlerClient<Channel>),
    Streaming(ConnectionHandlerClient<Channel>),
}

impl Callbacks {
    async fn socket_created(&self, request: SocketCreatedRequest) {
        let answer = match self.clone() {
            Self::Unary(mut client) => client.on_socket_created(request).await,
            Self::Streaming(mut client) => client.on_socket_created(stream::iter([request])).await,
        };
        answer.unwrap();
    }

    async fn received_bytes(&self, request: ReceivedBytesRequest) {
        let answer = match self.clone() {
            Self::Unary(mut client) => client.on_received_bytes(request).await,
            Self::Streaming(mut client) => client.on_received_bytes(stream::iter([request])).await,
        };
        answer.unwrap();
    }

    async fn received_messages(&self, request: ReceivedMessagesRequest) {
        let answer = match self.clone() {
            Self::Unary(mut client) => client.on_received_messages(request).await,
            Self::Streaming(mut client) => client.on_received_messages(stream::iter([request])).await,
        };
        answer.unwrap();
    }

    async fn timer_timeout(&self, request: TimerTimeoutRequest) {
        let answer = match self.clone() {
            Self::Unary(mut client) => client.on_timer_timeout(request).await,
            Self::Streaming(mut client) => client.on_timer_timeout(stream::iter([request])).await,
        };
        answer.unwrap();
    }

    async fn socket_closed(&self, request: SocketClosedRequest) {
        let answer = match self.clone() {
            Self::Unary(mut client) => client.on_socket_closed(request).await,
            Self::Streaming(mut client) => client.on_socket_closed(stream::iter([request])).await,
        };
        answer.unwrap();
    }
}

/// Writes the calls down by connection, and refuses what the gateway would refuse.
#[derive(Clone, Default)]
struct Adapter {
    calls: Arc<Mutex<HashMap<String, Vec<Call>>>>,
    clients: Arc<Mutex<HashMap<String, String>>>,
}

type Answer = Result<Response<CodeResponse>, Status>;

impl Adapter {
    fn record(&self, conn: String, call: Call) {
        self.calls.lock().unwrap().entry(conn).or_default().push(call);
    }

    fn is_authenticated(&self, conn: &str) -> bool {
        self.clients.lock().unwrap().contains_key(conn)
    }
}

#[tonic::async_trait]
impl ConnectionAdapter for Adapter {
    async fn authenticate(&self, request: Request<AuthenticateRequest>) -> Answer {
        let AuthenticateRequest { conn, clientinfo, password } = request.into_inner();
        let ClientInfo { proto_name, proto_ver, clientid: id, username, mountpoint } = clientinfo.unwrap();
        assert_eq!((&*proto_name, &*proto_ver, &*mountpoint), ("lines", "1", ""));
        self.record(conn.clone(), Call::Authenticate { id: id.clone(), username, password: password.clone() });
        if self.is_authenticated(&conn) {
            return refuse(ResultCode::PermissionDeny, "the connection is authenticated already");
        }
        if id.is_empty() {
            return refuse(ResultCode::RequiredParamsMissed, "clientid is required");
        }
        if password == "wrong" {
            return refuse(ResultCode::PermissionDeny, "the password is wrong");
        }
        self.clients.lock().unwrap().insert(conn, id);
        done()
    }

    async fn start_timer(&self, request: Request<TimerRequest>) -> Answer {
        let TimerRequest { conn, r#type, interval } = request.into_inner();
        assert_eq!(r#type, i32::from(TimerType::Keepalive));
        self.record(conn, Call::StartTimer(interval));
        done()
    }

    async fn subscribe(&self, request: Request<SubscribeRequest>) -> Answer {
        let SubscribeRequest { conn, topic, qos } = request.into_inner();
        self.record(conn, Call::Subscribe { topic, qos });
        done()
    }

    async fn publish(&self, request: Request<PublishRequest>) -> Answer {
        let PublishRequest { conn, topic, qos, payload } = request.into_inner();
        let refused = topic.contains(['+', '#']);
        self.record(conn, Call::Publish { topic, qos, payload: payload.to_vec() });
        if refused { refuse(ResultCode::ParamsTypeError, "a topic name has no wildcards") } else { done() }
    }

    async fn send(&self, request: Request<SendBytesRequest>) -> Answer {
        let SendBytesRequest { conn, bytes } = request.into_inner();
        self.record(conn, Call::Send(bytes.to_vec()));
        done()
    }

    async fn close(&self, request: Request<CloseSocketRequest>) -> Answer {
        self.record(request.into_inner().conn, Call::Close);
        done()
    }

    async fn unsubscribe(&self, _: Request<UnsubscribeRequest>) -> Answer {
        Err(Status::unimplemented("no example unsubscribes"))
    }

    async fn raw_publish(&self, _: Request<RawPublishRequest>) -> Answer {
        Err(Status::unimplemented("no example publishes for nobody"))
    }
}

fn done() -> Answer {
    Ok(CodeResponse::default().into())
}

fn refuse(code: ResultCode, message: &str) -> Answer {
    Ok(CodeResponse { code: code.into(), message: message.to_owned() }.into())
}
