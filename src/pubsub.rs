//! Publish and subscribe, as devices and handlers see it.
//!
//! A device that has authenticated opens a [`Session`] and publishes and subscribes through it; messages
//! for its subscriptions arrive in its connection's [`Mailbox`]. What is behind is one of a closed set of
//! brokers. Topics here are the broker's: the mountpoint has been put in front by the caller, who has also
//! asked [`Auth`](crate::auth::Auth); nothing below checks permissions of devices again.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::conn::registry::Mailbox;
use crate::conn::{ClientInfo, Denied, Password, PeerAddr, QoS, Refused};
use crate::mqtt::Reason;
use crate::mqtt_client::PublishError;

pub(crate) mod embedded;
pub(crate) mod external;

/// `Message.from` of what the gateway itself publishes (`RawPublish`).
pub(crate) const GATEWAY: &str = "exproto";

/// The broker behind the devices. Clones share it.
#[derive(Clone, Debug)]
pub enum PubSub {
    /// The broker inside of this process.
    Embedded(embedded::Broker),
    /// The user's own broker.
    External(external::Broker),
}

/// One device's client of the broker.
///
/// A clean session: its subscriptions live as long as it does, and nothing is kept for it when it is
/// gone. It ends when it is closed or dropped, and when another session opens with its client id.
#[derive(Debug)]
pub enum Session {
    /// A client of the embedded broker.
    Embedded(embedded::Session),
    /// A client of an external broker.
    External(external::Session),
}

/// Why the broker did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The topic name or filter is malformed.
    #[error(transparent)]
    Topic(#[from] crate::topic::Malformed),
    /// The payload is larger than the broker takes.
    #[error("the payload has {bytes} bytes, and {bytes_max} are allowed")]
    PayloadTooLarge {
        /// Its size.
        bytes: usize,
        /// The broker's limit.
        bytes_max: usize,
    },
    /// The client has as many subscriptions as it may have.
    #[error("the client has {subscriptions_max} subscriptions, and no more are allowed")]
    TooManySubscriptions {
        /// The broker's limit.
        subscriptions_max: usize,
    },
    /// With the filter, a topic name could take more steps to match than the broker allows.
    #[error(
        "the filter, with those of all clients, makes matching too costly: {} steps for one topic name are allowed; use \
         fewer \"+\" where other filters have a name",
        embedded::MATCH_STEPS_MAX
    )]
    FilterTooCostly,
    /// The session has ended, because another one with its client id has begun.
    #[error("another connection has taken over the client id")]
    Replaced,
    /// The broker has been stopped.
    #[error("the broker has been stopped")]
    Stopped,
    /// The external broker has refused.
    #[error("the broker refused: {0}")]
    Refused(Reason),
    /// The external broker cannot be reached.
    #[error("{0}")]
    Unreachable(String),
    /// The external broker did not acknowledge in time.
    #[error("the broker did not acknowledge the message in time")]
    Unconfirmed,
    /// As many messages wait for the external broker as may.
    #[error("the outage buffer is full")]
    OutageBufferFull,
}

impl From<PublishError> for Error {
    fn from(error: PublishError) -> Self {
        match error {
            PublishError::Refused(reason) => Self::Refused(reason),
            PublishError::Full => Self::OutageBufferFull,
            PublishError::TooLarge { bytes, bytes_max } => Self::PayloadTooLarge { bytes, bytes_max },
            PublishError::RetainNotAvailable | PublishError::Lost => Self::Unreachable(error.to_string()),
        }
    }
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        match error {
            Error::Topic(malformed) => Self::Malformed { what: malformed.what.name(), why: malformed.why() },
            Error::PayloadTooLarge { .. } => Self::Malformed { what: "payload", why: error.to_string() },
            Error::TooManySubscriptions { subscriptions_max } => {
                Self::Full { what: "the client's list of subscriptions", limit: format!("{subscriptions_max} entries") }
            }
            Error::FilterTooCostly => Self::Full {
                what: "the index of filters",
                limit: format!(
                    "{} steps to match one topic name; use fewer \"+\" where other filters have a name",
                    embedded::MATCH_STEPS_MAX
                ),
            },
            Error::Replaced => Self::Gone,
            Error::Refused(reason) if is_denial(reason) => Self::Denied(Denied::Broker { reason: reason.to_string() }),
            Error::OutageBufferFull => Self::Full { what: "the outage buffer", limit: "outage_buffer".to_owned() },
            Error::Stopped | Error::Refused(_) | Error::Unreachable(_) | Error::Unconfirmed => {
                Self::Broker(error.to_string())
            }
        }
    }
}

/// Whether a broker's reason code is about who the client is and what it may do.
fn is_denial(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::CLIENT_ID_INVALID
            | Reason::BAD_USER_NAME_OR_PASSWORD
            | Reason::NOT_AUTHORIZED
            | Reason::BANNED
            | Reason::BAD_AUTHENTICATION_METHOD
    )
}

impl PubSub {
    /// Whether the broker decides who may authenticate, instead of `[auth]`.
    pub fn authenticates(&self) -> bool {
        match self {
            Self::Embedded(_) => false,
            Self::External(_) => true,
        }
    }

    /// Stops what runs for it. Sessions of devices are refused from then on.
    pub async fn shutdown(&self) {
        match self {
            Self::Embedded(broker) => broker.shutdown().await,
            // Its connections are those of the devices, and end with them.
            Self::External(_) => {}
        }
    }

    /// Opens a session for a device that has authenticated.
    ///
    /// A session with the same client id ends: its connection is asked to close with
    /// [`CloseReason::Replaced`](crate::conn::CloseReason::Replaced). MQTT clients of the embedded broker
    /// have client ids of their own and are left alone.
    ///
    /// `peer` is the device's address, for logs and for brokers that get it. Messages go to
    /// `mailbox`; those that find it full are shed and counted there.
    ///
    /// `password` is the device's, for a broker that decides by it.
    ///
    /// # Errors
    ///
    /// [`Error::Stopped`], [`Error::Refused`], [`Error::Unreachable`].
    pub async fn open(
        &self,
        client: Arc<ClientInfo>,
        password: Option<&Password>,
        peer: PeerAddr,
        mailbox: Mailbox,
    ) -> Result<Session, Error> {
        match self {
            Self::External(broker) => broker.open(&client, password, peer, mailbox).await.map(Session::External),
            Self::Embedded(broker) => broker.open(&client, peer, mailbox).map(Session::Embedded),
        }
    }

    /// Publishes a message of which no device is the origin; [`GATEWAY`] is its `from`.
    ///
    /// # Errors
    ///
    /// [`Error::Topic`], [`Error::PayloadTooLarge`], [`Error::Stopped`].
    pub async fn publish_as_gateway(&self, topic: &str, qos: QoS, payload: Bytes) -> Result<(), Error> {
        match self {
            Self::Embedded(broker) => broker.publish_as_gateway(topic, qos, payload),
            Self::External(broker) => broker.publish_as_gateway(topic, qos, payload).await,
        }
    }
}

impl Session {
    /// Publishes a message to its subscribers, the device itself included.
    ///
    /// When this returns, the broker has taken it in. Messages of one session reach each subscriber in
    /// the order in which they were published.
    ///
    /// With `confirm` it returns only when the broker has acknowledged a message of QoS 1 or 2, or when that much time has
    /// passed; without, a message may be waiting for an external broker that is away.
    ///
    /// # Errors
    ///
    /// [`Error::Topic`], [`Error::PayloadTooLarge`], [`Error::Replaced`], [`Error::Stopped`].
    pub async fn publish(&self, topic: &str, qos: QoS, payload: Bytes, confirm: Option<Duration>) -> Result<(), Error> {
        match self {
            Self::Embedded(session) => {
                // What is published is in the queues when this returns.
                session.publish(topic, qos, payload)?;
                match confirm {
                    Some(timeout) => {
                        tokio::time::timeout(timeout, session.confirmed()).await.map_err(|_| Error::Unconfirmed)
                    }
                    None => Ok(()),
                }
            }
            Self::External(session) => session.publish(topic, qos, payload, confirm).await,
        }
    }

    /// Subscribes to a filter, or to a share of one (`$share/group/filter`).
    ///
    /// The first time, the retained messages that it matches arrive, except for a share. A message that
    /// several filters of the device match arrives once, and once more for each share that picks the
    /// device. `qos` is what the device asked for; messages arrive with their publisher's all the same,
    /// as ExProto has it, so the embedded broker makes no use of it.
    ///
    /// # Errors
    ///
    /// [`Error::Topic`], [`Error::TooManySubscriptions`], [`Error::FilterTooCostly`], [`Error::Replaced`],
    /// [`Error::Stopped`].
    pub async fn subscribe(&self, filter: &str, qos: QoS) -> Result<(), Error> {
        match self {
            Self::Embedded(session) => session.subscribe(filter, qos).await,
            Self::External(session) => session.subscribe(filter, qos).await,
        }
    }

    /// Ends a subscription; does nothing when there is none. A message that is being passed on at this
    /// very moment may still arrive.
    ///
    /// # Errors
    ///
    /// [`Error::Topic`], [`Error::Replaced`].
    pub async fn unsubscribe(&self, filter: &str) -> Result<(), Error> {
        match self {
            Self::Embedded(session) => session.unsubscribe(filter),
            Self::External(session) => session.unsubscribe(filter).await,
        }
    }

    /// Ends the session and all of its subscriptions. A message that is being passed on at this very
    /// moment may still arrive.
    pub async fn close(self) {
        match self {
            Self::Embedded(session) => drop(session),
            Self::External(session) => drop(session),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A handler's author reads each thing once.
    #[test]
    fn a_refusal_says_what_came_and_what_was_expected() {
        let error = Error::from(crate::topic::parse_filter("a/#/b").unwrap_err());
        assert_eq!(error.to_string(), r##"topic filter "a/#/b": "#" is allowed only at the end"##);
        assert_eq!(Refused::from(error).to_string(), r##"topic filter: "a/#/b": "#" is allowed only at the end"##);
        let error = Error::PayloadTooLarge { bytes: 11, bytes_max: 10 };
        assert_eq!(Refused::from(error).to_string(), "payload: the payload has 11 bytes, and 10 are allowed");
        let error = Error::TooManySubscriptions { subscriptions_max: 3 };
        assert_eq!(
            Refused::from(error).to_string(),
            "the client's list of subscriptions reached the limit of 3 entries"
        );
        assert_eq!(Refused::from(Error::Replaced), Refused::Gone);
        assert_eq!(
            Refused::from(Error::Stopped).to_string(),
            "the broker did not accept it: the broker has been stopped"
        );
    }
}
