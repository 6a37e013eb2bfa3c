//! Dry run: an adapter without a connection, for shadows, local replays and benchmarks of guests.

use std::collections::VecDeque;

use super::{check_client, check_interval, malformed};
use crate::conn::{Command, ConnId, Refused};
use crate::topic::{check_name, parse_filter};

/// What a rehearsal keeps between two looks at it, in bytes; more is counted and left out.
const KEPT_BYTES_MAX: usize = 4 << 20;

/// Bytes for the peer that may wait, by the rules: a listener's `outbound_max` when nothing is configured.
const OUTBOUND_BYTES_MAX: usize = 1 << 20;

/// What one entry counts beside its bytes.
pub(super) const LOGGED_BYTES: usize = 64;

/// An adapter without a connection: everything that is asked is written down, answered, and has no effect.
#[derive(Debug)]
pub struct DryRunAdapter {
    conn: ConnId,
    rules: Option<Rules>,
    answers: VecDeque<Result<(), Refused>>,
    asked: Vec<Command>,
    kept_bytes: usize,
    left_out: u64,
    ended: bool,
}

impl DryRunAdapter {
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
    pub fn strict(conn: ConnId) -> Self {
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
    /// [`Refused::Gone`] after a Close, else what [`DryRunAdapter::answer_with`] was given.
    pub fn apply(&mut self, command: Command) -> Result<(), Refused> {
        if self.ended && !matches!(command, Command::RawPublish { .. }) {
            return Err(Refused::Gone);
        }
        if let Some(rules) = &mut self.rules {
            rules.check(&command)?;
        }
        self.ended |= command == Command::Close;
        let bytes = self.kept_bytes + LOGGED_BYTES + command.weight();
        if bytes > KEPT_BYTES_MAX {
            self.left_out += 1;
        } else {
            self.kept_bytes = bytes;
            self.asked.push(command.without_password());
        }
        self.answers.pop_front().unwrap_or(Ok(()))
    }

    /// The connection has ended: from now on all but raw publications is refused as [`Refused::Gone`].
    pub fn end(&mut self) {
        self.ended = true;
    }

    /// What was asked since this was called last, in order, and how much more did not fit (4 MiB do).
    pub fn take(&mut self) -> (Vec<Command>, u64) {
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
    fn check(&mut self, command: &Command) -> Result<(), Refused> {
        match command {
            Command::Send(bytes) => {
                if self.outbound_bytes >= OUTBOUND_BYTES_MAX {
                    let limit = format!("{OUTBOUND_BYTES_MAX} bytes");
                    return Err(Refused::Full { what: "the queue of bytes to the peer", limit });
                }
                self.outbound_bytes += bytes.len();
            }
            Command::Authenticate { client, .. } => {
                if let Some(client_id) = &self.client_id {
                    return Err(Refused::AlreadyAuthenticated { client_id: client_id.clone() });
                }
                check_client(client)?;
                self.client_id = Some(client.client_id.clone());
            }
            Command::StartTimer { interval, .. } => check_interval(*interval)?,
            Command::Publish { topic, .. } => {
                self.check_authenticated("Publish")?;
                check_name(topic).map_err(malformed)?;
            }
            Command::Subscribe { filter, .. } => {
                self.check_authenticated("Subscribe")?;
                parse_filter(filter).map_err(malformed)?;
            }
            Command::Unsubscribe { filter } => {
                self.check_authenticated("Unsubscribe")?;
                parse_filter(filter).map_err(malformed)?;
            }
            Command::RawPublish { topic, .. } => check_name(topic).map_err(malformed)?,
            Command::Close | Command::StopTimer(_) => {}
        }
        Ok(())
    }

    fn check_authenticated(&self, operation: &'static str) -> Result<(), Refused> {
        if self.client_id.is_some() { Ok(()) } else { Err(Refused::NotAuthenticated { operation }) }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;
    use crate::conn::{ClientInfo, QoS, Timer};

    fn dry_run() -> DryRunAdapter {
        DryRunAdapter::new(ConnId::from_u64(1))
    }

    /// What is asked is kept in order, and granted unless something else was agreed on.
    #[test]
    fn what_is_asked_is_written_down() {
        let mut dry_run = dry_run();
        dry_run.answer_with([Ok(()), Err(Refused::Gone)]);
        assert_eq!(dry_run.apply(Command::Send("a".into())), Ok(()));
        assert_eq!(dry_run.apply(Command::Send("b".into())), Err(Refused::Gone));
        assert_eq!(dry_run.apply(Command::Close), Ok(()));
        assert_eq!(dry_run.apply(Command::Send("c".into())), Err(Refused::Gone), "after the end");
        let asked = vec![Command::Send("a".into()), Command::Send("b".into()), Command::Close];
        assert_eq!(dry_run.take(), (asked, 0));
        assert_eq!(dry_run.take(), (Vec::new(), 0));
    }

    /// A guest that asks for very much is answered all the same, and what is not kept is counted.
    #[test]
    fn what_is_kept_is_bounded() {
        let mut dry_run = dry_run();
        for _ in 0..5 {
            assert_eq!(dry_run.apply(Command::Send(vec![0; 1 << 20].into())), Ok(()));
        }
        let (kept, left_out) = dry_run.take();
        assert_eq!((kept.len(), left_out), (3, 2));
    }

    /// By the rules, what a connection refuses is refused and not written down; the rest is granted.
    #[test]
    fn strict() {
        let mut dry_run = DryRunAdapter::strict(ConnId::from_u64(1));
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

        assert!(matches!(dry_run.apply(publish("t")), Err(Refused::NotAuthenticated { operation: "Publish" })));
        assert!(matches!(dry_run.apply(subscribe("t")), Err(Refused::NotAuthenticated { operation: "Subscribe" })));
        assert!(matches!(dry_run.apply(authenticate("")), Err(Refused::Missing { .. })));
        assert!(matches!(dry_run.apply(start(Duration::ZERO)), Err(Refused::Malformed { .. })));
        assert_eq!(dry_run.take(), (Vec::new(), 0));

        assert_eq!(dry_run.apply(authenticate("c")), Ok(()));
        assert!(matches!(dry_run.apply(authenticate("c")), Err(Refused::AlreadyAuthenticated { .. })));
        assert!(matches!(dry_run.apply(publish("a/#")), Err(Refused::Malformed { .. })));
        assert!(matches!(dry_run.apply(subscribe("a/#/b")), Err(Refused::Malformed { .. })));
        assert_eq!(dry_run.apply(publish("a/b")), Ok(()));
        assert_eq!(dry_run.take().0.len(), 2);

        let half = Bytes::from(vec![0; OUTBOUND_BYTES_MAX / 2]);
        for _ in 0..2 {
            assert_eq!(dry_run.apply(Command::Send(half.clone())), Ok(()));
        }
        assert!(matches!(dry_run.apply(Command::Send(half.clone())), Err(Refused::Full { .. })));
        assert_eq!(dry_run.take().0.len(), 2);
        assert_eq!(dry_run.apply(Command::Send(half)), Ok(()), "written meanwhile");

        dry_run.end();
        assert_eq!(dry_run.apply(publish("a/b")), Err(Refused::Gone));
        assert_eq!(
            dry_run.apply(Command::RawPublish { topic: "a".to_owned(), qos: QoS::AtMostOnce, payload: Bytes::new() }),
            Ok(())
        );
    }
}
