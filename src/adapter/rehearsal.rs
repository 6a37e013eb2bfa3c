use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

use super::{check_client, check_interval, malformed};
use crate::conn::{ClientInfo, Command, ConnId, QoS, Refused, Timer};
use crate::pubsub::topic::{check_name, parse_filter};

/// What a rehearsal keeps between two looks at it, in bytes; more is counted and left out.
const KEPT_BYTES_MAX: usize = 4 << 20;

/// Bytes for the peer that may wait, by the rules: a listener's `outbound_max` when nothing is configured.
const OUTBOUND_BYTES_MAX: usize = 1 << 20;

/// What one entry counts beside its bytes.
const ENTRY_BYTES: usize = 64;

/// One thing that a handler asked for, as a value that can be compared. A password is never part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Bytes for the peer.
    Send(Bytes),
    /// The end of the connection.
    Close,
    /// Who the peer says it is.
    Authenticate(ClientInfo),
    /// A timer was started.
    StartTimer(Timer, Duration),
    /// A timer was stopped.
    StopTimer(Timer),
    /// A message as this client.
    Publish {
        /// Topic name, without the mountpoint.
        topic: String,
        /// Quality of service.
        qos: QoS,
        /// Payload.
        payload: Bytes,
    },
    /// A subscription.
    Subscribe {
        /// Topic filter, without the mountpoint.
        filter: String,
        /// Quality of service.
        qos: QoS,
    },
    /// The end of a subscription.
    Unsubscribe {
        /// Topic filter, without the mountpoint.
        filter: String,
    },
    /// A message on no client's behalf.
    RawPublish {
        /// Topic name.
        topic: String,
        /// Quality of service.
        qos: QoS,
        /// Payload.
        payload: Bytes,
    },
}

impl Operation {
    /// The operation's name in logs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Send(_) => "send",
            Self::Close => "close",
            Self::Authenticate(_) => "authenticate",
            Self::StartTimer(..) => "start_timer",
            Self::StopTimer(_) => "stop_timer",
            Self::Publish { .. } => "publish",
            Self::Subscribe { .. } => "subscribe",
            Self::Unsubscribe { .. } => "unsubscribe",
            Self::RawPublish { .. } => "raw_publish",
        }
    }

    pub(super) fn weight(&self) -> usize {
        ENTRY_BYTES
            + match self {
                Self::Send(bytes) => bytes.len(),
                Self::Authenticate(client) => client.weight(),
                Self::Publish { topic, payload, .. } | Self::RawPublish { topic, payload, .. } => {
                    topic.len() + payload.len()
                }
                Self::Subscribe { filter, .. } | Self::Unsubscribe { filter } => filter.len(),
                Self::Close | Self::StartTimer(..) | Self::StopTimer(_) => 0,
            }
    }
}

impl From<&Command> for Operation {
    fn from(command: &Command) -> Self {
        match command {
            Command::Send(bytes) => Self::Send(bytes.clone()),
            Command::Close => Self::Close,
            Command::Authenticate { client, password: _ } => Self::Authenticate(client.clone()),
            Command::StartTimer { timer, interval } => Self::StartTimer(*timer, *interval),
            Command::StopTimer(timer) => Self::StopTimer(*timer),
            Command::Publish { topic, qos, payload } => {
                Self::Publish { topic: topic.clone(), qos: *qos, payload: payload.clone() }
            }
            Command::Subscribe { filter, qos } => Self::Subscribe { filter: filter.clone(), qos: *qos },
            Command::Unsubscribe { filter } => Self::Unsubscribe { filter: filter.clone() },
        }
    }
}

/// An adapter without a connection: everything that is asked is written down, answered, and has no effect.
#[derive(Debug)]
pub struct Rehearsal {
    conn: ConnId,
    rules: Option<Rules>,
    answers: VecDeque<Result<(), Refused>>,
    asked: Vec<Operation>,
    kept_bytes: usize,
    left_out: u64,
    ended: bool,
}

impl Rehearsal {
    /// For a handler that is told it serves `conn`.
    pub fn new(conn: ConnId) -> Self {
        Self {
            conn,
            rules: None,
            answers: VecDeque::new(),
            asked: Vec::new(),
            kept_bytes: 0,
            left_out: 0,
            ended: false,
        }
    }

    /// For a handler that is to be answered as a connection without mountpoint would, where everybody may do everything:
    /// what a connection refuses, such as a publication before `authenticate` or a malformed topic, is refused in the
    /// same words, and not written down.
    pub fn by_the_rules(conn: ConnId) -> Self {
        Self { rules: Some(Rules::default()), ..Self::new(conn) }
    }

    /// Whose connection it plays.
    pub fn conn(&self) -> ConnId {
        self.conn
    }

    /// What the next questions are answered with, in order; without any left, everything is granted.
    pub fn answer_with(&mut self, answers: impl IntoIterator<Item = Result<(), Refused>>) {
        self.answers = answers.into_iter().collect();
    }

    /// Answers as a connection would, without doing anything.
    ///
    /// # Errors
    ///
    /// [`Refused::Gone`] after a Close, else what [`Rehearsal::answer_with`] was given.
    pub fn apply(&mut self, command: Command) -> Result<(), Refused> {
        self.ask(Operation::from(&command))
    }

    /// As [`Rehearsal::apply`], for the one operation that is no command of a connection.
    ///
    /// # Errors
    ///
    /// What [`Rehearsal::answer_with`] was given.
    pub fn raw_publish(&mut self, topic: String, qos: QoS, payload: Bytes) -> Result<(), Refused> {
        self.ask(Operation::RawPublish { topic, qos, payload })
    }

    fn ask(&mut self, operation: Operation) -> Result<(), Refused> {
        if self.ended && !matches!(operation, Operation::RawPublish { .. }) {
            return Err(Refused::Gone);
        }
        if let Some(rules) = &mut self.rules {
            rules.check(&operation)?;
        }
        self.ended |= operation == Operation::Close;
        let bytes = self.kept_bytes + operation.weight();
        if bytes > KEPT_BYTES_MAX {
            self.left_out += 1;
        } else {
            self.kept_bytes = bytes;
            self.asked.push(operation);
        }
        self.answers.pop_front().unwrap_or(Ok(()))
    }

    /// The connection has ended: from now on all but raw publications is refused as [`Refused::Gone`].
    pub fn end(&mut self) {
        self.ended = true;
    }

    /// What was asked since this was called last, in order, and how much more did not fit (4 MiB do).
    pub fn take(&mut self) -> (Vec<Operation>, u64) {
        self.kept_bytes = 0;
        if let Some(rules) = &mut self.rules {
            rules.outbound_bytes = 0;
        }
        (std::mem::take(&mut self.asked), std::mem::take(&mut self.left_out))
    }
}

/// What a connection goes by when it refuses.
#[derive(Debug, Default)]
struct Rules {
    /// As whom the handler has authenticated the peer.
    client_id: Option<String>,
    /// Bytes for the peer since they were taken last.
    outbound_bytes: usize,
}

impl Rules {
    fn check(&mut self, operation: &Operation) -> Result<(), Refused> {
        match operation {
            Operation::Send(bytes) => {
                if self.outbound_bytes >= OUTBOUND_BYTES_MAX {
                    let limit = format!("{OUTBOUND_BYTES_MAX} bytes");
                    return Err(Refused::Full { what: "the queue of bytes to the peer", limit });
                }
                self.outbound_bytes += bytes.len();
            }
            Operation::Authenticate(client) => {
                if let Some(client_id) = &self.client_id {
                    return Err(Refused::AlreadyAuthenticated { client_id: client_id.clone() });
                }
                check_client(client)?;
                self.client_id = Some(client.client_id.clone());
            }
            Operation::StartTimer(_, interval) => check_interval(*interval)?,
            Operation::Publish { topic, .. } => {
                self.check_authenticated("Publish")?;
                check_name(topic).map_err(malformed)?;
            }
            Operation::Subscribe { filter, .. } => {
                self.check_authenticated("Subscribe")?;
                parse_filter(filter).map_err(malformed)?;
            }
            Operation::Unsubscribe { filter } => {
                self.check_authenticated("Unsubscribe")?;
                parse_filter(filter).map_err(malformed)?;
            }
            Operation::RawPublish { topic, .. } => check_name(topic).map_err(malformed)?,
            Operation::Close | Operation::StopTimer(_) => {}
        }
        Ok(())
    }

    fn check_authenticated(&self, operation: &'static str) -> Result<(), Refused> {
        if self.client_id.is_some() { Ok(()) } else { Err(Refused::NotAuthenticated { operation }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rehearsal() -> Rehearsal {
        Rehearsal::new(ConnId::from_u64(1))
    }

    /// What is asked is kept in order, and granted unless something else was agreed on.
    #[test]
    fn what_is_asked_is_written_down() {
        let mut rehearsal = rehearsal();
        rehearsal.answer_with([Ok(()), Err(Refused::Gone)]);
        assert_eq!(rehearsal.apply(Command::Send("a".into())), Ok(()));
        assert_eq!(rehearsal.apply(Command::Send("b".into())), Err(Refused::Gone));
        assert_eq!(rehearsal.apply(Command::Close), Ok(()));
        assert_eq!(rehearsal.apply(Command::Send("c".into())), Err(Refused::Gone), "after the end");
        let asked = vec![Operation::Send("a".into()), Operation::Send("b".into()), Operation::Close];
        assert_eq!(rehearsal.take(), (asked, 0));
        assert_eq!(rehearsal.take(), (Vec::new(), 0));
    }

    /// A guest that asks for very much is answered all the same, and what is not kept is counted.
    #[test]
    fn what_is_kept_is_bounded() {
        let mut rehearsal = rehearsal();
        for _ in 0..5 {
            assert_eq!(rehearsal.apply(Command::Send(vec![0; 1 << 20].into())), Ok(()));
        }
        let (kept, left_out) = rehearsal.take();
        assert_eq!((kept.len(), left_out), (3, 2));
    }

    /// By the rules, what a connection refuses is refused and not written down; the rest is granted.
    #[test]
    fn by_the_rules() {
        let mut rehearsal = Rehearsal::by_the_rules(ConnId::from_u64(1));
        let publish = |topic: &str| Command::Publish {
            topic: topic.to_owned(),
            qos: QoS::AtMostOnce,
            payload: Bytes::from_static(b"1"),
        };
        let authenticate = |client_id: &str| Command::Authenticate {
            client: ClientInfo { client_id: client_id.to_owned(), ..ClientInfo::default() },
            password: None,
        };
        let subscribe = |filter: &str| Command::Subscribe { filter: filter.to_owned(), qos: QoS::AtMostOnce };
        let start = |interval| Command::StartTimer { timer: Timer::Keepalive, interval };

        assert!(matches!(rehearsal.apply(publish("t")), Err(Refused::NotAuthenticated { operation: "Publish" })));
        assert!(matches!(rehearsal.apply(subscribe("t")), Err(Refused::NotAuthenticated { operation: "Subscribe" })));
        assert!(matches!(rehearsal.apply(authenticate("")), Err(Refused::Missing { .. })));
        assert!(matches!(rehearsal.apply(start(Duration::ZERO)), Err(Refused::Malformed { .. })));
        assert_eq!(rehearsal.take(), (Vec::new(), 0));

        assert_eq!(rehearsal.apply(authenticate("c")), Ok(()));
        assert!(matches!(rehearsal.apply(authenticate("c")), Err(Refused::AlreadyAuthenticated { .. })));
        assert!(matches!(rehearsal.apply(publish("a/#")), Err(Refused::Malformed { .. })));
        assert!(matches!(rehearsal.apply(subscribe("a/#/b")), Err(Refused::Malformed { .. })));
        assert_eq!(rehearsal.apply(publish("a/b")), Ok(()));
        assert_eq!(rehearsal.take().0.len(), 2);

        let half = Bytes::from(vec![0; OUTBOUND_BYTES_MAX / 2]);
        for _ in 0..2 {
            assert_eq!(rehearsal.apply(Command::Send(half.clone())), Ok(()));
        }
        assert!(matches!(rehearsal.apply(Command::Send(half.clone())), Err(Refused::Full { .. })));
        assert_eq!(rehearsal.take().0.len(), 2);
        assert_eq!(rehearsal.apply(Command::Send(half)), Ok(()), "written meanwhile");

        rehearsal.end();
        assert_eq!(rehearsal.apply(publish("a/b")), Err(Refused::Gone));
        assert_eq!(rehearsal.raw_publish("a".to_owned(), QoS::AtMostOnce, Bytes::new()), Ok(()));
    }
}
