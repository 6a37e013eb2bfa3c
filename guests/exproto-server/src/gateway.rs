//! The gateway's adapter, as handlers call it: plain blocking functions on one side, gRPC on the other.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use polygate_guest::{Adapter, ClientInfo, ErrorCode, Level, Qos, Timer};
use tokio::runtime::Handle;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};

use crate::Options;
use crate::proto::connection_adapter_client::ConnectionAdapterClient;
use crate::proto::{
    self, AuthenticateRequest, CloseSocketRequest, CodeResponse, PublishRequest, RawPublishRequest, ResultCode,
    SendBytesRequest, SubscribeRequest, TimerRequest, UnsubscribeRequest,
};

/// How long one operation may take: the gateway's own bound for what it waits for, the broker and the authentication, is below.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a connection to the gateway may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What `random` gives at most, in bytes, as in a component.
const RANDOM_MAX: u32 = 1024;

/// Where the gateway is called; cheap to clone.
#[derive(Clone)]
pub(crate) struct Gateway {
    client: ConnectionAdapterClient<Channel>,
    settings: Arc<BTreeMap<String, String>>,
}

impl Gateway {
    /// Prepares to call; nothing is connected yet, so gateway and server may start in any order.
    pub(crate) fn new(options: &Options) -> Result<Self, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(options.adapter.clone())?.connect_timeout(CONNECT_TIMEOUT);
        Ok(Self {
            client: ConnectionAdapterClient::new(endpoint.connect_lazy()),
            settings: Arc::new(options.settings.clone()),
        })
    }

    /// The operations of one connection, for one event. To be used on a thread for blocking code.
    pub(crate) fn of<'c>(&self, conn: &'c str, authenticated: &'c mut bool) -> Operations<'c> {
        Operations { gateway: self.clone(), conn, authenticated, runtime: Handle::current() }
    }
}

/// The adapter of one connection.
pub(crate) struct Operations<'c> {
    gateway: Gateway,
    conn: &'c str,
    /// Whether `authenticate` has succeeded: ExProto has one code for what needs it and for what a rule forbids.
    authenticated: &'c mut bool,
    runtime: Handle,
}

impl Operations<'_> {
    /// Waits for the gateway's answer.
    fn wait(
        &self,
        operation: &str,
        answer: impl Future<Output = Result<Response<CodeResponse>, Status>>,
    ) -> Result<(), ErrorCode> {
        // The timeout needs the runtime's clock from its first moment.
        let answer = self.runtime.block_on(async { tokio::time::timeout(OPERATION_TIMEOUT, answer).await });
        let (code, message) = match answer {
            Ok(Ok(answer)) => {
                let CodeResponse { code, message } = answer.into_inner();
                match ResultCode::try_from(code) {
                    Ok(ResultCode::Success) => return Ok(()),
                    Ok(ResultCode::ConnProcessNotAlive) => (ErrorCode::ConnGone, message),
                    Ok(ResultCode::RequiredParamsMissed | ResultCode::ParamsTypeError) => {
                        (ErrorCode::BadParams, message)
                    }
                    Ok(ResultCode::PermissionDeny) => (ErrorCode::PermissionDenied, message),
                    Ok(ResultCode::Unknown) | Err(_) => (ErrorCode::Unknown, message),
                }
            }
            Ok(Err(status)) if status.code() == Code::DeadlineExceeded => (ErrorCode::Timeout, status.to_string()),
            Ok(Err(status)) => (ErrorCode::Unknown, status.to_string()),
            Err(_) => (ErrorCode::Timeout, format!("no answer within {OPERATION_TIMEOUT:?}")),
        };
        tracing::debug!(conn = self.conn, "{operation}: {message}");
        Err(code)
    }

    /// The same for what needs an authentication first.
    fn wait_authenticated(
        &self,
        operation: &str,
        answer: impl Future<Output = Result<Response<CodeResponse>, Status>>,
    ) -> Result<(), ErrorCode> {
        match self.wait(operation, answer) {
            Err(ErrorCode::PermissionDenied) if !*self.authenticated => Err(ErrorCode::NotAuthenticated),
            answer => answer,
        }
    }

    fn conn(&self) -> String {
        self.conn.to_owned()
    }
}

impl Adapter for Operations<'_> {
    fn send(&mut self, bytes: &[u8]) -> Result<(), ErrorCode> {
        let request = SendBytesRequest { conn: self.conn(), bytes: bytes.to_vec() };
        self.wait("send", self.gateway.client.clone().send(request))
    }

    fn close(&mut self) -> Result<(), ErrorCode> {
        let request = CloseSocketRequest { conn: self.conn() };
        self.wait("close", self.gateway.client.clone().close(request))
    }

    fn authenticate(&mut self, client: ClientInfo<'_>, password: Option<&str>) -> Result<(), ErrorCode> {
        let request = AuthenticateRequest {
            conn: self.conn(),
            clientinfo: Some(proto::ClientInfo {
                proto_name: client.proto_name.to_owned(),
                proto_ver: client.proto_ver.to_owned(),
                clientid: client.client_id.to_owned(),
                username: client.username.unwrap_or_default().to_owned(),
                mountpoint: String::new(),
            }),
            password: password.unwrap_or_default().to_owned(),
        };
        self.wait("authenticate", self.gateway.client.clone().authenticate(request))?;
        *self.authenticated = true;
        Ok(())
    }

    fn start_timer(&mut self, timer: Timer, interval_ms: u32) -> Result<(), ErrorCode> {
        let Timer::Keepalive = timer;
        let request = TimerRequest {
            conn: self.conn(),
            r#type: proto::TimerType::Keepalive.into(),
            interval: interval_ms.div_ceil(1000),
        };
        self.wait("start_timer", self.gateway.client.clone().start_timer(request))
    }

    fn stop_timer(&mut self, _: Timer) -> Result<(), ErrorCode> {
        tracing::warn!(conn = self.conn, "stop_timer: ExProto has no such operation");
        Err(ErrorCode::Unknown)
    }

    fn publish(&mut self, topic: &str, qos: Qos, payload: &[u8]) -> Result<(), ErrorCode> {
        let (topic, qos) = (topic.to_owned(), qos.number().into());
        let request = PublishRequest { conn: self.conn(), topic, qos, payload: payload.to_vec() };
        self.wait_authenticated("publish", self.gateway.client.clone().publish(request))
    }

    fn subscribe(&mut self, filter: &str, qos: Qos) -> Result<(), ErrorCode> {
        let request = SubscribeRequest { conn: self.conn(), topic: filter.to_owned(), qos: qos.number().into() };
        self.wait_authenticated("subscribe", self.gateway.client.clone().subscribe(request))
    }

    fn unsubscribe(&mut self, filter: &str) -> Result<(), ErrorCode> {
        let request = UnsubscribeRequest { conn: self.conn(), topic: filter.to_owned() };
        self.wait_authenticated("unsubscribe", self.gateway.client.clone().unsubscribe(request))
    }

    fn raw_publish(&mut self, topic: &str, qos: Qos, payload: &[u8]) -> Result<(), ErrorCode> {
        let (topic, qos) = (topic.to_owned(), qos.number().into());
        let request = RawPublishRequest { topic, qos, payload: payload.to_vec() };
        self.wait("raw_publish", self.gateway.client.clone().raw_publish(request))
    }

    fn setting(&mut self, name: &str) -> Option<String> {
        self.gateway.settings.get(name).cloned()
    }

    fn now_ms(&mut self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    #[allow(
        clippy::panic,
        reason = "without it a handler would draw secrets from nothing; it ends the event as a trap does"
    )]
    fn random(&mut self, len: u32) -> Vec<u8> {
        let mut bytes = vec![0; len.min(RANDOM_MAX) as usize];
        match getrandom::fill(&mut bytes) {
            Ok(()) => bytes,
            Err(error) => panic!("the system has no random bytes: {error}"),
        }
    }

    fn log(&mut self, level: Level, text: &str) {
        let conn = self.conn;
        match level {
            Level::Trace => tracing::trace!(conn, "{text}"),
            Level::Debug => tracing::debug!(conn, "{text}"),
            Level::Info => tracing::info!(conn, "{text}"),
            Level::Warn => tracing::warn!(conn, "{text}"),
            Level::Error => tracing::error!(conn, "{text}"),
        }
    }
}
