//! A version of the handler that is tried without effects: it gets what the active one got, and what it would have done
//! is compared with what was done.

use std::sync::Arc;

use bytes::BytesMut;

use crate::adapter::{Backend, DryRunAdapter, LoggedCommand};
use crate::conn::{Command, ConnId, Event, Refused};
use crate::dispatch::{Membership, TrialKind, Versions};
use crate::handler::wasm::Guest;
use crate::handler::{CallError, Handler};

/// One connection's instance of the version that is tried.
#[derive(Debug)]
pub(super) struct Shadow {
    guest: Guest,
    membership: Membership,
    dry_run: Option<Box<DryRunAdapter>>,
}

/// What the tried version did with an event.
#[derive(Debug)]
pub(super) enum Compared {
    /// The same.
    Same,
    /// Something else; the text names the first thing.
    Different(String),
    /// It failed, and is not asked any more.
    Failed(CallError),
}

impl Shadow {
    /// The shadow of a new connection, if one of the handler's versions is tried so. A server cannot be: its calls come from
    /// outside, and would have effects.
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

    /// Whether its version is still the one that is tried.
    pub(super) fn is_wanted(&self, versions: &Versions) -> bool {
        let plan = versions.plan();
        let version = self.membership.version();
        plan.trial.as_ref().is_some_and(|trial| trial.how == TrialKind::Shadow && Arc::ptr_eq(&trial.version, version))
    }

    /// The connection has ended, or the version is tried on it no more: an instance that serves others too forgets it.
    pub(super) async fn leave(self) {
        self.guest.leave().await;
    }

    /// Gives it the event that the active version has handled, with the answers that were given then.
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
            return Compared::Failed(CallError::Unavailable("the shadow has lost its desk".to_owned()));
        };
        if let Err(error) = result {
            return Compared::Failed(error);
        }
        let (operations, _) = dry_run.take();
        self.dry_run = Some(dry_run);
        compare(counted(done).map(|entry| &entry.command), &operations)
    }
}

/// What counts of what was done. What was asked for after the end was nothing, and a rehearsal does not write it down either.
fn counted(done: &[LoggedCommand]) -> impl Iterator<Item = &LoggedCommand> {
    done.iter().filter(|entry| entry.result != Err(Refused::Gone))
}

/// Compares what two versions did. How bytes for the peer are cut into sends makes no difference: the peer cannot see it.
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

    /// A handler that goes on after a Close does the same as one that goes on after a Close.
    #[test]
    fn nothing_after_the_end_counts() {
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

    /// What the peer sees is what counts, and the first thing that differs is named.
    #[test]
    fn what_differs_is_named() {
        let told = |done: &[Command], would: &[Command]| match compare(done.iter(), would) {
            Compared::Same => String::new(),
            Compared::Different(what) => what,
            Compared::Failed(error) => error.to_string(),
        };
        assert_eq!(told(&[send("ab"), send("c")], &[send("a"), send("bc")]), "");
        assert_eq!(told(&[], &[]), "");
        assert_eq!(told(&[send("a")], &[]), "operation 1: send was done, nothing would be");
        assert_eq!(
            told(&[send("a"), Command::Close], &[send("a"), Command::Unsubscribe { filter: "f".into() }]),
            "operation 2: close was done, unsubscribe would be"
        );
        assert_eq!(told(&[send("a")], &[send("b")]), "operation 1: send was done, send would be");
    }
}
