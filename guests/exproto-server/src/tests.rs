//! The server before a stand-in for the gateway: real gRPC both ways.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use polygate_guest::{Adapter, ClientInfo, CloseReason, ConnInfo, Error, Level, Message, Qos, Result, Timer};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use super::*;
use crate::proto::connection_adapter_server::{ConnectionAdapter, ConnectionAdapterServer};
use crate::proto::connection_handler_client::ConnectionHandlerClient;
use crate::proto::connection_unary_handler_client::ConnectionUnaryHandlerClient;
use crate::proto::{
    AuthenticateRequest, CloseSocketRequest, CodeResponse, PublishRequest, RawPublishRequest, ReceivedBytesRequest,
    ReceivedMessagesRequest, ResultCode, SendBytesRequest, SocketClosedRequest, SocketCreatedRequest, SubscribeRequest,
    TimerRequest, TimerTimeoutRequest, UnsubscribeRequest,
};

/// How long a test waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(20);

/// All five events reach the handler, and what it asks for reaches the gateway, in order.
#[tokio::test]
async fn a_connection_from_its_beginning_to_its_end() {
    let mut bench = Bench::start(10).await;
    bench.created("a").await.unwrap();
    bench.says("a", "hello").await.unwrap();
    let message = proto::Message { topic: "t".into(), payload: b"news".to_vec(), ..proto::Message::default() };
    let mut unary = bench.unary.clone();
    unary.on_received_messages(ReceivedMessagesRequest { conn: "a".into(), messages: vec![message] }).await.unwrap();
    unary.on_timer_timeout(TimerTimeoutRequest { conn: "a".into(), r#type: 0 }).await.unwrap();
    bench.closed("a").await.unwrap();
    assert_eq!(
        bench.calls(),
        ["send a: tcp from 192.0.2.7:4", "send a: hello", "send a: t news", "send a: silent", "raw_publish: Peer 1"]
    );
}

/// Every operation has its counterpart, and every refusal its code.
#[tokio::test]
async fn operations() {
    let mut bench = Bench::start(10).await;
    bench.created("a").await.unwrap();
    bench.says("a", "operations").await.unwrap();
    assert_eq!(
        bench.calls()[1..],
        [
            "publish a: denied 1",
            "authenticate a: client of proto 2 as user with word",
            "start_timer a: 2 s",
            "publish a: denied 1",
            "subscribe a: filter 2",
            "unsubscribe a: filter",
            "raw_publish: topic 0",
            "send gone",
            "close a",
            "send a: NotAuthenticated PermissionDenied Unknown ConnGone value 16 true",
        ]
    );
}

/// An event that waits for the gateway is in no other connection's way; the next of its own waits for it.
#[tokio::test]
async fn waiting_is_its_own_affair() {
    let mut bench = Bench::start(10).await;
    bench.created("a").await.unwrap();
    bench.created("b").await.unwrap();
    bench.calls();
    let waiting = bench.spawn_says("a", "wait");
    bench.next_call("authenticate a: wait of  ").await;
    let behind = bench.spawn_says("a", "behind");
    bench.says("b", "passes").await.unwrap();
    assert_eq!(bench.calls(), ["send b: passes"]);
    bench.gateway.patience.add_permits(1);
    waiting.await.unwrap().unwrap();
    behind.await.unwrap().unwrap();
    assert_eq!(bench.calls(), ["send a: waited", "send a: behind"]);
}

/// Of a connection that was never announced nothing is known, and its end is no news.
#[tokio::test]
async fn unknown_connections() {
    let bench = Bench::start(10).await;
    assert_eq!(bench.says("ghost", "boo").await.unwrap_err().code(), Code::FailedPrecondition);
    bench.closed("ghost").await.unwrap();
}

/// A handler that panics loses its connection, and no other; announced again, the connection begins anew.
#[tokio::test]
async fn panics() {
    let mut bench = Bench::start(10).await;
    bench.created("a").await.unwrap();
    bench.created("b").await.unwrap();
    assert_eq!(bench.says("a", "panic").await.unwrap_err().code(), Code::Internal);
    assert_eq!(bench.says("a", "still there?").await.unwrap_err().code(), Code::FailedPrecondition);
    bench.says("b", "fine").await.unwrap();
    bench.created("a").await.unwrap();
    bench.says("a", "again").await.unwrap();
    assert_eq!(bench.calls()[2..], ["send b: fine", "send a: tcp from 192.0.2.7:4", "send a: again"]);
}

/// An error of the handler ends the device's connection; to the gateway the event is done.
#[tokio::test]
async fn errors() {
    let mut bench = Bench::start(10).await;
    bench.created("a").await.unwrap();
    bench.says("a", "error").await.unwrap();
    assert_eq!(bench.calls()[1..], ["close a"]);
}

/// One connection too many: the one that was quiet longest is forgotten.
#[tokio::test]
async fn connections_max() {
    let bench = Bench::start(2).await;
    bench.created("a").await.unwrap();
    bench.created("b").await.unwrap();
    bench.says("a", "busy").await.unwrap();
    bench.created("c").await.unwrap();
    bench.says("a", "here").await.unwrap();
    bench.says("c", "here").await.unwrap();
    assert_eq!(bench.says("b", "here").await.unwrap_err().code(), Code::FailedPrecondition);
}

/// A stream is as many events as it has requests.
#[tokio::test]
async fn streams() {
    let mut bench = Bench::start(10).await;
    let mut streaming = ConnectionHandlerClient::new(bench.channel.clone());
    streaming.on_socket_created(stream_of(vec![created("a")])).await.unwrap();
    let requests = ["one", "two"].map(|text| ReceivedBytesRequest { conn: "a".into(), bytes: text.into() });
    streaming.on_received_bytes(stream_of(requests.to_vec())).await.unwrap();
    assert_eq!(bench.calls()[1..], ["send a: one", "send a: two"]);
}

/// Told to stop, the server finishes what it has begun.
#[tokio::test]
async fn stops_in_order() {
    let mut bench = Bench::start(10).await;
    bench.created("a").await.unwrap();
    let waiting = bench.spawn_says("a", "wait");
    bench.next_call("authenticate a: wait of  ").await;
    bench.stop.take().unwrap().send(()).unwrap();
    bench.gateway.patience.add_permits(1);
    waiting.await.unwrap().unwrap();
    tokio::time::timeout(PATIENCE, bench.served.take().unwrap()).await.unwrap().unwrap().unwrap();
    assert_eq!(bench.calls().last().unwrap(), "send a: waited");
}

/// What it does is in the bytes that it gets; unless they say something else it sends them back.
struct Probe;

impl Handler for Probe {
    fn on_socket_created(adapter: &mut dyn Adapter, info: &ConnInfo) -> Result<Self> {
        let text = format!("{:?} from {}:{}", info.kind, info.peer.host, info.peer.port).to_lowercase();
        adapter.send(text.as_bytes())?;
        Ok(Self)
    }

    fn on_received_bytes(&mut self, adapter: &mut dyn Adapter, bytes: &[u8]) -> Result {
        match bytes {
            b"wait" => {
                adapter.authenticate(ClientInfo::named("wait"), None)?;
                adapter.send(b"waited")?;
            }
            b"operations" => self.operations(adapter)?,
            b"panic" => panic!("told to"),
            b"error" => return Err(Error::new("told to")),
            other => adapter.send(other)?,
        }
        Ok(())
    }

    fn on_received_messages(&mut self, adapter: &mut dyn Adapter, messages: &[Message]) -> Result {
        for message in messages {
            adapter.send(&[message.topic.as_bytes(), b" ", &message.payload].concat())?;
        }
        Ok(())
    }

    fn on_timer_timeout(&mut self, adapter: &mut dyn Adapter, _: Timer) -> Result {
        Ok(adapter.send(b"silent")?)
    }

    fn on_socket_closed(self, adapter: &mut dyn Adapter, reason: &CloseReason) -> Result {
        Ok(adapter.raw_publish(&format!("{reason:?}"), Qos::AtLeastOnce, b"")?)
    }
}

impl Probe {
    fn operations(&mut self, adapter: &mut dyn Adapter) -> Result {
        let early = adapter.publish("denied", Qos::AtLeastOnce, b"").unwrap_err();
        let client = ClientInfo { proto_name: "proto", proto_ver: "2", client_id: "client", username: Some("user") };
        adapter.authenticate(client, Some("word"))?;
        adapter.start_timer(Timer::Keepalive, 1001)?;
        let denied = adapter.publish("denied", Qos::AtLeastOnce, b"").unwrap_err();
        adapter.subscribe("filter", Qos::ExactlyOnce)?;
        adapter.unsubscribe("filter")?;
        adapter.raw_publish("topic", Qos::AtMostOnce, b"x")?;
        let unstoppable = adapter.stop_timer(Timer::Keepalive).unwrap_err();
        let gone = adapter.send(b"gone").unwrap_err();
        adapter.close()?;
        adapter.log(Level::Info, "all done");
        let (setting, random) = (adapter.setting("name").unwrap(), adapter.random(16).len());
        let later = adapter.now_ms() > 1_700_000_000_000;
        let text = format!("{early:?} {denied:?} {unstoppable:?} {gone:?} {setting} {random} {later}");
        assert_eq!(adapter.setting("no such name"), None);
        Ok(adapter.send(text.as_bytes())?)
    }
}

/// A server, and what stands for the gateway.
struct Bench {
    gateway: Arc<StandIn>,
    seen: mpsc::Receiver<String>,
    channel: Channel,
    unary: ConnectionUnaryHandlerClient<Channel>,
    stop: Option<oneshot::Sender<()>>,
    served: Option<JoinHandle<io::Result<()>>>,
}

impl Bench {
    async fn start(connections_max: usize) -> Self {
        let (see, seen) = mpsc::channel(1024);
        let gateway = Arc::new(StandIn { see, patience: Semaphore::new(0) });
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let adapter = socket.local_addr().unwrap();
        let service = ConnectionAdapterServer::from_arc(Arc::clone(&gateway));
        tokio::spawn(Server::builder().add_service(service).serve_with_incoming(TcpIncoming::from(socket)));
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address: SocketAddr = socket.local_addr().unwrap();
        let mut options = Options { adapter: format!("http://{adapter}"), connections_max, ..Options::default() };
        options.settings.insert("name".into(), "value".into());
        let (stop, stopped) = oneshot::channel();
        let served = tokio::spawn(async move {
            serve::<Probe>(socket, &options, async {
                // Nobody stops it before the test is over.
                if stopped.await.is_err() {
                    std::future::pending::<()>().await;
                }
            })
            .await
        });
        let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect_lazy();
        let unary = ConnectionUnaryHandlerClient::new(channel.clone());
        Self { gateway, seen, channel, unary, stop: Some(stop), served: Some(served) }
    }

    async fn created(&self, conn: &str) -> Result<(), Status> {
        self.unary.clone().on_socket_created(created(conn)).await.map(|_| ())
    }

    async fn closed(&self, conn: &str) -> Result<(), Status> {
        let reason = "{shutdown,tcp_closed}".to_owned();
        self.unary.clone().on_socket_closed(SocketClosedRequest { conn: conn.to_owned(), reason }).await.map(|_| ())
    }

    async fn says(&self, conn: &str, text: &str) -> Result<(), Status> {
        self.spawn_says(conn, text).await.unwrap()
    }

    fn spawn_says(&self, conn: &str, text: &str) -> JoinHandle<Result<(), Status>> {
        let (mut unary, conn, bytes) = (self.unary.clone(), conn.to_owned(), text.into());
        tokio::spawn(async move { unary.on_received_bytes(ReceivedBytesRequest { conn, bytes }).await.map(|_| ()) })
    }

    /// What the gateway was asked for until now.
    fn calls(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.seen.try_recv().ok()).collect()
    }

    /// Waits until the gateway is asked for this, and passes over what was before.
    async fn next_call(&mut self, expected: &str) {
        let coming = async { while self.seen.recv().await.unwrap() != expected {} };
        tokio::time::timeout(PATIENCE, coming).await.unwrap();
    }
}

fn created(conn: &str) -> SocketCreatedRequest {
    let address = proto::Address { host: "192.0.2.7".into(), port: 4 };
    let conninfo = proto::ConnInfo { peername: Some(address), ..proto::ConnInfo::default() };
    SocketCreatedRequest { conn: conn.to_owned(), conninfo: Some(conninfo) }
}

/// A stream of these requests, and its end.
fn stream_of<T: Send + 'static>(requests: Vec<T>) -> impl tonic::IntoStreamingRequest<Message = T> {
    tonic::codegen::tokio_stream::iter(requests)
}

/// A gateway that writes down what it is asked. It denies what is called "denied", knows nothing of who is "gone", and lets those
/// who "wait" wait.
struct StandIn {
    see: mpsc::Sender<String>,
    patience: Semaphore,
}

type Answer = Result<Response<CodeResponse>, Status>;

impl StandIn {
    fn answer(&self, what: String) -> Answer {
        let code = if what.contains("denied") {
            ResultCode::PermissionDeny
        } else if what.contains("gone") {
            ResultCode::ConnProcessNotAlive
        } else {
            ResultCode::Success
        };
        self.see.try_send(what).unwrap();
        Ok(CodeResponse { code: code.into(), message: String::new() }.into())
    }
}

#[tonic::async_trait]
impl ConnectionAdapter for StandIn {
    async fn send(&self, request: Request<SendBytesRequest>) -> Answer {
        let SendBytesRequest { conn, bytes } = request.into_inner();
        let text = String::from_utf8(bytes).unwrap();
        self.answer(if text == "gone" { "send gone".into() } else { format!("send {conn}: {text}") })
    }

    async fn close(&self, request: Request<CloseSocketRequest>) -> Answer {
        self.answer(format!("close {}", request.into_inner().conn))
    }

    async fn authenticate(&self, request: Request<AuthenticateRequest>) -> Answer {
        let AuthenticateRequest { conn, clientinfo, password } = request.into_inner();
        let proto::ClientInfo { proto_name, proto_ver, clientid, username, .. } = clientinfo.unwrap();
        if clientid == "wait" {
            let answer = self.answer(format!("authenticate {conn}: wait of {proto_name} {proto_ver}"));
            self.patience.acquire().await.unwrap().forget();
            return answer;
        }
        self.answer(format!(
            "authenticate {conn}: {clientid} of {proto_name} {proto_ver} as {username} with {password}"
        ))
    }

    async fn start_timer(&self, request: Request<TimerRequest>) -> Answer {
        let TimerRequest { conn, interval, .. } = request.into_inner();
        self.answer(format!("start_timer {conn}: {interval} s"))
    }

    async fn publish(&self, request: Request<PublishRequest>) -> Answer {
        let PublishRequest { conn, topic, qos, .. } = request.into_inner();
        self.answer(format!("publish {conn}: {topic} {qos}"))
    }

    async fn subscribe(&self, request: Request<SubscribeRequest>) -> Answer {
        let SubscribeRequest { conn, topic, qos } = request.into_inner();
        self.answer(format!("subscribe {conn}: {topic} {qos}"))
    }

    async fn unsubscribe(&self, request: Request<UnsubscribeRequest>) -> Answer {
        let UnsubscribeRequest { conn, topic } = request.into_inner();
        self.answer(format!("unsubscribe {conn}: {topic}"))
    }

    async fn raw_publish(&self, request: Request<RawPublishRequest>) -> Answer {
        let RawPublishRequest { topic, qos, .. } = request.into_inner();
        self.answer(format!("raw_publish: {topic} {qos}"))
    }
}
