//! ExProto's two services, which have the same callbacks. A stream of requests is as many events, one after the other.

use std::sync::Arc;

use polygate_guest::{Handler, Timer};
use tonic::{Request, Response, Status, Streaming};

use crate::connections::Connections;
use crate::proto::connection_handler_server::{ConnectionHandler, ConnectionHandlerServer};
use crate::proto::connection_unary_handler_server::{ConnectionUnaryHandler, ConnectionUnaryHandlerServer};
use crate::proto::{
    EmptySuccess, ReceivedBytesRequest, ReceivedMessagesRequest, SocketClosedRequest, SocketCreatedRequest,
    TimerTimeoutRequest, TimerType,
};
use crate::words;

/// The longest request in bytes: one read of the gateway, or one batch of messages, with room to spare.
const REQUEST_MAX: usize = 16 << 20;

/// What is served.
pub(crate) struct Service<H>(Arc<Connections<H>>);

impl<H> Clone for Service<H> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<H: Handler + Send + 'static> Service<H> {
    pub(crate) fn new(connections: Connections<H>) -> Self {
        Self(Arc::new(connections))
    }

    pub(crate) fn unary(&self) -> ConnectionUnaryHandlerServer<Self> {
        ConnectionUnaryHandlerServer::new(self.clone()).max_decoding_message_size(REQUEST_MAX)
    }

    pub(crate) fn streaming(&self) -> ConnectionHandlerServer<Self> {
        ConnectionHandlerServer::new(self.clone()).max_decoding_message_size(REQUEST_MAX)
    }

    async fn created(&self, request: SocketCreatedRequest) -> Result<(), Status> {
        self.0.created(request.conn, words::conn_info(request.conninfo)?).await
    }

    async fn closed(&self, request: SocketClosedRequest) -> Result<(), Status> {
        self.0.closed(request.conn, words::close_reason(request.reason)).await
    }

    async fn received_bytes(&self, request: ReceivedBytesRequest) -> Result<(), Status> {
        let ReceivedBytesRequest { conn, bytes } = request;
        self.0.happens(conn, move |connection, adapter| connection.received_bytes(adapter, &bytes)).await
    }

    async fn timer_timeout(&self, request: TimerTimeoutRequest) -> Result<(), Status> {
        let TimerTimeoutRequest { conn, r#type } = request;
        let timer = match TimerType::try_from(r#type) {
            Ok(TimerType::Keepalive) => Timer::Keepalive,
            Err(_) => return Err(Status::invalid_argument(format!("expected a timer of type 0, found {type}"))),
        };
        self.0.happens(conn, move |connection, adapter| connection.timer_timeout(adapter, timer)).await
    }

    async fn received_messages(&self, request: ReceivedMessagesRequest) -> Result<(), Status> {
        let ReceivedMessagesRequest { conn, messages } = request;
        let messages = messages.into_iter().map(words::message).collect::<Result<Vec<_>, _>>()?;
        self.0.happens(conn, move |connection, adapter| connection.received_messages(adapter, &messages)).await
    }
}

macro_rules! callbacks {
    ($($callback:ident: $request:ty => $event:ident),*) => {
        #[tonic::async_trait]
        impl<H: Handler + Send + 'static> ConnectionUnaryHandler for Service<H> {
            $(async fn $callback(&self, request: Request<$request>) -> Result<Response<EmptySuccess>, Status> {
                self.$event(request.into_inner()).await?;
                Ok(EmptySuccess {}.into())
            })*
        }

        #[tonic::async_trait]
        impl<H: Handler + Send + 'static> ConnectionHandler for Service<H> {
            $(async fn $callback(
                &self,
                request: Request<Streaming<$request>>,
            ) -> Result<Response<EmptySuccess>, Status> {
                let mut requests = request.into_inner();
                while let Some(request) = requests.message().await? {
                    self.$event(request).await?;
                }
                Ok(EmptySuccess {}.into())
            })*
        }
    };
}

callbacks! {
    on_socket_created: SocketCreatedRequest => created,
    on_socket_closed: SocketClosedRequest => closed,
    on_received_bytes: ReceivedBytesRequest => received_bytes,
    on_timer_timeout: TimerTimeoutRequest => timer_timeout,
    on_received_messages: ReceivedMessagesRequest => received_messages
}
