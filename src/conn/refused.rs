//! Errors of adapter operations.

use std::fmt;

/// Error of an adapter operation.
///
/// The text is one plain English sentence for the handler's author: expected and received values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The connection is unknown or has closed.
    #[error("no live connection has this conn")]
    Gone,
    /// A required argument is absent or empty.
    #[error("{what} is required, and was absent or empty")]
    Missing { what: &'static str },
    /// An argument is malformed or out of range.
    #[error("{what}: {why}")]
    Malformed {
        what: &'static str,
        /// Expected and received values.
        why: String,
    },
    /// Called before a successful `authenticate`.
    #[error("{operation} needs a successful Authenticate first")]
    NotAuthenticated { operation: &'static str },
    /// A second `authenticate` after a success.
    #[error("the connection is authenticated already, as client {client_id:?}")]
    AlreadyAuthenticated { client_id: String },
    /// Refused by authentication or by a rule.
    #[error("{0}")]
    Denied(Denied),
    /// A bounded queue is full, or an event has used up a limit.
    #[error("{what} reached the limit of {limit}")]
    Full {
        /// The queue or quantity, as a noun phrase.
        what: &'static str,
        /// Its maximum, with the unit.
        limit: String,
    },
    /// The broker is unreachable, or did not answer in time.
    #[error("the broker did not accept it: {0}")]
    Broker(String),
}

/// Denied operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denied {
    /// Anonymous clients are not allowed, and no user name was given.
    Anonymous,
    /// The user name is unknown, or the password is wrong. The text does not say which.
    Credentials,
    /// An external broker has refused, for this reason.
    Broker {
        /// The reason code, by name.
        reason: String,
    },
    /// The user is bound to other client ids.
    ClientId { client_id: String },
    /// A rule denies publishing to this topic.
    Publish {
        /// Topic name, with the mountpoint.
        topic: String,
    },
    /// A rule denies subscribing to this filter.
    Subscribe {
        /// Topic filter, with the mountpoint.
        filter: String,
    },
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anonymous => f.write_str("anonymous clients are not allowed and no username was given"),
            Self::Credentials => f.write_str("the username is unknown or the password is wrong"),
            Self::Broker { reason } => write!(f, "the broker refused: {reason}"),
            Self::ClientId { client_id } => write!(f, "the user may not have the client id {client_id:?}"),
            Self::Publish { topic } => write!(f, "the rules deny publishing to {topic:?}"),
            Self::Subscribe { filter } => write!(f, "the rules deny subscribing to {filter:?}"),
        }
    }
}
