//! Dry run: an adapter without a connection, for shadows, local replays and benchmarks of guests.

use std::collections::VecDeque;

use super::{check_client, check_interval, malformed};
use crate::conn::{Command, ConnId, Refused};
use crate::topic::{check_name, parse_filter};

/// Maximum bytes of logged commands; further commands are counted and dropped.
const KEPT_BYTES_MAX: usize = 4 << 20;

/// Size of the outbound queue in strict mode: the default of a listener's `outbound_max`.
const OUTBOUND_BYTES_MAX: usize = 1 << 20;

/// Fixed cost of one log entry, beside its bytes.
pub(super) const LOGGED_BYTES: usize = 64;

/// An adapter without a connection: commands are logged and answered, and have no effect.
#[derive(Debug)]
pub struct DryRunAdapter {
    conn: ConnId,
    rules: Option<Rules>,
    answers: VecDeque<Result<(), Refused>>,
    commands: Vec<Command>,
    kept_bytes: usize,
    left_out: u64,
    ended: bool,
}

impl DryRunAdapter {
    /// For a handler that serves the imaginary connection `conn`.
    pub fn new(conn: ConnId) -> Self {
        Self {
            conn,
            rules: None,
            answers: VecDeque::new(),
            commands: Vec::new(),
            kept_bytes: 0,
            left_out: 0,
            ended: false,
        }
    }

    /// Strict mode: answers as a connection without mountpoint and without rules would. Commands that a connection
    /// refuses, such as Publish before Authenticate or a malformed topic, get the same error, and are not logged.
    pub fn strict(conn: ConnId) -> Self {
        Self { rules: Some(Rules::default()), ..Self::new(conn) }
    }

    /// The imaginary connection.
    pub fn conn(&self) -> ConnId {
        self.conn
    }

    /// Sets the results of the next commands, in order; further commands succeed.
    pub fn answer_with(&mut self, answers: impl IntoIterator<Item = Result<(), Refused>>) {
        self.answers = answers.into_iter().collect();
    }

    /// Answers a command as a connection would, without an effect.
    ///
    /// # Errors
    ///
    /// [`Refused::Gone`] after a Close, else the result set by [`DryRunAdapter::answer_with`].
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
            self.commands.push(command.without_password());
        }
        self.answers.pop_front().unwrap_or(Ok(()))
    }

    /// Ends the imaginary connection: further commands, except RawPublish, are refused as [`Refused::Gone`].
    pub fn end(&mut self) {
        self.ended = true;
    }

    /// Takes the logged commands, in order, and the number of dropped ones (the log holds 4 MiB).
    pub fn take(&mut self) -> (Vec<Command>, u64) {
        self.kept_bytes = 0;
        if let Some(rules) = &mut self.rules {
            rules.outbound_bytes = 0;
        }
        (std::mem::take(&mut self.commands), std::mem::take(&mut self.left_out))
    }
}

/// State of the strict mode.
#[derive(Debug, Default)]
struct Rules {
    /// The client that the handler has authenticated.
    client_id: Option<String>,
    /// Bytes sent since the last [`DryRunAdapter::take`].
    outbound_bytes: usize,
}

impl Rules {
    fn check(&mut self, command: &Command) -> Result<(), Refused> {
        match command {
            Command::Send(bytes) => {
                if self.outbound_bytes >= OUTBOUND_BYTES_MAX {
                    let limit = format!("{OUTBOUND_BYTES_MAX} bytes");
                    return Err(Refused::Full { what: "the outbound queue", limit });
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

    /// Commands are logged in order, and succeed unless another result is set.
    #[test]
    fn commands_are_logged() {
        let mut dry_run = dry_run();
        dry_run.answer_with([Ok(()), Err(Refused::Gone)]);
        assert_eq!(dry_run.apply(Command::Send("a".into())), Ok(()));
        assert_eq!(dry_run.apply(Command::Send("b".into())), Err(Refused::Gone));
        assert_eq!(dry_run.apply(Command::Close), Ok(()));
        assert_eq!(dry_run.apply(Command::Send("c".into())), Err(Refused::Gone), "after the close");
        let commands = vec![Command::Send("a".into()), Command::Send("b".into()), Command::Close];
        assert_eq!(dry_run.take(), (commands, 0));
        assert_eq!(dry_run.take(), (Vec::new(), 0));
    }

    /// A guest that sends without limit is answered all the same, and dropped commands are counted.
    #[test]
    fn the_log_is_bounded() {
        let mut dry_run = dry_run();
        for _ in 0..5 {
            assert_eq!(dry_run.apply(Command::Send(vec![0; 1 << 20].into())), Ok(()));
        }
        let (kept, left_out) = dry_run.take();
        assert_eq!((kept.len(), left_out), (3, 2));
    }

    /// In strict mode, commands that a connection refuses are refused and not logged; the others succeed.
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
