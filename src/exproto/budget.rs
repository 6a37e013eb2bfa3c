//! Byte budget of the adapter port: one over all requests, with a share for each HTTP/2 connection.
//!
//! A request is charged with the length that its message announces, before its body is read, and until it is answered.
//! Without room it waits, and HTTP/2's flow control makes its sender wait.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use hyper::body::{Body as _, Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

use super::service::REQUEST_BYTES_MAX;

/// Bytes of all requests together.
const BYTES_MAX: usize = 128 << 20;

/// Bytes of the requests of one connection, so that one client does not use up the budget of the others.
const CONNECTION_BYTES_MAX: usize = 32 << 20;

/// Requests up to this size are not charged: they make up nearly all, and pass while large ones wait.
const UNCHARGED_BYTES_MAX: usize = 4 << 10;

/// Time limit of the arrival of a request, from the moment it has room.
const ARRIVAL_MAX: Duration = Duration::from_secs(10);

/// Bytes in front of a gRPC message: a flag and the length.
const PREFIX_BYTES: usize = 5;

/// The budget of all requests.
#[derive(Clone, Debug)]
pub(super) struct RequestBudget(Arc<Semaphore>);

/// The budget of one connection's requests, within that of all.
#[derive(Clone, Debug)]
pub(super) struct ConnectionBudget {
    own: Arc<Semaphore>,
    all: Arc<Semaphore>,
}

/// Charged bytes of one request.
type Charge = [OwnedSemaphorePermit; 2];

impl RequestBudget {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(BYTES_MAX)))
    }

    pub(super) fn connection(&self) -> ConnectionBudget {
        ConnectionBudget { own: Arc::new(Semaphore::new(CONNECTION_BYTES_MAX)), all: Arc::clone(&self.0) }
    }
}

impl ConnectionBudget {
    /// Waits for room for a message of `bytes`; `None` if it is too small to be charged.
    async fn charge(self, bytes: usize) -> Option<Charge> {
        if bytes <= UNCHARGED_BYTES_MAX {
            return None;
        }
        // A longer message is refused when it is decoded. The bound fits into 32 bits; no semaphore is ever closed.
        let bytes = bytes.min(REQUEST_BYTES_MAX) as u32;
        let own = self.own.acquire_many_owned(bytes).await.ok()?;
        let all = self.all.acquire_many_owned(bytes).await.ok()?;
        Some([own, all])
    }
}

/// Charges the requests of a service.
#[derive(Clone, Copy, Debug)]
pub(super) struct Charged;

impl<S> Layer<S> for Charged {
    type Service = ChargedService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        ChargedService(inner)
    }
}

#[derive(Clone, Debug)]
pub(super) struct ChargedService<S>(S);

impl<S> Service<http::Request<Body>> for ChargedService<S>
where
    S: Service<http::Request<Body>> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let Some(budget) = request.extensions().get::<ConnectionBudget>().cloned() else {
            return self.0.call(request).boxed();
        };
        // The service that is ready, and not its clone.
        let fresh = self.0.clone();
        let mut inner = std::mem::replace(&mut self.0, fresh);
        async move {
            let (parts, mut body) = request.into_parts();
            let begin = tokio::time::timeout(ARRIVAL_MAX, begin(&mut body)).await;
            // An incomplete request is passed on as it is: the decoder has the right error for it.
            let begin = begin.unwrap_or_default();
            let charge = budget.charge(announced(&begin)).await;
            let deadline = Box::pin(tokio::time::sleep(ARRIVAL_MAX));
            let body = Body::new(TimedBody { begin: begin.into(), body, deadline });
            let response = inner.call(http::Request::from_parts(parts, body)).await;
            drop(charge);
            response
        }
        .boxed()
    }
}

/// The frames up to the one with the last byte of the message's length.
async fn begin(body: &mut Body) -> Vec<Frame<Bytes>> {
    let (mut frames, mut bytes) = (Vec::new(), 0);
    while bytes < PREFIX_BYTES {
        let Some(Ok(frame)) = poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await else {
            break;
        };
        // An empty frame costs its sender nothing, and is not kept.
        let len = frame.data_ref().map_or(0, Bytes::len);
        if len > 0 || frame.is_trailers() {
            frames.push(frame);
        }
        bytes += len;
    }
    frames
}

/// The length that a message announces, in bytes.
fn announced(begin: &[Frame<Bytes>]) -> usize {
    let prefix: Vec<u8> = begin.iter().filter_map(Frame::data_ref).flatten().copied().take(PREFIX_BYTES).collect();
    match prefix[..] {
        [_, a, b, c, d] => u32::from_be_bytes([a, b, c, d]) as usize,
        _ => 0,
    }
}

/// A body that must arrive before its deadline.
struct TimedBody {
    begin: std::collections::VecDeque<Frame<Bytes>>,
    body: Body,
    deadline: Pin<Box<tokio::time::Sleep>>,
}

impl hyper::body::Body for TimedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Some(frame) = self.begin.pop_front() {
            return Poll::Ready(Some(Ok(frame)));
        }
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            return Poll::Ready(frame);
        }
        ready!(self.deadline.as_mut().poll(context));
        let why = format!("the request did not arrive within {} s", ARRIVAL_MAX.as_secs());
        Poll::Ready(Some(Err(Status::deadline_exceeded(why))))
    }

    fn is_end_stream(&self) -> bool {
        self.begin.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use futures::future::join_all;
    use futures::poll;

    use super::*;

    /// However many connections send however many requests, the charged bytes stay within both bounds, and every
    /// request has its turn.
    #[tokio::test]
    async fn all_requests_share_one_budget() {
        const LARGE: usize = 15 << 20;
        let budget = RequestBudget::new();
        let connections: Vec<_> = (0..10).map(|_| budget.connection()).collect();
        let waits = connections.iter().flat_map(|connection| (0..6).map(|_| connection.clone().charge(LARGE)));
        let mut waits: Vec<_> = waits.map(Box::pin).collect();
        let mut held = Vec::new();
        while !waits.is_empty() {
            let mut still = Vec::new();
            for mut wait in waits {
                match poll!(&mut wait) {
                    Poll::Ready(charge) => held.push(charge.unwrap()),
                    Poll::Pending => still.push(wait),
                }
            }
            waits = still;
            assert!(held.len() * LARGE <= BYTES_MAX);
            assert!(!held.is_empty(), "no request has its turn");
            assert_eq!(budget.connection().charge(UNCHARGED_BYTES_MAX).await.map(drop), None);
            drop(held.remove(0));
        }
        drop(held);
        assert_eq!(budget.0.available_permits(), BYTES_MAX);
        let announced_too_much = join_all((0..2).map(|_| budget.connection().charge(usize::MAX))).await;
        assert_eq!(budget.0.available_permits(), BYTES_MAX - 2 * REQUEST_BYTES_MAX);
        drop(announced_too_much);
    }

    #[test]
    fn the_length_may_come_in_pieces() {
        let frames = |parts: &[&'static [u8]]| -> Vec<_> {
            parts.iter().map(|part| Frame::data(Bytes::from_static(part))).collect()
        };
        assert_eq!(announced(&frames(&[&[0, 0], &[0, 1], &[2, 9, 9]])), 258);
        assert_eq!(announced(&frames(&[&[0, 0, 0, 1]])), 0);
        assert_eq!(announced(&[]), 0);
    }
}
