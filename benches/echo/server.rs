//! Server processes: a bare echo, the gateway, a gRPC handler.

use std::io::{self, BufRead};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use polygate::testing::config::{Config, Program};
use polygate::testing::exproto::proto;
use polygate::testing::gateway::Gateway;
use proto::connection_adapter_client::ConnectionAdapterClient;
use proto::connection_unary_handler_server::{ConnectionUnaryHandler, ConnectionUnaryHandlerServer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status};

use crate::parts::Parts;
use crate::{devices, dtls, identity, live, swap, tables};

/// Prints its addresses on one line and serves until it is killed.
pub async fn run(args: &[String]) {
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["bare", "tcp"] => bare().await,
        ["bare", "udp"] => bare_udp().await,
        ["bare", "tls", identity] => bare_tls(Path::new(identity)).await,
        ["bare", "dtls", identity] => dtls::serve(Path::new(identity)).await,
        ["guest", transport, identity] => secure_gateway(transport, Path::new(identity)).await,
        ["guest", transport] => gateway(GUEST, 1, transport).await,
        // More memory than a slot has selects the large engine.
        ["large-guest"] => gateway(&format!("{GUEST}\nmemory_max = \"17MiB\""), 1, "tcp").await,
        ["guests"] => gateway(GUEST, live::LISTENERS, "tcp").await,
        ["neighbours", bad] => neighbours(bad).await,
        ["tables", tables] => {
            let (dir, tables) = (start(), tables.parse().expect("no number"));
            tables::run(Parts::start(config(GUEST, tables, dir.path())).await).await;
        }
        ["devices", listener, with_full_burst] => {
            let (listener, with_full_burst) =
                ([listener.parse().expect("no address")], with_full_burst.parse().expect("no number"));
            let open =
                async |numbers, payload_bytes| devices::open(numbers, &listener, payload_bytes, with_full_burst).await;
            devices::obey(with_full_burst, open, async || {}).await;
        }
        ["swap"] => swap().await,
        ["grpc", handler, transport] => gateway(&grpc(handler), 1, transport).await,
        ["handler"] => handler().await,
        _ => panic!("no such server: {args:?}"),
    }
}

async fn bare() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("cannot bind");
    println!("{}", listener.local_addr().expect("no address"));
    loop {
        let (mut stream, _) = listener.accept().await.expect("cannot accept");
        tokio::spawn(async move {
            stream.set_nodelay(true)?;
            echo(&mut stream).await
        });
    }
}

async fn bare_tls(identity: &Path) {
    let acceptor = identity::acceptor(identity);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("cannot bind");
    println!("{}", listener.local_addr().expect("no address"));
    loop {
        let (stream, _) = listener.accept().await.expect("cannot accept");
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            stream.set_nodelay(true)?;
            echo(&mut acceptor.accept(stream).await?).await
        });
    }
}

async fn echo(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> io::Result<()> {
    let mut buffer = vec![0; 4096];
    loop {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..count]).await?;
        // TLS may hold the last record.
        stream.flush().await?;
    }
}

async fn bare_udp() {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("cannot bind");
    // As in the gateway.
    socket2::SockRef::from(&socket).set_recv_buffer_size(4 << 20).expect("cannot set SO_RCVBUF");
    println!("{}", socket.local_addr().expect("no address"));
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let (count, peer) = socket.recv_from(&mut buffer).await.expect("cannot receive");
        socket.send_to(&buffer[..count], peer).await.expect("cannot send");
    }
}

/// A server as a handler.
fn grpc(address: &str) -> String {
    format!("kind = \"grpc\"\nurl = \"http://{address}\"")
}

/// The echo guest as a handler.
const GUEST: &str = concat!(
    "kind = \"wasm\"\nsettings = { mode = \"raw\" }\ncomponent = \"",
    env!("CARGO_MANIFEST_DIR"),
    "/guests/dist/echo.wasm\""
);

/// Starts the log, and makes a data directory.
fn start() -> tempfile::TempDir {
    // A failing row logs the reason.
    let filter = std::env::var("POLYGATE_LOG").unwrap_or_else(|_| "warn".to_owned());
    polygate::testing::telemetry::start_log(polygate::testing::telemetry::LogFormat::Text, &filter).expect("no log");
    tempfile::tempdir().expect("no temporary directory")
}

/// A gateway with one handler, and listeners on several loopback addresses.
fn config(handler: &str, listeners: u8, dir: &Path) -> Config {
    config_over("tcp", "", handler, listeners, dir)
}

/// The same over another transport, with more keys of each listener.
fn config_over(transport: &str, keys: &str, handler: &str, listeners: u8, dir: &Path) -> Config {
    let mut text = format!(
        "[gateway]\ndata_dir = {dir:?}\n[adapter]\nbind = \"127.0.0.1:0\"\n[broker]\nkind = \"embedded\"\n[handlers.h]\n{handler}\n"
    );
    for last in 1..=listeners {
        text +=
            &format!("[listeners.l{last}]\nbind = \"{transport}://127.0.0.{last}:0\"\nhandlers = [\"h\"]\n{keys}\n");
    }
    Config::parse(&text, dir, "bench.toml").expect("the configuration has faults").0
}

async fn gateway(handler: &str, listeners: u8, transport: &str) {
    let dir = start();
    run_gateway(config_over(transport, "", handler, listeners, dir.path())).await;
}

/// A gateway with the echo guest, listening for TLS or DTLS with the certificate in this directory.
async fn secure_gateway(transport: &str, identity: &Path) {
    let dir = start();
    let (certificate, key) = (identity::certificate(identity), identity::key(identity));
    let keys = format!("tls = {{ cert_file = {certificate:?}, key_file = {key:?} }}");
    run_gateway(config_over(transport, &keys, GUEST, 1, dir.path())).await;
}

/// A gateway with the echo guest, and a second listener with another guest.
async fn neighbours(bad: &str) {
    let dir = start();
    let mut config = config(GUEST, 2, dir.path());
    let mut handler = config.handlers[0].clone();
    let Program::Wasm(options) = &mut handler.program else { panic!("a guest") };
    options.name = "bad".into();
    options.component.set_file_name(format!("{bad}.wasm"));
    config.handlers.push(handler);
    config.listeners[1].handlers = vec!["bad".into()];
    run_gateway(config).await;
}

/// A gateway whose echo guest is swapped by requests on stdin.
async fn swap() {
    let dir = start();
    let handler = |request: &str| {
        let text = request.strip_prefix("grpc ").map_or(GUEST.to_owned(), grpc);
        config(&text, 1, dir.path()).handlers.remove(0)
    };
    swap::serve(Parts::start(config(GUEST, live::LISTENERS, dir.path())).await, handler).await;
}

async fn run_gateway(config: Config) {
    let gateway = Gateway::start(config).await.expect("cannot start");
    let bound = gateway.bound();
    for (_, address) in &bound.listeners {
        print!("{address} ");
    }
    println!("{}", bound.adapter.expect("no adapter"));
    std::future::pending::<()>().await;
}

/// Echoes through the adapter, whose address is on stdin.
async fn handler() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("cannot bind");
    println!("{}", listener.local_addr().expect("no address"));
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line).expect("no adapter");
    let adapter: SocketAddr = line.trim().parse().expect("no adapter");
    let channel = Channel::from_shared(format!("http://{adapter}")).expect("no url").connect_lazy();
    let echo = Echo { adapter: Arc::new(ConnectionAdapterClient::new(channel)) };
    Server::builder()
        .add_service(ConnectionUnaryHandlerServer::new(echo))
        .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)))
        .await
        .expect("the handler ended");
}

struct Echo {
    adapter: Arc<ConnectionAdapterClient<Channel>>,
}

type Answer = Result<Response<proto::EmptySuccess>, Status>;

fn done() -> Answer {
    Ok(Response::new(proto::EmptySuccess {}))
}

#[tonic::async_trait]
impl ConnectionUnaryHandler for Echo {
    async fn on_socket_created(&self, _: Request<proto::SocketCreatedRequest>) -> Answer {
        done()
    }

    async fn on_socket_closed(&self, _: Request<proto::SocketClosedRequest>) -> Answer {
        done()
    }

    async fn on_received_bytes(&self, request: Request<proto::ReceivedBytesRequest>) -> Answer {
        let proto::ReceivedBytesRequest { conn, bytes } = request.into_inner();
        let mut adapter = ConnectionAdapterClient::clone(&self.adapter);
        // The device may have disconnected meanwhile.
        drop(adapter.send(proto::SendBytesRequest { conn, bytes }).await?);
        done()
    }

    async fn on_timer_timeout(&self, _: Request<proto::TimerTimeoutRequest>) -> Answer {
        done()
    }

    async fn on_received_messages(&self, _: Request<proto::ReceivedMessagesRequest>) -> Answer {
        done()
    }
}
