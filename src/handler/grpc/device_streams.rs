//! Open streams of one device at a streaming server: one for each callback, from its first event to the end of the connection; the
//! stream of OnSocketCreated ends with its only event.
//!
//! The protocol has no acknowledgement for a message on a stream: an event is delivered when it was handed to the connection
//! within the server's flow-control window. The end of a stream is noticed by the next event of its callback, which
//! opens it anew.

use std::time::Duration;

use prost::Message;

use super::channel::{Failure, Stream, Written};
use super::server::{Callback, Manner, Server};

/// Time limit for the server to answer OnSocketCreated, the only event of its stream, which is ended behind it. The answer is the only
/// proof that the event was handled: streams are accepted independently of each other, and servers have handled OnReceivedBytes
/// before OnSocketCreated. A server that does not answer gets the bytes then.
const CREATED: Duration = Duration::from_secs(1);

/// The first stream of a server is watched for so long: a method that answers after one message does so by then.
const WATCH: Duration = Duration::from_millis(250);

/// Time limit for the server to read its streams to their end before OnSocketClosed.
const DRAIN: Duration = Duration::from_secs(1);

/// Streams opened for one event; each of them ended before the event was sent.
const ATTEMPTS: usize = 3;

#[derive(Debug, Default)]
pub(super) struct DeviceStreams {
    open: [Option<Box<Stream>>; Callback::COUNT],
}

/// What became of an event.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Delivered {
    Sent,
    /// The server answers each event; streams are not kept from now on.
    Answered,
}

impl DeviceStreams {
    /// Writes an event to its stream.
    ///
    /// # Errors
    ///
    /// Why the last stream failed, if the server ended it with an error since the last event; the event was not sent then.
    pub(super) async fn deliver<M: Message>(
        &mut self,
        server: &Server,
        device: usize,
        callback: Callback,
        message: &M,
    ) -> Result<Delivered, Failure> {
        let path = callback.path(Manner::StreamPerConnection);
        for _ in 0..ATTEMPTS {
            let mut stream = match self.open[callback as usize].take() {
                Some(stream) => stream,
                None => Box::new(server.stream(device, path).await?),
            };
            let written = stream.written();
            match stream.write(message).await {
                Written::Sent => {
                    if callback == Callback::SocketCreated {
                        stream.end();
                        match tokio::time::timeout(CREATED, stream.answer()).await {
                            Ok(answered) => answered?,
                            Err(_) => {
                                tracing::debug!(
                                    "the server has not answered OnSocketCreated within {} ms",
                                    CREATED.as_millis()
                                );
                                self.open[callback as usize] = Some(stream);
                            }
                        }
                        return Ok(Delivered::Sent);
                    }
                    if server.is_unsettled() {
                        if let Ok(answered) = tokio::time::timeout(WATCH, stream.answer()).await {
                            answered?;
                            server.remember(Manner::StreamPerEvent);
                            return Ok(Delivered::Answered);
                        }
                        server.settle();
                    }
                    self.open[callback as usize] = Some(stream);
                    return Ok(Delivered::Sent);
                }
                Written::Ended(Err(failure)) => return Err(failure),
                // It has answered after its first message, so it may do so after each.
                Written::Ended(Ok(())) if written == 1 => {
                    tracing::debug!(path, "the server ended a stream after one message")
                }
                Written::Ended(Ok(())) => {}
            }
        }
        Err(Failure::Server(tonic::Status::internal("the server ends its streams before it reads from them")))
    }

    /// Ends the streams, waits until the server has read them, and sends the last event on a stream of its own.
    pub(super) async fn close<M: Message>(
        &mut self,
        server: &Server,
        device: usize,
        message: &M,
    ) -> Result<(), Failure> {
        let mut open: Vec<_> = self.open.iter_mut().filter_map(Option::take).collect();
        for stream in &mut open {
            stream.end();
        }
        let drained = futures::future::join_all(open.iter_mut().map(|stream| stream.answer()));
        if tokio::time::timeout(DRAIN, drained).await.is_err() {
            tracing::debug!("the server has not answered its streams within {} ms", DRAIN.as_millis());
        }
        drop(open);
        let mut last = server.stream(device, Callback::SocketClosed.path(Manner::StreamPerConnection)).await?;
        match last.write(message).await {
            Written::Sent => {
                last.end();
                last.answer().await
            }
            Written::Ended(result) => result,
        }
    }
}
