//! Acceptance test of a new version: it must pass its handler's recorded conversations before it gets a connection.

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

/// Timeout for the conversations of one version. The largest set of examples, with all its cuts, takes three seconds in
/// a build without optimizations.
const TIME_MAX: Duration = Duration::from_secs(30);

/// Maximum number of reported failures of one version; the rest are counted.
const REPORTED_MAX: usize = 10;

/// The version does not pass its handler's conversations.
#[derive(Debug, thiserror::Error)]
pub enum ConversationsError {
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// All files that cannot be read or parsed.
    #[error("{}", .0.iter().map(|error| report(error)).collect::<Vec<_>>().join("\n"))]
    Read(Vec<ReadError>),
    /// The version deviates.
    #[error(transparent)]
    Failed(#[from] Deviations),
    #[error("expected {all} conversations within {} s, the version has played {played} of them", .time_max.as_secs())]
    TooSlow {
        /// Conversations passed as recorded.
        played: usize,
        /// Number of conversations.
        all: usize,
        time_max: Duration,
    },
}

/// Deviations of a version from its conversations; not empty.
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

/// Result of passed conversations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Played {
    pub(super) conversations: usize,
    pub(super) plays: usize,
    /// Plays skipped for lack of time.
    pub(super) left_out: usize,
}

/// Replays all conversations in these files and folders. Blocking: reads files and runs the guest; to be called on a
/// blocking thread of a runtime.
pub(super) fn play(guest: &Handler, paths: &[PathBuf]) -> Result<Played, ConversationsError> {
    let conversations = read_all(&files(paths)?).map_err(ConversationsError::Read)?;
    // The guest's log lines are discarded: they concern no device.
    Handle::current().block_on(play_all(guest, &conversations, TIME_MAX).with_subscriber(NoSubscriber::new()))
}

/// First all conversations as recorded, within the timeout; then with all cuts while time is left: the load of the
/// machine must not decide whether a gateway starts.
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
        let replaying = replay(guest, None, conversation, recorded);
        let report = tokio::time::timeout_at(until.into(), replaying).await.map_err(|_| too_slow)?;
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

    /// A version that exceeds the timeout is rejected, without a verdict on its behaviour.
    #[tokio::test]
    async fn the_time_is_bounded() {
        let (_dir, counter) = guest("counter");
        let conversations = [conversation("a", GOOD)];
        let error = play_all(&counter, &conversations, Duration::ZERO).await.unwrap_err();
        assert_eq!(error.to_string(), "expected 1 conversations within 0 s, the version has played 0 of them");
    }

    /// Cuts are played too: a version that counts reads fails.
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

    /// Only the first failures are reported.
    #[tokio::test]
    async fn the_report_is_bounded() {
        let (_dir, trap) = guest("trap");
        let conversations: Vec<_> = (0..12).map(|number| conversation(&format!("c{number}"), GOOD)).collect();
        let error = play_all(&trap, &conversations, TIME_MAX).await.unwrap_err().to_string();
        assert!(error.starts_with("c0: line 2: ") && error.ends_with("\nand 2 more"), "{error}");
    }
}
