//! Shadow version of a handler: it gets the events of the active version in a dry run, without effects, and its
//! commands are compared with the executed ones.

use std::sync::Arc;

use bytes::BytesMut;

use crate::adapter::{Backend, DryRunAdapter, LoggedCommand};
use crate::conn::{Command, ConnId, Event, Refused};
use crate::dispatch::{Membership, TrialKind, Versions};
use crate::handler::wasm::Guest;
use crate::handler::{CallError, Handler};

/// One connection's instance of the shadow version.
#[derive(Debug)]
pub(super) struct Shadow {
    guest: Guest,
    membership: Membership,
    dry_run: Option<Box<DryRunAdapter>>,
}

/// Result of one event in the shadow version.
#[derive(Debug)]
pub(super) enum Compared {
    Same,
    /// Other commands; the text names the first difference.
    Different(String),
    /// It failed, and gets no more events.
    Failed(CallError),
}

impl Shadow {
    /// The shadow of a new connection, if the handler has a shadow version. A gRPC server cannot be one: its calls come
    /// from outside, and would have effects.
    pub(super) fn of(versions: &Versions, conn: ConnId, info: &Arc<crate::conn::ConnInfo>) -> Option<Box<Self>> {
        let plan = versions.plan();
        let trial = plan.trial.as_ref().filter(|trial| trial.how == TrialKind::Shadow)?;
        let Handler::Wasm(handler) = trial.version.handler() else {
            return None;
        };
        Some(Box::new(Self {
            guest: handler.attach(conn, info),
            membership: trial.version.enter(conn),
            dry_run: Some(Box::new(DryRunAdapter::new(conn))),
        }))
    }

    /// Whether its version is still the shadow version.
    pub(super) fn is_wanted(&self, versions: &Versions) -> bool {
        let plan = versions.plan();
        let version = self.membership.version();
        plan.trial.as_ref().is_some_and(|trial| trial.how == TrialKind::Shadow && Arc::ptr_eq(&trial.version, version))
    }

    /// Detaches from the instance, which may serve other connections too: the connection has closed, or the trial is
    /// over.
    pub(super) async fn leave(self) {
        self.guest.leave().await;
    }

    /// Runs an event that the active version has handled, with the results that its commands got.
    pub(super) async fn follow(&mut self, event: &Event, done: &[LoggedCommand]) -> Compared {
        let Some(mut dry_run) = self.dry_run.take() else {
            return Compared::Failed(CallError::Unavailable("the shadow has failed before".to_owned()));
        };
        if matches!(event, Event::SocketClosed(_)) {
            dry_run.end();
        }
        dry_run.answer_with(counted(done).map(|entry| entry.result.clone()));
        let (backend, result) = self.guest.call(Backend::DryRun(dry_run), event).await;
        self.membership.version().count(result.is_ok());
        let Backend::DryRun(mut dry_run) = backend else {
            return Compared::Failed(CallError::Unavailable("the shadow has lost its adapter".to_owned()));
        };
        if let Err(error) = result {
            return Compared::Failed(error);
        }
        let (operations, _) = dry_run.take();
        self.dry_run = Some(dry_run);
        compare(counted(done).map(|entry| &entry.command), &operations)
    }
}

/// The commands to compare. Commands after the close had no effect, and a dry run does not log them either.
fn counted(done: &[LoggedCommand]) -> impl Iterator<Item = &LoggedCommand> {
    done.iter().filter(|entry| entry.result != Err(Refused::Gone))
}

/// Compares the commands of two versions. How outbound bytes are cut into sends makes no difference: the peer cannot
/// see it.
fn compare<'a>(done: impl Iterator<Item = &'a Command>, would: &'a [Command]) -> Compared {
    let (done, would) = (joined(done), joined(would.iter()));
    let first = done.iter().zip(&would).position(|(done, would)| done != would);
    let at = first.unwrap_or(done.len().min(would.len()));
    match (done.get(at), would.get(at)) {
        (None, None) => Compared::Same,
        (done, would) => {
            let name = |operation: Option<&Command>| operation.map_or("nothing", Command::name);
            Compared::Different(format!("operation {}: {} was done, {} would be", at + 1, name(done), name(would)))
        }
    }
}

fn joined<'a>(operations: impl Iterator<Item = &'a Command>) -> Vec<Command> {
    let mut joined: Vec<Command> = Vec::new();
    for operation in operations {
        if let (Some(Command::Send(last)), Command::Send(bytes)) = (joined.last_mut(), operation) {
            let mut both = BytesMut::from(&**last);
            both.extend_from_slice(bytes);
            *last = both.freeze();
        } else {
            joined.push(operation.clone());
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::conn::{Command, QoS};

    fn send(text: &'static str) -> Command {
        Command::Send(text.into())
    }

    /// Commands after a Close are ignored for both versions.
    #[test]
    fn commands_after_the_close_do_not_count() {
        let message = || Bytes::from_static(b"bye");
        let raw = || Command::RawPublish { topic: "t".to_owned(), qos: QoS::AtMostOnce, payload: message() };
        let done = [
            LoggedCommand { command: Command::Close, result: Ok(()) },
            LoggedCommand { command: send("late"), result: Err(Refused::Gone) },
            LoggedCommand { command: raw(), result: Err(Refused::Malformed { what: "topic", why: String::new() }) },
        ];
        let mut dry_run = DryRunAdapter::new(ConnId::from_u64(1));
        dry_run.answer_with(counted(&done).map(|entry| entry.result.clone()));
        assert_eq!(dry_run.apply(Command::Close), done[0].result);
        assert_eq!(dry_run.apply(Command::Send("late".into())), done[1].result);
        assert_eq!(dry_run.apply(raw()), done[2].result);
        let (operations, _) = dry_run.take();
        assert!(matches!(compare(counted(&done).map(|entry| &entry.command), &operations), Compared::Same));
    }

    /// Only effects that the peer can see count, and the first difference is named.
    #[test]
    fn the_first_difference_is_named() {
        let difference = |done: &[Command], would: &[Command]| match compare(done.iter(), would) {
            Compared::Same => String::new(),
            Compared::Different(what) => what,
            Compared::Failed(error) => error.to_string(),
        };
        assert_eq!(difference(&[send("ab"), send("c")], &[send("a"), send("bc")]), "");
        assert_eq!(difference(&[], &[]), "");
        assert_eq!(difference(&[send("a")], &[]), "operation 1: send was done, nothing would be");
        assert_eq!(
            difference(&[send("a"), Command::Close], &[send("a"), Command::Unsubscribe { filter: "f".into() }]),
            "operation 2: close was done, unsubscribe would be"
        );
        assert_eq!(difference(&[send("a")], &[send("b")]), "operation 1: send was done, send would be");
    }
}
