use std::fmt;

/// Why an adapter operation was not done.
///
/// The text is one plain English sentence for the handler's author: what was expected and what came.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The connection is not known or has ended.
    #[error("no live connection has this conn")]
    Gone,
    /// A required argument is absent or empty.
    #[error("{what} is required, and was absent or empty")]
    Missing {
        /// The argument's name.
        what: &'static str,
    },
    /// An argument is not of its form, or outside its range.
    #[error("{what}: {why}")]
    Malformed {
        /// The argument's name.
        what: &'static str,
        /// What was expected and what came.
        why: String,
    },
    /// Asked before a successful `authenticate`.
    #[error("{operation} needs a successful Authenticate first")]
    NotAuthenticated {
        /// The operation.
        operation: &'static str,
    },
    /// A second `authenticate` after a success.
    #[error("the connection is authenticated already, as client {client_id:?}")]
    AlreadyAuthenticated {
        /// As whom.
        client_id: String,
    },
    /// Refused by the authentication or by a rule.
    #[error("{0}")]
    Denied(Denied),
    /// A bounded queue is full.
    #[error("{what} is full ({limit})")]
    Full {
        /// Which queue.
        what: &'static str,
        /// Its bound, with the unit.
        limit: String,
    },
    /// The broker could not be reached, or did not answer in time.
    #[error("the broker did not take it: {0}")]
    Broker(String),
}

/// What was denied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denied {
    /// Anonymous clients are not allowed, and no user name was given.
    Anonymous,
    /// The user name is not known, or the password is not the user's. Which of the two is not told.
    Credentials,
    /// An external broker has refused, for this reason.
    Broker {
        /// The reason code, by name.
        reason: String,
    },
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
            Self::Publish { topic } => write!(f, "a rule denies publishing to {topic:?}"),
            Self::Subscribe { filter } => write!(f, "a rule denies subscribing to {filter:?}"),
        }
    }
}
