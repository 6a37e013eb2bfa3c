//! A gRPC handler in Rust: devices that speak lines of text.
//!
//! `cargo run --example handler` serves a gateway on this machine; examples/handlers/README.md shows the protocol, the
//! gateway's configuration, and the same handler in Python and JavaScript. In a project of your own, generate `proto`
//! from proto/exproto.proto with `tonic_prost_build::compile_protos` in build.rs, as here.

use std::{error::Error, net::SocketAddr};

use bytes::{Bytes, BytesMut};
use clap::Parser;
use dashmap::DashMap;
use proto::connection_adapter_client::ConnectionAdapterClient;
use proto::connection_unary_handler_server::{ConnectionUnaryHandler, ConnectionUnaryHandlerServer};
use proto::{
    AuthenticateRequest, ClientInfo, CloseSocketRequest, CodeResponse, EmptySuccess, PublishRequest,
    ReceivedBytesRequest, ReceivedMessagesRequest, ResultCode, SendBytesRequest, SocketClosedRequest,
    SocketCreatedRequest, SubscribeRequest, TimerRequest, TimerTimeoutRequest, TimerType,
};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};

/// The longest line in bytes: without a bound, a device that never ends its line would fill our memory.
const LINE_MAX: usize = 1024;

/// A keepalive in seconds; the gateway ends a device that is silent for 1.5 times as long.
const KEEPALIVE_S: u32 = 60;

/// The messages and services of proto/exproto.proto, as generated.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    reason = "generated"
)]
mod proto {
    tonic::include_proto!("emqx.exproto.v1");
}

type Answer = Result<Response<EmptySuccess>, Status>;

struct Lines {
    adapter: ConnectionAdapterClient<Channel>,
    connections: DashMap<String, Connection>,
}

/// The state of a device between calls.
#[derive(Default)]
struct Connection {
    unfinished: BytesMut,
    id: Option<String>,
}

// The gateway waits for each answer before the next call for the same connection, so calls are never reordered.
#[tonic::async_trait]
impl ConnectionUnaryHandler for Lines {
    async fn on_socket_created(&self, request: Request<SocketCreatedRequest>) -> Answer {
        self.connections.insert(request.into_inner().conn, Connection::default());
        Ok(EmptySuccess {}.into())
    }

    async fn on_received_bytes(&self, request: Request<ReceivedBytesRequest>) -> Answer {
        let ReceivedBytesRequest { conn, bytes } = request.into_inner();
        let Some(lines) = self.connections.get_mut(&conn).map(|mut connection| connection.take_lines(&bytes)) else {
            // This process is younger than the connection: login and half a line are forgotten.
            // Let the device start over.
            return self.close(conn).await;
        };
        for line in lines {
            if line.len() > LINE_MAX {
                self.send(&conn, format!("refused: a line has at most {LINE_MAX} bytes\n")).await?;
                return self.close(conn).await;
            }
            match self.on_line(&conn, line.strip_suffix(b"\r").unwrap_or(&line)).await {
                Ok(()) => self.send(&conn, "ok\n").await?,
                Err(refused) => self.send(&conn, format!("refused: {}\n", refused.message())).await?,
            }
        }
        Ok(EmptySuccess {}.into())
    }

    async fn on_received_messages(&self, request: Request<ReceivedMessagesRequest>) -> Answer {
        let ReceivedMessagesRequest { conn, messages } = request.into_inner();
        for message in messages {
            self.send(&conn, [&message.payload[..], b"\n"].concat()).await?;
        }
        Ok(EmptySuccess {}.into())
    }

    async fn on_timer_timeout(&self, _: Request<TimerTimeoutRequest>) -> Answer {
        Ok(EmptySuccess {}.into())
    }

    async fn on_socket_closed(&self, request: Request<SocketClosedRequest>) -> Answer {
        self.connections.remove(&request.into_inner().conn);
        Ok(EmptySuccess {}.into())
    }
}

impl Connection {
    /// Adds bytes, split anywhere, and takes the completed lines; also one that is already too long.
    fn take_lines(&mut self, bytes: &[u8]) -> Vec<Bytes> {
        self.unfinished.extend_from_slice(bytes);
        let mut lines = Vec::new();
        while let Some(end) = self.unfinished.iter().position(|&byte| byte == b'\n') {
            lines.push(self.unfinished.split_to(end + 1).split_to(end).freeze());
        }
        if self.unfinished.len() > LINE_MAX {
            lines.push(self.unfinished.split().freeze());
        }
        lines
    }
}

impl Lines {
    async fn on_line(&self, conn: &str, line: &[u8]) -> Result<(), Status> {
        let (conn, text) = (conn.to_owned(), String::from_utf8_lossy(line));
        let mut words = text.split_whitespace();
        if words.next() == Some("login") {
            let (id, password) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            self.login(conn, id.to_owned(), password.to_owned()).await
        } else if let Some(id) = self.connections.get(&conn).and_then(|connection| connection.id.clone()) {
            let payload = Bytes::copy_from_slice(line);
            done(
                self.adapter.clone().publish(PublishRequest { conn, topic: format!("{id}/up"), qos: 1, payload }).await,
            )
        } else {
            Err(Status::failed_precondition("expected login <id> [<password>]"))
        }
    }

    async fn login(&self, conn: String, id: String, password: String) -> Result<(), Status> {
        let mut adapter = self.adapter.clone();
        let clientinfo = Some(ClientInfo {
            proto_name: "lines".into(),
            proto_ver: "1".into(),
            clientid: id.clone(),
            username: id.clone(),
            mountpoint: String::new(),
        });
        done(adapter.authenticate(AuthenticateRequest { conn: conn.clone(), clientinfo, password }).await)?;
        if let Some(mut connection) = self.connections.get_mut(&conn) {
            connection.id = Some(id.clone());
        }
        let r#type = TimerType::Keepalive.into();
        done(adapter.start_timer(TimerRequest { conn: conn.clone(), r#type, interval: KEEPALIVE_S }).await)?;
        done(adapter.subscribe(SubscribeRequest { conn, topic: format!("{id}/down"), qos: 1 }).await)
    }

    async fn send(&self, conn: &str, bytes: impl Into<Bytes>) -> Result<(), Status> {
        // The code is ignored: if the device has disconnected, OnSocketClosed will follow.
        self.adapter.clone().send(SendBytesRequest { conn: conn.to_owned(), bytes: bytes.into() }).await?;
        Ok(())
    }

    async fn close(&self, conn: String) -> Answer {
        self.adapter.clone().close(CloseSocketRequest { conn }).await?;
        Ok(EmptySuccess {}.into())
    }
}

/// Turns the gateway's code into a result; what a refusal says is a sentence for people.
fn done(reply: Result<Response<CodeResponse>, Status>) -> Result<(), Status> {
    let CodeResponse { code, message } = reply?.into_inner();
    if code == i32::from(ResultCode::Success) { Ok(()) } else { Err(Status::failed_precondition(message)) }
}

#[derive(Parser)]
struct Args {
    /// Where the gateway calls us (`url` of the handler in its configuration); port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:9001")]
    listen: SocketAddr,
    /// Where we call the gateway (`bind` of `[adapter]` in its configuration).
    #[arg(long, default_value = "http://127.0.0.1:9100")]
    adapter: Endpoint,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let Args { listen, adapter } = Args::parse();
    // Lazily: handler and gateway may start in any order, and either may be restarted.
    let adapter = ConnectionAdapterClient::new(adapter.connect_lazy());
    let handler = ConnectionUnaryHandlerServer::new(Lines { adapter, connections: DashMap::new() });
    let incoming = TcpIncoming::bind(listen)?.with_nodelay(Some(true));
    println!("listening on {}", incoming.local_addr()?);
    Server::builder().add_service(handler).serve_with_incoming(incoming).await?;
    Ok(())
}
