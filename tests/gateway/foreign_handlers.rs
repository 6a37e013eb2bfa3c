//! Handlers with the habits of those that others wrote run unchanged: servers in Python on grpcio and in Go on grpc-go, and one
//! on bare HTTP/2 that answers with what they cannot. Each habit has lost messages or devices before.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use polygate::testing::exproto::proto;
use polygate::testing::exproto::proto::connection_adapter_client::ConnectionAdapterClient;
use prost::Message;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::harness::mqtt::MqttClient;
use crate::harness::peer::RawPeer;
use crate::harness::scripted_handler::{Event, ScriptedHandler, Serves};
use crate::harness::transport::Transport;
use crate::harness::{GatewayUnderTest, Setup, within};

/// The language of a server, whose habits are listed at the top of its source.
#[derive(Clone, Copy, Debug)]
enum Language {
    Python,
    Go,
}

use Language::{Go, Python};

impl Language {
    fn command(self) -> Command {
        let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
        let program = repository.join(match self {
            Python => "target/examples/venv/bin/python",
            Go => "target/examples/go/handler",
        });
        assert!(program.exists(), "{} is missing: run examples/handlers/setup", program.display());
        let mut command = Command::new(program);
        if let Python = self {
            command.arg(repository.join("tests/gateway/foreign_handlers/handler.py"));
        }
        command
    }
}

/// A server with a habit, as a process of its own; killed when dropped.
struct Foreign {
    gateway: GatewayUnderTest,
    _child: Child,
}

impl Foreign {
    /// The gateway is started first, on a port for handlers that is known, since the server needs the adapter's address.
    async fn start(language: Language, habit: &str, keys: &str, transport: Transport) -> Self {
        let relay = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", relay.local_addr().unwrap());
        let gateway = Setup::grpc_at(&url).handler(keys).over(transport).start().await;
        let mut child = language
            .command()
            .args([habit, "--adapter", &gateway.adapter().to_string()])
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap()).lines();
        let port = within("the server to listen", stdout.next_line()).await.unwrap().expect("a port");
        let to = format!("127.0.0.1:{port}");
        tokio::spawn(async move {
            while let Ok((mut from, _)) = relay.accept().await {
                let to = to.clone();
                tokio::spawn(async move {
                    let mut to = tokio::net::TcpStream::connect(to).await.unwrap();
                    drop(tokio::io::copy_bidirectional(&mut from, &mut to).await);
                });
            }
        });
        Self { gateway, _child: child }
    }
}

async fn login(peer: &mut RawPeer, name: &str) {
    peer.send(format!("login {name}\n")).await;
    peer.expect("ok\n").await;
}

/// A handler that reads only the first message of a call gets each message in a call of its own: of a burst none is lost, and the
/// order is kept.
async fn burst(language: Language, habit: &str, keys: &str) {
    const MESSAGES: usize = 200;
    let foreign = Foreign::start(language, habit, keys, Transport::Tcp).await;
    let mut peer = foreign.gateway.connect().await;
    login(&mut peer, "device-1").await;
    let mut client = MqttClient::connect(foreign.gateway.broker(), "app").await;
    let mut expected = String::new();
    for number in 0..MESSAGES {
        client.publish("dn/1", number.to_string()).await;
        expected.push_str(&format!("{number}\n"));
    }
    peer.expect(&expected).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_reaches_a_unary_handler_of_first_messages() {
    burst(Python, "first-message", "").await;
    burst(Go, "first-message", "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_reaches_a_streaming_handler_of_first_messages() {
    burst(Python, "stream-first", "").await;
    burst(Go, "stream-first", "").await;
}

/// A handler that iterates gets whole batches if the configuration says so.
#[tokio::test(flavor = "multi_thread")]
async fn a_burst_reaches_a_handler_that_iterates() {
    burst(Go, "iterates", "messages_per_call = 1000").await;
}

/// A frame that is cut anywhere is whole for a handler that keeps its buffer in the scope of the stream.
async fn cut_anywhere(language: Language, habit: &str, transport: Transport) {
    const FRAME: &str = "login device-1\nhello\n";
    let cuts: Vec<usize> = match transport {
        Transport::Tcp | Transport::Tls(_) => (1..FRAME.len()).step_by(4).collect(),
        // A datagram is not cut.
        Transport::Udp | Transport::Dtls(_) => vec!["login device-1\n".len()],
    };
    let foreign = Foreign::start(language, habit, "", transport).await;
    let mut received = 0;
    for cut in cuts {
        let mut device = foreign.gateway.device().await;
        device.peer().send(&FRAME[..cut]).await;
        // The first piece is an event of its own once it was read and is not queued any more.
        received += cut;
        foreign.gateway.metric_reaches("polygate_received_bytes_total{listener=\"l\"}", received as f64).await;
        foreign.gateway.metric_reaches("polygate_inbound_queue_bytes{listener=\"l\"}", 0.0).await;
        device.peer().send(&FRAME[cut..]).await;
        received += FRAME.len() - cut;
        device.peer().expect("ok\nhello\n").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_buffer_in_stream_scope_survives_cuts_over_tcp() {
    cut_anywhere(Python, "stream-scope", Transport::Tcp).await;
    cut_anywhere(Go, "stream-scope", Transport::Tcp).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_buffer_in_stream_scope_survives_cuts_over_tls() {
    cut_anywhere(Python, "stream-scope", Transport::mutual_tls()).await;
    cut_anywhere(Go, "stream-scope", Transport::mutual_tls()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_with_stream_scope_serves_udp() {
    cut_anywhere(Python, "stream-scope", Transport::Udp).await;
    cut_anywhere(Go, "stream-scope", Transport::Udp).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_with_stream_scope_serves_dtls() {
    cut_anywhere(Python, "stream-scope", Transport::mutual_dtls()).await;
    cut_anywhere(Go, "stream-scope", Transport::mutual_dtls()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_method_that_returns_after_one_request_is_called_for_each_event() {
    for (language, habit) in [(Python, "returns"), (Go, "returns"), (Go, "answers")] {
        for transport in [Transport::Tcp, Transport::mutual_tls(), Transport::Udp, Transport::mutual_dtls()] {
            cut_anywhere(language, habit, transport).await;
        }
    }
}

/// A handler's exception ends its stream; the device goes on with its next event on a new one, and the others do not notice.
#[tokio::test(flavor = "multi_thread")]
async fn a_crash_does_not_end_the_other_devices() {
    for language in [Python, Go] {
        crash(language).await;
    }
}

async fn crash(language: Language) {
    let foreign = Foreign::start(language, "stream-scope", "streams = \"per-connection\"", Transport::Tcp).await;
    let (mut good, mut bad) = (foreign.gateway.connect().await, foreign.gateway.connect().await);
    login(&mut good, "good").await;
    bad.send("crash\n").await;
    // What is written to the stream before its end arrives is lost, as with EMQX; the first event after that is served on
    // a new stream.
    let served_again = async {
        loop {
            bad.send("hello\n").await;
            if timeout(Duration::from_millis(200), bad.expect("hello\n")).await.is_ok() {
                break;
            }
        }
    };
    within("an answer to the device whose stream has ended", served_again).await;
    good.send("hello\n").await;
    good.expect("hello\n").await;
}

/// How a server on bare HTTP/2 answers.
#[derive(Clone, Copy, Debug)]
enum Answers {
    /// Status OK and no message, after one request: `return nil` in a streaming method of grpc-go.
    Nothing,
    /// A message of another type.
    OtherMessage,
}

/// Serves both services, sends back what devices send, and answers each stream after one request.
async fn bare_server(answers: Answers, listener: TcpListener, adapter: Arc<tokio::sync::OnceCell<String>>) {
    while let Ok((socket, _)) = listener.accept().await {
        let adapter = Arc::clone(&adapter);
        tokio::spawn(async move {
            let mut connection = h2::server::handshake(socket).await.unwrap();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                let adapter = Arc::clone(&adapter);
                tokio::spawn(async move {
                    let path = request.uri().path().to_owned();
                    let mut body = request.into_body();
                    let mut frame = Vec::new();
                    while let Some(Ok(chunk)) = body.data().await {
                        body.flow_control().release_capacity(chunk.len()).unwrap();
                        frame.extend_from_slice(&chunk);
                        if frame.len() > 5
                            && frame.len() >= 5 + u32::from_be_bytes(frame[1..5].try_into().unwrap()) as usize
                        {
                            break;
                        }
                    }
                    if path.ends_with("/OnReceivedBytes") && frame.len() > 5 {
                        let request = proto::ReceivedBytesRequest::decode(&frame[5..]).unwrap();
                        let mut adapter =
                            ConnectionAdapterClient::connect(adapter.get().unwrap().clone()).await.unwrap();
                        let send = proto::SendBytesRequest { conn: request.conn, bytes: request.bytes };
                        adapter.send(send).await.unwrap();
                    }
                    let head = http::Response::builder().header("content-type", "application/grpc");
                    match answers {
                        Answers::Nothing => {
                            let head = head.header("grpc-status", "0").body(()).unwrap();
                            respond.send_response(head, true).unwrap();
                        }
                        Answers::OtherMessage => {
                            let mut stream = respond.send_response(head.body(()).unwrap(), false).unwrap();
                            let other = proto::SocketClosedRequest { conn: "x".to_owned(), reason: "y".to_owned() };
                            let mut message = vec![0];
                            message.extend((other.encoded_len() as u32).to_be_bytes());
                            other.encode(&mut message).unwrap();
                            stream.send_data(Bytes::from(message), false).unwrap();
                            let mut trailers = http::HeaderMap::new();
                            trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
                            stream.send_trailers(trailers).unwrap();
                        }
                    }
                });
            }
        });
    }
}

/// OK is success, with no message and with one of another type, in both services.
#[tokio::test(flavor = "multi_thread")]
async fn any_answer_with_status_ok_is_success() {
    for answers in [Answers::Nothing, Answers::OtherMessage] {
        for keys in ["service = \"ConnectionUnaryHandler\"", "service = \"ConnectionHandler\"", "service = \"auto\""] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            let adapter = Arc::<tokio::sync::OnceCell<String>>::default();
            tokio::spawn(bare_server(answers, listener, Arc::clone(&adapter)));
            let gateway = Setup::grpc_at(&url).handler(keys).start().await;
            adapter.set(format!("http://{}", gateway.adapter())).unwrap();
            let mut peer = gateway.connect().await;
            for _ in 0..3 {
                peer.send("hello").await;
                peer.expect("hello").await;
            }
            assert_eq!(gateway.metric("polygate_connections{listener=\"l\"}"), 1.0, "{answers:?} {keys}");
        }
    }
}

/// More devices than a server allows streams on a connection are served over more connections, up to `channels_max`.
#[tokio::test(flavor = "multi_thread")]
async fn streams_of_many_devices_use_more_channels() {
    // tonic's server allows 200 streams on a connection.
    const DEVICES: usize = 300;
    let handler = ScriptedHandler::start(Serves::Streaming, |callback, calls| async move {
        if let Event::Bytes(bytes) = callback.event {
            calls.send_ok(&callback.conn, bytes).await;
        }
        Ok(())
    })
    .await;
    let gateway = Setup::grpc(&handler).handler("channels = 1\nstreams = \"per-connection\"").start().await;
    handler.use_adapter(gateway.adapter());
    let mut peers = Vec::new();
    for _ in 0..DEVICES {
        peers.push(gateway.connect().await);
    }
    for round in 0..2 {
        for peer in &mut peers {
            peer.send(format!("round {round}")).await;
        }
        for peer in &mut peers {
            peer.expect(&format!("round {round}")).await;
        }
    }
}

/// On streams that stay open OnSocketCreated is first, the bytes are in order and complete, and OnSocketClosed is last.
#[tokio::test(flavor = "multi_thread")]
async fn events_on_open_streams_keep_their_order() {
    let (see, mut seen) = mpsc::channel(2048);
    let handler = ScriptedHandler::start(Serves::Streaming, move |callback, _| {
        let see = see.clone();
        async move {
            see.send(callback.event).await.unwrap();
            Ok(())
        }
    })
    .await;
    let gateway = Setup::grpc(&handler).start().await;
    handler.use_adapter(gateway.adapter());
    let mut peer = gateway.connect().await;
    let mut sent = String::new();
    for number in 0..1000 {
        let text = format!("{number} ");
        peer.send(&text).await;
        sent.push_str(&text);
    }
    drop(peer);
    let next = async { seen.recv().await.unwrap() };
    assert!(matches!(within("the first event", next).await, Event::Created(_)));
    let mut received = Vec::new();
    loop {
        match within("an event", async { seen.recv().await.unwrap() }).await {
            Event::Bytes(bytes) => received.extend_from_slice(&bytes),
            Event::Closed(reason) => {
                assert_eq!(reason, "{shutdown,tcp_closed}");
                break;
            }
            event => panic!("{event:?}"),
        }
    }
    assert_eq!(String::from_utf8(received).unwrap(), sent);
}
