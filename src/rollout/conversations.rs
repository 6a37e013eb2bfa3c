//! The conversations of a handler: what each new version of it must do before a device meets it.

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tracing::instrument::WithSubscriber;
use tracing::subscriber::NoSubscriber;

use crate::conversation::{Conversation, FolderError, ReadError, files, read_all};
use crate::error::report;
use crate::handler::wasm::Handler;
use crate::local_replay::{Failure, Options, replay};

/// How long the conversations of one version may take. The largest set of examples, with all its cuts, takes three
/// seconds in a build without optimizations.
const TIME_MAX: Duration = Duration::from_secs(30);

/// Failures that are told of one version; the rest are counted.
const REPORTED_MAX: usize = 10;

/// Why a version is not what its handler's conversations ask for.
#[derive(Debug, thiserror::Error)]
pub enum ConversationsError {
    /// A folder of conversations.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// Files that cannot be read or are no conversations: all of them.
    #[error("{}", .0.iter().map(|error| report(error)).collect::<Vec<_>>().join("\n"))]
    Read(Vec<ReadError>),
    /// The version does something else.
    #[error(transparent)]
    Failed(#[from] Deviations),
    /// It takes too long.
    #[error("expected {all} conversations within {} s, the version has played {played} of them", .time_max.as_secs())]
    TooSlow {
        /// Conversations that were played as recorded.
        played: usize,
        /// Conversations that there are.
        all: usize,
        /// How long it had.
        time_max: Duration,
    },
}

/// What a version does otherwise than recorded: at least one thing.
#[derive(Debug)]
pub struct Deviations(Vec<(String, Failure)>);

impl fmt::Display for Deviations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (conversation, failure)) in self.0.iter().take(REPORTED_MAX).enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{conversation}: {failure}")?;
        }
        match self.0.len().saturating_sub(REPORTED_MAX) {
            0 => Ok(()),
            more => write!(f, "\nand {more} more"),
        }
    }
}

impl std::error::Error for Deviations {}

/// What came of conversations that went as recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Played {
    pub(super) conversations: usize,
    pub(super) plays: usize,
    /// Cuts that there was no time for.
    pub(super) left_out: usize,
}

/// Plays all conversations in these files and folders. Reads files and lets the guest work, so it belongs on a blocking
/// thread of a runtime.
pub(super) fn play(guest: &Handler, paths: &[PathBuf]) -> Result<Played, ConversationsError> {
    let conversations = read_all(&files(paths)?).map_err(ConversationsError::Read)?;
    // What the guest says meanwhile concerns no device.
    Handle::current().block_on(play_all(guest, &conversations, TIME_MAX).with_subscriber(NoSubscriber::new()))
}

/// First all as recorded, which must be done in time; then with all cuts, as far as the time goes: how busy the machine is
/// must not decide whether a gateway starts.
async fn play_all(
    guest: &Handler,
    conversations: &[Conversation],
    time_max: Duration,
) -> Result<Played, ConversationsError> {
    let until = Instant::now() + time_max;
    let recorded = Options { places_max: 0, until: None };
    let cut = Options { until: Some(until), ..Options::default() };
    let all = conversations.len();
    let mut played = Played { conversations: all, plays: 0, left_out: 0 };
    let mut deviations = Vec::new();
    for (index, conversation) in conversations.iter().enumerate() {
        let too_slow = ConversationsError::TooSlow { played: index, all, time_max };
        if Instant::now() >= until {
            return Err(too_slow);
        }
        let rehearsing = replay(guest, None, conversation, recorded);
        let report = tokio::time::timeout_at(until.into(), rehearsing).await.map_err(|_| too_slow)?;
        deviations.extend(report.failures.into_iter().map(|failure| (conversation.name().to_owned(), failure)));
    }
    if !deviations.is_empty() {
        return Err(Deviations(deviations).into());
    }
    for conversation in conversations {
        let report = replay(guest, None, conversation, cut).await;
        played.plays += report.plays.played;
        played.left_out += report.plays.left_out;
        deviations.extend(report.failures.into_iter().map(|failure| (conversation.name().to_owned(), failure)));
    }
    if deviations.is_empty() { Ok(played) } else { Err(Deviations(deviations).into()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handler::wasm::{self, Runtime};
    use crate::telemetry::Telemetry;

    const GOOD: &str = "> \"x\"\n< \"1:1\\n\"\n";

    fn guest(name: &str) -> (tempfile::TempDir, Handler) {
        let dir = tempfile::tempdir().unwrap();
        let component = PathBuf::from(format!("guests/dist/{name}.wasm"));
        let host = Runtime::start(dir.path().join("cache")).unwrap();
        let options = wasm::Options::new("h".into(), component);
        (dir, host.load(options, Telemetry::new().instances(&"h".into())).unwrap())
    }

    fn conversation(name: &str, text: &str) -> Conversation {
        Conversation::parse(name, text).unwrap()
    }

    /// A version that has no time is refused; what it would have done is not known.
    #[tokio::test]
    async fn the_time_is_bounded() {
        let (_dir, counter) = guest("counter");
        let conversations = [conversation("a", GOOD)];
        let error = play_all(&counter, &conversations, Duration::ZERO).await.unwrap_err();
        assert_eq!(error.to_string(), "expected 1 conversations within 0 s, the version has played 0 of them");
    }

    /// The cuts are played too: a version that counts pieces does not bear them.
    #[tokio::test]
    async fn every_cut_counts() {
        let (_dir, counter) = guest("counter");
        let good = play_all(&counter, &[conversation("a", GOOD)], TIME_MAX).await.unwrap();
        assert_eq!(good, Played { conversations: 1, plays: 2, left_out: 0 });
        let two = conversation("b", &GOOD.replace("\"x\"", "\"xy\""));
        let error = play_all(&counter, &[two], TIME_MAX).await.unwrap_err();
        assert!(
            error.to_string().starts_with("b: with each \">\" line cut after its first byte: after line 2: "),
            "{error}"
        );
    }

    /// Of very many failures the first are told.
    #[tokio::test]
    async fn what_is_told_is_bounded() {
        let (_dir, trap) = guest("trap");
        let conversations: Vec<_> = (0..12).map(|number| conversation(&format!("c{number}"), GOOD)).collect();
        let told = play_all(&trap, &conversations, TIME_MAX).await.unwrap_err().to_string();
        assert!(told.starts_with("c0: line 2: ") && told.ends_with("\nand 2 more"), "{told}");
    }
}
